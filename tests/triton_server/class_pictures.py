"""A small class-conditional graph, published for Triton's Python back end."""

from pathlib import Path

import onnx
from class_graph import CLASSES, graph

from export.repository.manifest import describe
from export.repository.publish import publish, staging
from export.repository.triton_config import ServingOptions, triton_config
from export.signature import class_to_image

MAX_BATCH = 8


def publish_classes(repository: Path, name: str) -> Path:
    """Its first version, with a warm-up of every batch size."""
    signature, options = class_to_image(3, 8), ServingOptions(threads=1)
    config = triton_config(name, signature, MAX_BATCH, "python", options)
    facts = {**describe(signature, MAX_BATCH), "classes": {"count": CLASSES}}
    with staging(repository) as staged:
        onnx.save(graph(), staged / "model.onnx")
        return publish(staged, repository, name, config, facts).folder
