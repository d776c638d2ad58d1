"""The shipped shapes model, published anew; its inputs, and its pictures drawn here."""

import functools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from export.repository.manifest import FILE, read_manifest, service_ms_of, signature_of
from export.repository.publish import Published, publish, staging
from export.repository.triton_config import ServingOptions, triton_config

SHIPPED = Path(__file__).parents[2] / "model_repository" / "shapes" / "1"
ENGINE = "model.sm90.plan"
OF_THE_VERSION = {"files", "digest", "format", "model", "version"}

Feeds = dict[str, np.ndarray]


def publish_into(
    repository: Path,
    name: str,
    runtime: str = "python",
    options: ServingOptions | None = None,
    service_ms: Mapping[int, float] | None = None,
    scale: float = 1.0,
    spoilt: bool = False,
    priorities: int = 0,
) -> Published:
    """The shipped graph as the next version of `name`; `scale` changes its pictures.

    `spoilt`: no graph in its place. `priorities`: how many Triton tells apart, 0 for none.
    """
    manifest = read_manifest(SHIPPED)
    engines = {"9.0": ENGINE} if runtime == "tensorrt" else {}
    facts = {key: value for key, value in manifest.items() if key not in OF_THE_VERSION}
    config = triton_config(
        name,
        signature_of(manifest),
        manifest["max_batch"],
        runtime,
        options or ServingOptions(threads=1, warm_up=False),
        service_ms or service_ms_of(manifest),
        engines,
    )
    if priorities:
        levels = f"priority_levels: {priorities} default_priority_level: {priorities}"
        config = config.replace("dynamic_batching {", "dynamic_batching { " + levels)
    with staging(repository) as staged:
        for file in manifest["files"]:
            shutil.copyfile(SHIPPED / file, staged / file)
        if scale != 1.0:
            rescale(staged / "model.onnx", scale)
        if spoilt:
            (staged / "model.onnx").write_bytes(b"no graph")
        for file in engines.values():
            (staged / file).write_bytes(b"an engine, but that no back end here opens it")
        facts["engines"] = {capability: {"file": file} for capability, file in engines.items()}
        return publish(staged, repository, name, config, facts)


def rescale(graph: Path, scale: float) -> None:
    """Multiply the largest weight, so that every picture is another one."""
    model = onnx.load(graph)
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = onnx.numpy_helper.to_array(weight) * np.float32(scale)
    weight.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), weight.name))
    onnx.save(model, graph)


def feeds(rows: int, first_seed: int = 0) -> Feeds:
    """Rows of different prompts and noise."""
    manifest = json.loads((SHIPPED / FILE).read_text())
    random = np.random.default_rng(first_seed)
    made: Feeds = {}
    for tensor in manifest["inputs"]:
        shape = (rows, *tensor["shape"][1:])
        if tensor["dtype"] == "int64":
            made[tensor["name"]] = random.integers(0, 90, shape)
        else:
            made[tensor["name"]] = random.standard_normal(shape, np.float32)
    return made


def drawn_here(folder: Path, inputs: Feeds) -> np.ndarray:
    """ONNX Runtime in this process, one picture at a time: [B, H, W, 3] uint8."""
    session = _session(folder / "model.onnx")
    rows = len(inputs["noise"])
    alone = [{name: a[i : i + 1] for name, a in inputs.items()} for i in range(rows)]
    return np.concatenate([session.run(None, row)[0] for row in alone])


@functools.cache
def _session(graph: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(graph)
