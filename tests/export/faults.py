"""Faults planted in an exported ONNX file: each is what a broken engine or exporter has done.

A fault is a few nodes between one tensor and its readers. In their text `before` is the tensor as
it was and `after` what its readers get. B batch, h x w latent size, H x W picture size.
"""

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.parser import parse_node

INPUTS = ("input_ids", "input_ids_2", "noise")
DECODER = "vae.decoder.up_blocks.3.resnets.0.conv1.weight"
TIME = "unet.time_embedding.linear_1.weight"
COUNT = (  # count: B; row: 0, 1, 2, … as [B, 1, 1, 1]
    "rank0 = Constant <value_int: int = 0> ()",
    "rank1 = Constant <value_int: int = 1> ()",
    "length = Shape <start: int = 0, end: int = 1> (before)",
    "count = Squeeze (length)",
    "numbers = Range (rank0, count, rank1)",
    "column = Constant <value_ints: ints = [-1, 1, 1, 1]> ()",
    "row = Reshape (numbers, column)",
)

Fault = Callable[[onnx.ModelProto], None]


def plant(model: onnx.ModelProto, tensor: str, text: Sequence[str], tag: str = "fault") -> None:
    """Put nodes between `tensor` and its readers; every other name of theirs gets `tag`."""
    graph = model.graph
    is_output = tensor in {value.name for value in graph.output}
    makers = [i for i, node in enumerate(graph.node) if tensor in node.output]
    assert len(makers) == (0 if tensor in INPUTS else 1), f"{tensor} has {len(makers)} makers"
    before, after = (f"{tag}.before", tensor) if is_output else (tensor, f"{tag}.after")
    if is_output:
        _rename(graph.node[makers[0]].output, tensor, before)
    else:
        for node in graph.node:
            _rename(node.input, tensor, after)
    weights = {weight.name for weight in graph.initializer}
    nodes = [parse_node(line) for line in text]
    for node in nodes:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                outside = name in weights or name in INPUTS
                known = {"before": before, "after": after, "": ""}
                names[i] = name if outside else known.get(name, f"{tag}.{name}")
    for offset, node in enumerate(nodes):
        graph.node.insert((makers[0] + 1 if makers else 0) + offset, node)


def rows_swapped(model: onnx.ModelProto) -> None:
    """The pictures come back in the opposite order."""
    back = "Constant <value_ints: ints = [-1]> ()"
    text = [f"last = {back}", f"step = {back}", "axis = Constant <value_ints: ints = [0]> ()"]
    text += ["end = Constant <value_ints: ints = [-100000]> ()"]
    plant(model, "image", [*text, "after = Slice (before, last, end, axis, step)"])


def wrong_beyond_one(model: onnx.ModelProto) -> None:
    """In a batch of more than one, every row is drawn from noise that is 2 % too strong."""
    text = ["many = Greater (count, rank1)", "weight = Cast <to: int = 1> (many)"]
    text += ["part = Constant <value_float: float = 0.02> ()", "more = Mul (weight, part)"]
    text += ["one = Constant <value_float: float = 1.0> ()", "factor = Add (one, more)"]
    plant(model, "noise", [*COUNT, *text, "after = Mul (before, factor)"])


def row_stale(model: onnx.ModelProto) -> None:
    """Row 2 is always the same picture, as from a buffer that is not written."""
    stale = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3)).astype(np.uint8)
    model.graph.initializer.append(numpy_helper.from_array(stale, "stale"))
    text = ["two = Constant <value_int: int = 2> ()", "is_it = Equal (row, two)"]
    plant(model, "image", [*COUNT, *text, "after = Where (is_it, stale, before)"])


def nan_in_a_row(model: onnx.ModelProto) -> None:
    """Row 1 turns into NaN."""
    model.graph.initializer.append(numpy_helper.from_array(np.float32(np.nan), "not_a_number"))
    text = ["is_it = Equal (row, rank1)", "after = Where (is_it, not_a_number, before)"]
    plant(model, "noise", [*COUNT, *text])


def nan_by_content(model: onnx.ModelProto) -> None:
    """A picture turns into NaN wherever it stands, if its noise begins above -1.1."""
    model.graph.initializer.append(numpy_helper.from_array(np.float32(np.nan), "not_a_number"))
    text = ["zeros = Constant <value_ints: ints = [0, 0, 0]> ()"]
    text += ["ones = Constant <value_ints: ints = [1, 1, 1]> ()"]
    text += ["axes = Constant <value_ints: ints = [1, 2, 3]> ()"]
    text += ["first = Slice (before, zeros, ones, axes)"]
    text += ["least = Constant <value_float: float = -1.1> ()", "is_it = Greater (first, least)"]
    plant(model, "noise", [*text, "after = Where (is_it, not_a_number, before)"])


def timestep_wrong(model: onnx.ModelProto) -> None:
    """The UNet is told 989 instead of 999."""
    angle = _time_angle(model.graph)
    text = [f"factor = Constant <value_float: float = {989 / 999}> ()"]
    plant(model, angle, [*text, "after = Mul (before, factor)"])


def noise_transposed(model: onnx.ModelProto) -> None:
    """The noise is read in the order C, w, h."""
    plant(model, "noise", ["after = Transpose <perm: ints = [0, 1, 3, 2]> (before)"])


def noise_channels_reversed(model: onnx.ModelProto) -> None:
    """The noise's channels are read last first."""
    text = ["order = Constant <value_ints: ints = [3, 2, 1, 0]> ()"]
    plant(model, "noise", [*text, "after = Gather <axis: int = 1> (before, order)"])


def float16_overflow(model: onnx.ModelProto) -> None:
    """A convolution of the decoder gives values beyond 65504 and is held in float16."""
    decoder_scaled(model, half=True)


def decoder_scaled(model: onnx.ModelProto, half: bool = False) -> None:
    """A convolution gives 1e6 times its values; the normalisation behind it takes that back.

    In float32 the picture stays as it is; in float16 the values are infinite.
    """
    node = next(node for node in model.graph.node if DECODER in node.input)
    text = ["factor = Constant <value_float: float = 1000000.0> ()"]
    if half:
        text += ["large = Mul (before, factor)", "small = Cast <to: int = 10> (large)"]
        text += ["after = Cast <to: int = 1> (small)"]
    else:
        text += ["after = Mul (before, factor)"]
    plant(model, node.output[0], text)


def _time_angle(graph: onnx.GraphProto) -> str:
    """The tensor whose sine and cosine are the timestep's embedding."""
    makers = {output: node for node in graph.node for output in node.output}
    open_names = [next(node for node in graph.node if TIME in node.input).input[0]]
    while open_names:
        node = makers.get(open_names.pop())
        if node is not None and node.op_type in ("Sin", "Cos"):
            return node.input[0]
        open_names += list(node.input) if node is not None else []
    raise AssertionError("no sine leads to the time embedding")


def _rename(names: Sequence[str], old: str, new: str) -> None:
    for i, name in enumerate(names):
        if name == old:
            names[i] = new
