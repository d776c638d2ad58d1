"""A repository with a small real class-conditional graph: its picture hangs on class and noise."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tiny_repository import write_manifest

CLASSES = 5
NAMES = ["red", "Blue", "green", "crane", "Crane"]
NOISE = (3, 8, 8)
IMAGE = (8, 8, 3)
CALLED = {
    "task": "class-to-image",
    "inputs": [
        {"name": "class_labels", "dtype": "int64", "shape": [None]},
        {"name": "noise", "dtype": "float32", "shape": [None, *NOISE]},
    ],
    "output": {"name": "image", "dtype": "uint8", "shape": [None, *IMAGE]},
    "sizes": ["8x8"],
    "pixels_per_latent": 1,
    "tokenizers": {},
}


def graph() -> onnx.ModelProto:
    """class_labels [B] and noise [B, 3, 8, 8] to image [B, 8, 8, 3]."""
    random = np.random.RandomState(3)
    constants = {
        "table": random.standard_normal((CLASSES, *NOISE)).astype(np.float32),
        "half": np.array(60, np.float32),
        "middle": np.array(127.5, np.float32),
        "low": np.array(0, np.float32),
        "high": np.array(255, np.float32),
    }
    node = helper.make_node
    nodes = [
        node("Gather", ["table", "class_labels"], ["condition"]),
        node("Add", ["condition", "noise"], ["clean"]),
        node("Mul", ["clean", "half"], ["scaled"]),
        node("Add", ["scaled", "middle"], ["shifted"]),
        node("Clip", ["shifted", "low", "high"], ["clipped"]),
        node("Transpose", ["clipped"], ["last"], perm=[0, 2, 3, 1]),
        node("Round", ["last"], ["rounded"]),
        node("Cast", ["rounded"], ["image"], to=TensorProto.UINT8),
    ]
    info = helper.make_tensor_value_info
    made = helper.make_graph(
        nodes,
        "classes",
        [
            info("class_labels", TensorProto.INT64, ["B"]),
            info("noise", TensorProto.FLOAT, ["B", *NOISE]),
        ],
        [info("image", TensorProto.UINT8, ["B", *IMAGE])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def write_class_version(
    repository: Path, model: str = "things", named: bool = True, **changes: Any
) -> Path:
    """Write version 1 as the exporter does; `changes` replace keys of its manifest."""
    folder = repository / model / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(graph().SerializeToString())
    classes = {"count": CLASSES} | ({"names": NAMES} if named else {})
    write_manifest(folder, **(CALLED | {"classes": classes} | changes))
    return folder
