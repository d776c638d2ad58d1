"""A repository with a small real class-conditional graph: its picture hangs on class and noise."""

from pathlib import Path
from typing import Any

from class_graph import CLASSES, IMAGE, NOISE, graph
from tiny_repository import write_manifest

NAMES = ["red", "Blue", "green", "crane", "Crane"]
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
