"""A complete model repository with a small real graph: its picture hangs on ids and noise."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "a", "red", "blue", "circle", "square", "left"]
LENGTH = 77
NOISE = (4, 8, 8)
IMAGE = (64, 64, 3)
WIDTH = 16


def tokenizer() -> Tokenizer:
    """Words to ids between a start and an end token, padded to 77, never truncated."""
    made = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    made.enable_padding(length=LENGTH, pad_id=0, pad_token="<pad>")
    return made


def graph(weights: int = 0) -> onnx.ModelProto:
    """ids, ids_2 [B, 77] and noise [B, 4, 8, 8] to image [B, 64, 64, 3]: MatMul, Gemm, Conv."""
    random = np.random.RandomState(weights)

    def weight(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32) / 2

    constants = {
        "table": weight(len(WORDS), WIDTH),
        "table_2": weight(len(WORDS), WIDTH),
        "dense": weight(WIDTH, WIDTH),
        "to_latent": weight(2 * WIDTH, 256),
        "bias": weight(256),
        "conv": weight(16, 4, 3, 3),
        "conv_2": weight(3, 16, 3, 3) / 4,
        "words": np.array([1]),
        "latent": np.array([-1, *NOISE]),
        "scales": np.array([1, 1, 8, 8], np.float32),
        "half": np.array(127.5, np.float32),
        "low": np.array(0, np.float32),
        "high": np.array(255, np.float32),
    }
    node = helper.make_node
    nodes = []
    for i in ("", "_2"):
        nodes += [
            node("Gather", [f"table{i}", f"input_ids{i}"], [f"embedded{i}"]),
            node("MatMul", [f"embedded{i}", "dense"], [f"mixed{i}"]),
            node("Tanh", [f"mixed{i}"], [f"hidden{i}"]),
            node("ReduceMean", [f"hidden{i}", "words"], [f"pooled{i}"], keepdims=0),
        ]
    nodes += [
        node("Concat", ["pooled", "pooled_2"], ["text"], axis=1),
        node("Gemm", ["text", "to_latent", "bias"], ["flat"]),
        node("Reshape", ["flat", "latent"], ["condition"]),
        node("Add", ["condition", "noise"], ["start"]),
        node("Conv", ["start", "conv"], ["wide"], pads=[1, 1, 1, 1]),
        node("Tanh", ["wide"], ["bounded"]),
        node("Conv", ["bounded", "conv_2"], ["rgb"], pads=[1, 1, 1, 1]),
        node("Resize", ["rgb", "", "scales"], ["large"], mode="nearest"),
        node("Transpose", ["large"], ["last"], perm=[0, 2, 3, 1]),
        node("Mul", ["last", "half"], ["scaled"]),
        node("Add", ["scaled", "half"], ["shifted"]),
        node("Clip", ["shifted", "low", "high"], ["clipped"]),
        node("Round", ["clipped"], ["rounded"]),
        node("Cast", ["rounded"], ["image"], to=TensorProto.UINT8),
    ]
    info = helper.make_tensor_value_info
    made = helper.make_graph(
        nodes,
        "tiny",
        [
            info("input_ids", TensorProto.INT64, ["B", LENGTH]),
            info("input_ids_2", TensorProto.INT64, ["B", LENGTH]),
            info("noise", TensorProto.FLOAT, ["B", *NOISE]),
        ],
        [info("image", TensorProto.UINT8, ["B", *IMAGE])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def write_version(
    repository: Path, model: str = "tiny", version: int = 1, weights: int = 0, **changes: Any
) -> Path:
    """Write one version as the exporter does; `changes` replace keys of its manifest."""
    folder = repository / model / str(version)
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(graph(weights).SerializeToString())
    for name in ("tokenizer.json", "tokenizer_2.json"):
        tokenizer().save(str(folder / name))
    write_manifest(folder, **changes)
    return folder


def publish(
    repository: Path, model: str = "tiny", version: int = 1, weights: int = 0, **changes: Any
) -> Path:
    """Write one version beside the repository, then rename it into its place."""
    hidden = repository.with_name(f".{repository.name}")
    folder = write_version(hidden, model, version, weights, **changes)
    place = repository / model / str(version)
    place.parent.mkdir(parents=True, exist_ok=True)
    return folder.rename(place)


def pin(repository: Path, versions: str, model: str = "tiny") -> None:
    """Let the config name specific versions, as in "1, 2"; none takes the pin away."""
    policy = f"version_policy {{ specific {{ versions: [{versions}] }} }}" if versions else ""
    (repository / model / "config.pbtxt").write_text(f'name: "{model}"\n{policy}\n')


def write_manifest(folder: Path, **changes: Any) -> None:
    """The manifest of the files that lie in `folder`, with a digest that fits them."""
    paths = sorted(path for path in folder.iterdir() if path.name != "manifest.json")
    files = {
        path.name: {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "bytes": path.stat().st_size,
        }
        for path in paths
    }
    lines = "".join(f"{entry['sha256']}  {name}\n" for name, entry in files.items())
    manifest = {
        "format": 1,
        "model": folder.parent.name,
        "version": int(folder.name),
        "task": "text-to-image",
        "digest": hashlib.sha256(lines.encode()).hexdigest(),
        "files": files,
        "graph": "model.onnx",
        "inputs": [
            {"name": "input_ids", "dtype": "int64", "shape": [None, LENGTH]},
            {"name": "input_ids_2", "dtype": "int64", "shape": [None, LENGTH]},
            {"name": "noise", "dtype": "float32", "shape": [None, *NOISE]},
        ],
        "output": {"name": "image", "dtype": "uint8", "shape": [None, *IMAGE]},
        "sizes": ["64x64"],
        "max_batch": 8,
        "tokenizers": {
            "input_ids": {"file": "tokenizer.json", "max_length": LENGTH},
            "input_ids_2": {"file": "tokenizer_2.json", "max_length": LENGTH},
        },
        "versions": {"something": "that the gateway does not read"},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))
