"""Every operator and type of our graphs is in TensorRT's published list."""

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from tensorrt_graph import write_graph

from export.engine.operators import (
    FIRST_VERSION,
    OPERATORS,
    Unsupported,
    first_version,
    unsupported_operators,
)

SHIPPED = Path(__file__).parents[2] / "model_repository" / "shapes" / "1" / "model.onnx"
FLOAT, INT64, UINT8, DOUBLE = (
    TensorProto.FLOAT,
    TensorProto.INT64,
    TensorProto.UINT8,
    TensorProto.DOUBLE,
)


def graph_of(folder: Path, *nodes, kinds=(), opset: int = 23, output: int = FLOAT) -> Path:
    """x [B, 4, 8, 8] -> y through the nodes; `kinds` are the types of further inputs."""
    inputs = [helper.make_tensor_value_info("x", FLOAT, ["B", 4, 8, 8])]
    inputs += [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds]
    outputs = [helper.make_tensor_value_info("y", output, None)]
    graph = helper.make_graph(list(nodes), "g", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.save(model, folder / "g.onnx")
    return folder / "g.onnx"


def reasons(file: Path) -> list[tuple[str, str]]:
    return [(found.operator, found.reason) for found in unsupported_operators(file)]


def test_tensorrt_takes_everything_in_an_exported_graph(tiny_export) -> None:
    assert unsupported_operators(tiny_export.exported.folder / "model.onnx") == []


def test_tensorrt_takes_everything_in_the_shipped_graph() -> None:
    assert unsupported_operators(SHIPPED) == []
    assert len({node.op_type for node in onnx.load(SHIPPED).graph.node}) > 25
    assert first_version(SHIPPED) == "10.14"  # for Attention


def test_weights_beside_the_graph_are_not_needed(tmp_path: Path) -> None:
    file = write_graph(tmp_path / "model.onnx", beside=True)
    (tmp_path / "model.onnx.data").unlink()
    assert unsupported_operators(file) == []
    assert first_version(file) == "10.0"


def test_an_operator_that_is_not_listed_is_found_with_all_its_nodes(tmp_path: Path) -> None:
    first = helper.make_node("Det", ["x"], ["d"], "one")
    second = helper.make_node("Det", ["x"], ["y"], "two")
    (found,) = unsupported_operators(graph_of(tmp_path, first, second))
    assert found == Unsupported("Det", "no operator of TensorRT's", ("one", "two"))
    assert str(found) == "Det (2, first 'one'): no operator of TensorRT's"


def test_a_type_that_is_not_listed_is_found(tmp_path: Path) -> None:
    node = helper.make_node("Conv", ["a", "b"], ["y"], "c")
    file = graph_of(tmp_path, node, kinds=(("a", DOUBLE), ("b", DOUBLE)), output=DOUBLE)
    assert reasons(file) == [("Conv", "type DOUBLE; TensorRT takes BFLOAT16, FLOAT, FLOAT16")]


def test_an_index_may_be_of_another_type_than_the_data(tmp_path: Path) -> None:
    node = helper.make_node("Gather", ["x", "i"], ["y"], "g")
    assert reasons(graph_of(tmp_path, node, kinds=(("i", INT64),))) == []


def test_uint8_may_only_be_at_the_border(tmp_path: Path) -> None:
    good = [
        helper.make_node("Transpose", ["x"], ["t"], "t", perm=[0, 2, 3, 1]),
        helper.make_node("Cast", ["t"], ["y"], "c", to=UINT8),
    ]
    assert reasons(graph_of(tmp_path, *good, output=UINT8)) == []
    bad = [
        helper.make_node("Cast", ["x"], ["t"], "c", to=UINT8),
        helper.make_node("Transpose", ["t"], ["y"], "t", perm=[0, 2, 3, 1]),
    ]
    inside = "UINT8 inside the graph; it may only be an input or output of the whole"
    found = reasons(graph_of(tmp_path, *bad, output=UINT8))
    assert found[0] == ("Cast", inside)
    assert found[1][1].startswith("type UINT8; TensorRT takes ")
    assert found[2] == ("Transpose", inside)


@pytest.mark.parametrize(
    ("operator", "inputs", "outputs", "given", "reason"),
    [
        ("Attention", ["x", "x", "x"], ["y"], {"softcap": 1.0}, "caches, a second output"),
        ("Attention", ["f", "f", "f"], ["y"], {}, "query, key, value and mask must have 4 dim"),
        ("LayerNormalization", ["x", "x"], ["y", "mean"], {}, "only the first output"),
        ("Resize", ["x", "", "x"], ["y"], {"mode": "cubic"}, "mode cubic is not supported"),
        ("Resize", ["x", "", "x"], ["y"], {"antialias": 1}, "antialias 1 is not supported"),
    ],
)
def test_what_the_list_restricts_is_found(
    tmp_path: Path, operator: str, inputs: list, outputs: list, given: dict, reason: str
) -> None:
    extra = {"q_num_heads": 1, "kv_num_heads": 1} if inputs[0] == "f" else {}
    flat = helper.make_node("Flatten", ["x"], ["f"], "flat")
    node = helper.make_node(operator, inputs, outputs, "n", **given, **extra)
    (found,) = reasons(graph_of(tmp_path, flat, node))
    assert found[0] == operator
    assert found[1].startswith(reason)


def test_an_opset_that_tensorrt_does_not_know_is_found(tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["x"], ["y"], "r")
    assert reasons(graph_of(tmp_path, node, opset=25)) == [
        ("the graph", "opset 25; TensorRT takes 9 to 24")
    ]


def test_group_normalization_of_opset_21_needs_10_9(tmp_path: Path) -> None:
    node = helper.make_node("GroupNormalization", ["x", "s", "b"], ["y"], "n", num_groups=2)
    kinds = (("s", FLOAT), ("b", FLOAT))
    assert first_version(graph_of(tmp_path, node, kinds=kinds, opset=21)) == "10.9"
    assert first_version(graph_of(tmp_path, node, kinds=kinds, opset=18)) == "10.0"


def test_the_table_names_only_operators_of_onnx() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    assert OPERATORS.keys() <= known
    assert FIRST_VERSION.keys() <= OPERATORS.keys()
    assert len(OPERATORS) == 155
