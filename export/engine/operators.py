"""What TensorRT imports from ONNX: operators, the types of their data, and since which version.

The table restates, in our own grouping, the support matrix of the ONNX parser's repository
(onnx/onnx-tensorrt, docs/operators.md, Apache-2.0) as of TensorRT 10.15, 2 February 2026; the first
versions are from its docs/Changelog.md. Types: those of an operator's first input and of every
input that must be of the same type; of a Cast the output too.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import shape_inference
from onnx.defs import OpSchema, get_schema

SOURCE = "onnx/onnx-tensorrt docs/operators.md, TensorRT 10.15, 2026-02-02"
OPSETS = range(9, 25)

FLOATS = frozenset({"FLOAT", "FLOAT16", "BFLOAT16"})
NUMBERS = FLOATS | {"INT32", "INT64"}
ALL = NUMBERS | {"BOOL"}

# types -> operators that take them
GROUPS: tuple[tuple[frozenset[str], str], ...] = (
    (
        FLOATS,
        "Acos Acosh Asin Asinh Atan Atanh AveragePool BatchNormalization Ceil Celu Clip Conv "
        "ConvTranspose Cos Cosh CumSum Dropout Einsum Elu Erf Exp Floor GRU Gemm GlobalAveragePool "
        "GlobalLpPool GlobalMaxPool GroupNormalization HardSigmoid HardSwish Hardmax "
        "InstanceNormalization IsInf LRN LSTM LayerNormalization LeakyRelu Log LogSoftmax "
        "LpNormalization LpPool MatMul MaxPool MeanVarianceNormalization PRelu QuantizeLinear "
        "RMSNormalization RNN RandomNormal RandomNormalLike RandomUniform RandomUniformLike "
        "Reciprocal Resize RotaryEmbedding Round Scan Selu Sigmoid Sin Sinh Softmax Softplus "
        "Softsign Sqrt Tan Tanh ThresholdedRelu Upsample",
    ),
    (
        FLOATS - {"BFLOAT16"},
        "BlackmanWindow DeformConv GridSample HammingWindow HannWindow Mish NonMaxSuppression "
        "NonZero RoiAlign",
    ),
    (
        NUMBERS,
        "Abs Add ArgMax ArgMin DepthToSpace Div Equal Greater GreaterOrEqual IsNaN Less "
        "LessOrEqual Max Mean Min Mod Mul Neg Pad Pow Range ReduceL1 ReduceL2 ReduceLogSum "
        "ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu "
        "Scatter ScatterElements ScatterND Shrink Sign SpaceToDepth Sub Sum TopK",
    ),
    (
        ALL,
        "Concat Constant ConstantOfShape Expand EyeLike Flatten Gather GatherElements GatherND "
        "Identity If Loop OneHot Reshape ReverseSequence Shape Size Slice Split Squeeze Tile "
        "Transpose Trilu Unsqueeze Where",
    ),
    (frozenset({"BOOL"}), "And Not Or Xor"),
    (ALL | {"UINT8"}, "Cast CastLike"),
    (NUMBERS | {"INT8"}, "Gelu"),
    (FLOATS | {"INT8", "FLOAT8E4M3FN"}, "Attention"),
    (FLOATS | {"INT32"}, "TensorScatter"),
    (frozenset({"INT8", "INT4", "FLOAT8E4M3FN", "FLOAT4E2M1"}), "DequantizeLinear"),
    (frozenset({"FLOAT"}), "STFT"),
)
OPERATORS: Mapping[str, frozenset[str]] = {
    name: types for types, names in GROUPS for name in names.split()
}
FIRST_VERSION = {  # of those that TensorRT 10.0 did not have
    "DeformConv": "10.1",
    "BlackmanWindow": "10.4",
    "HammingWindow": "10.4",
    "HannWindow": "10.4",
    "STFT": "10.5",
    "Attention": "10.14",
    "RMSNormalization": "10.15",
    "RotaryEmbedding": "10.15",
    "TensorScatter": "10.15",
}
NEW_GROUP_NORMALIZATION = (21, "10.9")  # the opset that redefined it, and who reads that
RESIZE: Mapping[str, set[str | int]] = {
    "mode": {"nearest", "linear"},
    "coordinate_transformation_mode": {
        "half_pixel",
        "pytorch_half_pixel",
        "tf_half_pixel_for_nn",
        "asymmetric",
        "align_corners",
    },
    "nearest_mode": {"floor", "ceil", "round_prefer_floor", "round_prefer_ceil"},
    "keep_aspect_ratio_policy": {"stretch"},
    "antialias": {0},
}


@dataclass(frozen=True)
class Unsupported:
    """Nodes of one operator that TensorRT does not list as supported, and why."""

    operator: str
    reason: str
    nodes: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.operator} ({len(self.nodes)}, first {self.nodes[0]!r}): {self.reason}"


def unsupported_operators(file: Path) -> list[Unsupported]:
    """Everything in the graph that is not in the table, in the order of first occurrence."""
    model = shape_inference.infer_shapes(onnx.load(str(file), load_external_data=False))
    opset = _opset(model)
    found: dict[tuple[str, str], list[str]] = {}
    if opset not in OPSETS:
        reason = f"opset {opset}; TensorRT takes {OPSETS[0]} to {OPSETS[-1]}"
        found["the graph", reason] = [model.graph.name]
    graph = _Graph(model.graph)
    for node in model.graph.node:
        for reason in graph.reasons(node, opset):
            found.setdefault((node.op_type, reason), []).append(node.name)
    return [Unsupported(name, reason, tuple(nodes)) for (name, reason), nodes in found.items()]


def first_version(file: Path) -> str:
    """The first TensorRT 10 that imports every operator of the graph: `10.14`, say."""
    model = onnx.load(str(file), load_external_data=False)
    operators = {node.op_type for node in model.graph.node}
    found = {FIRST_VERSION.get(name, "10.0") for name in operators}
    opset, version = NEW_GROUP_NORMALIZATION
    if "GroupNormalization" in operators and _opset(model) >= opset:
        found.add(version)
    return max(found, key=lambda version: [int(part) for part in version.split(".")])


def _opset(model: Any) -> int:
    return next(int(one.version) for one in model.opset_import if one.domain == "")


class _Graph:
    """Types and ranks of every tensor of a graph, by name."""

    def __init__(self, graph: Any) -> None:
        self.types: dict[str, str] = {}
        self.ranks: dict[str, int] = {}
        for value in (*graph.value_info, *graph.input, *graph.output):
            self._add(value.name, value.type.tensor_type.elem_type)
            self.ranks[value.name] = len(value.type.tensor_type.shape.dim)
        for tensor in graph.initializer:
            self._add(tensor.name, tensor.data_type)
            self.ranks[tensor.name] = len(tensor.dims)
        self.border = {value.name for value in (*graph.input, *graph.output)}

    def _add(self, name: str, kind: int) -> None:
        self.types[name] = onnx.TensorProto.DataType.Name(kind)

    def reasons(self, node: Any, opset: int) -> Iterator[str]:
        """Why TensorRT would not take this node."""
        if node.domain or node.op_type not in OPERATORS:
            yield "no operator of TensorRT's"
            return
        allowed = OPERATORS[node.op_type]
        for kind in sorted(self._data_types(node, opset) - allowed):
            yield f"type {kind}; TensorRT takes {', '.join(sorted(allowed))}"
        for name in (*node.input, *node.output):
            if self.types.get(name) == "UINT8" and name not in self.border:
                yield "UINT8 inside the graph; it may only be an input or output of the whole"
        yield from self._restrictions(node)

    def _data_types(self, node: Any, opset: int) -> set[str]:
        """The types of the first input and of all that share its type; a Cast's output too."""
        schema = get_schema(node.op_type, opset, "")
        names = list(node.output) if node.op_type in ("Cast", "Constant") else []
        formal = _formal(schema, node.input)
        names += [name for name, kind in formal if kind == schema.inputs[0].type_str and name]
        return {self.types[name] for name in names if name in self.types}

    def _restrictions(self, node: Any) -> Iterator[str]:
        """What the matrix says beyond types, of the operators that our graphs use."""
        given = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        if node.op_type == "Attention":
            if any(self.ranks.get(name, 4) != 4 for name in node.input if name):
                yield "query, key, value and mask must have 4 dimensions"
            if any(node.input[4:]) or any(node.output[1:]) or given.get("softcap"):
                yield "caches, a second output and softcap are not supported"
        if node.op_type == "LayerNormalization" and any(node.output[1:]):
            yield "only the first output is supported"
        if node.op_type == "Resize":
            for name, allowed in RESIZE.items():
                value = given.get(name)
                value = value.decode() if isinstance(value, bytes) else value
                if value is not None and value not in allowed:
                    yield f"{name} {value} is not supported"


def _formal(schema: OpSchema, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each given input with its formal type; the last formal input of some may repeat."""
    last = len(schema.inputs) - 1
    for index, name in enumerate(names):
        yield name, schema.inputs[min(index, last)].type_str
