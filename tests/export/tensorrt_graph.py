"""A small graph with the inputs and the output of a student's, for engines of the tests."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

IDS = ("input_ids", "input_ids_2")
SCALE = 8  # pixels per latent


def write_graph(
    file: Path, scale: float = 20.0, beside: bool = False, *, channels: int = 4, **renamed: str
) -> Path:
    """Weighted noise, 8x8 pixels a latent, plus the largest sum of ids: [B, H, W, 3] uint8."""
    names = [renamed.get(name, name) for name in (*IDS, "noise")]
    types = (TensorProto.INT64, TensorProto.INT64, TensorProto.FLOAT)
    shapes = (["batch", 77], ["batch", 77], ["batch", channels, "h", "w"])
    inputs = [
        helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in zip(names, types, shapes, strict=True)
    ]
    output = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", "H", "W", 3])
    weights = {
        "weight": np.full((3, channels, 1, 1), scale, np.float32),
        "sizes": np.array([1, 1, SCALE, SCALE], np.float32),
        "axes": np.array([1], np.int64),
        "low": np.float32(0),
        "high": np.float32(255),
        "ends": np.array([2, 3], np.int64),
    }
    nodes = [
        helper.make_node("Conv", [names[2], "weight"], ["mixed"], "mix"),
        helper.make_node("Resize", ["mixed", "", "sizes"], ["large"], "enlarge", mode="nearest"),
        helper.make_node("Add", [names[0], names[1]], ["ids"], "add"),
        helper.make_node("ReduceMax", ["ids", "axes"], ["most"], "most"),
        helper.make_node("Cast", ["most"], ["shift"], "shift", to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["shift", "ends"], ["shift4"], "unsqueeze"),
        helper.make_node("Add", ["large", "shift4"], ["sum"], "sum"),
        helper.make_node("Clip", ["sum", "low", "high"], ["clipped"], "clip"),
        helper.make_node("Transpose", ["clipped"], ["last"], "turn", perm=[0, 2, 3, 1]),
        helper.make_node("Cast", ["last"], ["image"], "levels", to=TensorProto.UINT8),
    ]
    initializers = [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()]
    graph = helper.make_graph(nodes, "small", inputs, [output], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    location = f"{file.name}.data" if beside else None
    onnx.save(model, file, save_as_external_data=beside, location=location, size_threshold=0)
    return file
