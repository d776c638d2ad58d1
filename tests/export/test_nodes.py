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


def of_table(users: list[onnx.NodeProto], kind: int = HALF) -> onnx.GraphProto:
    """A graph of `users` of the weight `table` [1, 36, 4], after the change; checked."""
    lengths = {"square": [1, 6, 6, 4], "flat": [1, -1, 4], **{str(n): [n] for n in range(6)}}
    weights = [helper.make_tensor(k, TensorProto.INT64, [len(v)], v) for k, v in lengths.items()]
    weights.append(helper.make_tensor("table", kind, [1, 36, 4], np.arange(144.0)))
    y = helper.make_tensor_value_info("y", kind, [*"abc"])
    last = helper.make_node("Identity", ["part"], ["y"])
    graph = helper.make_graph([*users, last], "g", [], [y], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    model = onnx_ir.from_proto(proto)
    mend_nodes(model)
    after = onnx_ir.to_proto(model)
    onnx.checker.check_model(after, full_check=True)
    return after.graph


@pytest.mark.parametrize("kind", [HALF, BFLOAT])
def test_of_a_weight_only_what_is_used_is_kept(kind: int) -> None:
    """As one size takes the middle of SD 3's positions."""
    after = of_table(
        [
            helper.make_node("Reshape", ["table", "square"], ["a"]),
            helper.make_node("Slice", ["a", "1", "5", "1", "1"], ["b"]),
            helper.make_node("Slice", ["b", "2", "4", "2", "1"], ["c"]),
            helper.make_node("Reshape", ["c", "flat"], ["part"]),
        ],
        kind,
    )
    assert [node.op_type for node in after.node] == ["Identity"]
    kept = {weight.name: weight for weight in after.initializer}["table"]
    assert kept.data_type == kind
    assert not {"square", "flat", "1", "2", "4", "5"} & {w.name for w in after.initializer}
    middle = np.arange(144.0).reshape(6, 6, 4)[1:5, 2:4].reshape(1, 8, 4)
    assert np.array_equal(onnx.numpy_helper.to_array(kept).astype(float), middle)


def test_a_weight_of_two_uses_stays_whole() -> None:
    after = of_table(
        [
            helper.make_node("Slice", ["table", "1", "5", "1", "1"], ["b"]),
            helper.make_node("Concat", ["b", "table"], ["part"], axis=1),
        ]
    )
    assert [node.op_type for node in after.node] == ["Slice", "Concat", "Identity"]
