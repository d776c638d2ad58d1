"""The exporter's nodes that are changed: valid afterwards, and of the same values."""

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import TensorProto, helper
from onnxruntime import InferenceSession

from export.graph.nodes import mend_nodes

FLOAT, HALF, BFLOAT = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16


def mended(node: onnx.NodeProto, given: int, out: int, *weights: onnx.TensorProto):
    """A graph of one node on x [2, 3, 4] and a copy of its result, after the change; checked."""
    x = helper.make_tensor_value_info("x", given, [2, 3, 4])
    z = helper.make_tensor_value_info("z", out, [*"pqr"])
    last = helper.make_node("Identity", ["y"], ["z"])
    graph = helper.make_graph([node, last], "g", [x], [z], weights)
    graph.value_info.append(helper.make_tensor_value_info("y", out, [*"pqr"]))
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    model = onnx_ir.from_proto(proto)
    mend_nodes(model)
    after = onnx_ir.to_proto(model)
    onnx.checker.check_model(after, full_check=True)
    return after


def test_a_16_bit_scale_of_float32_is_widened_and_the_result_turned_back() -> None:
    scale = np.array([1, 0.5, 2, 3], np.float16)
    node = helper.make_node("RMSNormalization", ["x", "s"], ["y"], name="n", epsilon=1e-6)
    after = mended(node, FLOAT, HALF, onnx.numpy_helper.from_array(scale, "s"))
    assert [n.op_type for n in after.graph.node] == ["Cast", "RMSNormalization", "Cast", "Identity"]
    x = 1e5 * np.random.RandomState(1).randn(2, 3, 4).astype(np.float32)  # beyond float16
    (y,) = InferenceSession(after.SerializeToString()).run(None, {"x": x})
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale
    assert y.dtype == np.float16
    assert np.allclose(y, expected, atol=5e-3)


@pytest.mark.parametrize("kind", [FLOAT, BFLOAT])
def test_an_einsum_that_moves_dimensions_is_a_transpose(kind: int) -> None:
    node = helper.make_node("Einsum", ["x"], ["y"], equation="abc -> cab")
    after = mended(node, kind, kind)
    assert [n.op_type for n in after.graph.node] == ["Transpose", "Identity"]
    if kind == FLOAT:
        x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
        (y,) = InferenceSession(after.SerializeToString()).run(None, {"x": x})
        assert np.array_equal(y, np.einsum("abc->cab", x))


@pytest.mark.parametrize("equation", ["abc->ab", "abb->ab", "abc,ab->c"])
def test_an_einsum_that_computes_stays_one(equation: str) -> None:
    names = ["x", "w"][: 1 + equation.count(",")]
    node = onnx_ir.from_proto(helper.make_node("Einsum", names, ["y"], equation=equation))
    model = onnx_ir.Model(onnx_ir.Graph([], [], nodes=[node]), ir_version=10)
    mend_nodes(model)
    assert node.op_type == "Einsum"
