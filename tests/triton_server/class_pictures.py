"""A small class-conditional graph, published for Triton's Python back end."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.repository.manifest import describe
from export.repository.publish import publish, staging
from export.repository.triton_config import ServingOptions, triton_config
from export.signature import class_to_image

CLASSES, MAX_BATCH = 5, 8


def publish_classes(repository: Path, name: str) -> Path:
    """Its first version, with a warm-up of every batch size."""
    signature, options = class_to_image(3, 8), ServingOptions(threads=1)
    config = triton_config(name, signature, MAX_BATCH, "python", options)
    facts = {**describe(signature, MAX_BATCH), "classes": {"count": CLASSES}}
    with staging(repository) as staged:
        onnx.save(_graph(), staged / "model.onnx")
        return publish(staged, repository, name, config, facts).folder


def _graph() -> onnx.ModelProto:
    """A pattern for each class, and noise over it."""
    random = np.random.RandomState(3)
    constants = {
        "table": random.standard_normal((CLASSES, 3, 8, 8)).astype(np.float32),
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
    made = helper.make_graph(
        nodes,
        "classes",
        [
            helper.make_tensor_value_info("class_labels", TensorProto.INT64, ["B"]),
            helper.make_tensor_value_info("noise", TensorProto.FLOAT, ["B", 3, 8, 8]),
        ],
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["B", 8, 8, 3])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
