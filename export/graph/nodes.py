"""Single nodes of the exporter's graph, put so that every checker and runtime takes them."""

from typing import Any

import numpy as np
import onnx_ir as ir

SIXTEEN_BITS = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def mend_nodes(model: Any) -> None:
    """All of what follows, in place."""
    for node in [*model.graph.all_nodes()]:
        if node.op_type == "Attention":
            widen_softmax(node)
        elif node.op_type == "RMSNormalization":
            widen_scale(node)
        elif node.op_type == "Einsum":
            transpose(node)
        elif node.op_type in ("Reshape", "Slice"):
            keep_used(node)


def widen_softmax(node: Any) -> None:
    """Attention on 16-bit numbers takes its softmax in float32, as torch's own kernels do."""
    if node.inputs[0].dtype in SIXTEEN_BITS:
        node.attributes["softmax_precision"] = ir.AttrInt64("softmax_precision", ir.DataType.FLOAT)


def widen_scale(node: Any) -> None:
    """Where float32 is normalised with a 16-bit scale (T5), the scale is turned, and the result.

    ONNX allows the two types together, but its checker takes the result to be of the input's.
    """
    given, scale, result = node.inputs[0], node.inputs[1], node.outputs[0]
    if given.dtype == scale.dtype:
        return
    scopes = dict(node.metadata_props)
    widened = ir.node(
        "Cast", [scale], {"to": given.dtype}, name=f"{node.name}_scale", metadata_props=scopes
    )
    node.graph.insert_before(node, widened)
    node.replace_input_with(1, widened.outputs[0])
    back = ir.node(
        "Cast", [result], {"to": result.dtype}, name=f"{node.name}_back", metadata_props=scopes
    )
    back.outputs[0].type, back.outputs[0].shape = result.type, result.shape
    node.graph.insert_after(node, back)
    result.replace_all_uses_with(back.outputs[0])
    back.replace_input_with(0, result)
    result.type = given.type


def transpose(node: Any) -> None:
    """An Einsum that only moves dimensions, as a Transpose: Einsum knows no bfloat16."""
    before, _, after = node.attributes["equation"].as_string().replace(" ", "").partition("->")
    if len(node.inputs) != 1 or sorted(before) != sorted(after) or len({*before}) < len(before):
        return
    node.op_type = "Transpose"
    node.attributes.clear()
    node.attributes["perm"] = ir.AttrInt64s("perm", [before.index(letter) for letter in after])


def keep_used(node: Any) -> None:
    """What a Reshape or a Slice makes of a weight that nothing else uses takes the weight's place.

    SD 3 has positions for its largest picture, of which one size uses the middle.
    """
    weight, result = node.inputs[0], node.outputs[0]
    known = all(value is not None and value.const_value is not None for value in node.inputs)
    if not known or len(weight.uses()) > 1 or weight.name not in node.graph.initializers:
        return
    data, *rest = (value.const_value.numpy() for value in node.inputs)
    if node.op_type == "Reshape":
        if 0 in rest[0]:  # which copies a length
            return
        used = data.reshape(rest[0])
    else:
        if len(rest) != 4:  # axes or steps are not said; torch's exporter says both
            return
        starts, ends, axes, steps = rest
        part = [slice(None)] * data.ndim
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            part[axis] = slice(start, end, step)
        used = np.ascontiguousarray(data[tuple(part)])
    kept = ir.Value(
        name=weight.name, type=result.type, shape=ir.Shape(used.shape), const_value=ir.tensor(used)
    )
    result.replace_all_uses_with(kept)
    given, graph = [*node.inputs], node.graph
    graph.remove(node, safe=True)
    for value in given:
        if not value.uses():
            graph.initializers.pop(value.name, None)
    graph.register_initializer(kept)
