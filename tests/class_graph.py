"""A small real class-conditional graph: a pattern for each class, and noise over it."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES = 5
NOISE = (3, 8, 8)
IMAGE = (8, 8, 3)


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
