"""torch -> ONNX: one file with standard operators only, a dynamic batch and no trace of its maker.

Whatever the exporter notes about the source (stack traces, module paths, the names of its own
rewriting rules) is removed, so that the same student gives the same bytes on every machine.
"""

import ast
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import torch
from torch import nn

from export.errors import ExportError
from export.graph.nodes import mend_nodes
from export.quiet import quiet
from export.signature import Signature, Tensor

OPSETS = (18, 21, 23)
OPSET = 23
EXAMPLE_BATCH = 2  # 0 and 1 are special to torch.export; any other stands for all
LARGEST_BATCH = 63
TRACED = (2, 3)  # the sides in steps where they are open: unequal, so that each stands for itself
BATCH, SIDES = "batch", ("height", "width")
INLINE_BYTES = 1_500_000_000  # a protobuf ends at 2 GB; beyond this the weights lie beside it
SCOPES = "pkg.torch.onnx.name_scopes"  # where the exporter notes the modules around a node
EXPORTER_LOGS = ("torch.onnx._internal.exporter._registration",)


def write_onnx(graph: nn.Module, signature: Signature, file: Path, opset: int = OPSET) -> None:
    """Write `graph` to `file` (weights beyond 1.5 GB beside it, as `<file>.data`) and check it.

    Heights and widths that the signature leaves open are open in the file.
    """
    if opset not in OPSETS:
        raise ExportError(f"opset is {opset}; allowed are {', '.join(map(str, OPSETS))}")
    step = latent_step(signature)
    with torch.no_grad(), _exporter_noise_off():
        program = torch.onnx.export(
            graph,
            tuple(_example(tensor, step) for tensor in signature.inputs),
            dynamo=True,
            opset_version=opset,
            input_names=[tensor.name for tensor in signature.inputs],
            output_names=[signature.output.name],
            dynamic_shapes=tuple(_open(tensor, step) for tensor in signature.inputs),
            optimize=True,
            verbose=False,
        )
    assert program is not None
    _name_output(program.model, signature, step)
    mend_nodes(program.model)
    _name_parts(program.model)
    _strip(program.model)
    _lay_out(program.model)
    weights_bytes = sum(p.numel() * p.element_size() for p in graph.parameters())
    program.save(file, external_data=weights_bytes > INLINE_BYTES)
    check_onnx(file, signature)


def latent_step(signature: Signature) -> int:
    """The largest number that divides every height and width of the noise: what is traced with."""
    sides = [side for size in signature.sizes for side in signature.noise_shape(size)[1:]]
    return math.gcd(*sides)


def check_onnx(file: Path, signature: Signature) -> None:
    """The checker passes, operators are ONNX's own, and inputs and output are as stated."""
    onnx.checker.check_model(str(file), full_check=True)
    model = onnx.load(str(file), load_external_data=False)
    domains = {node.domain for node in model.graph.node} | {f.domain for f in model.functions}
    assert domains <= {""}, f"operators of foreign domains: {domains}"
    found = [_described(value) for value in (*model.graph.input, *model.graph.output)]
    stated = [*signature.inputs, signature.output]
    assert found == stated, f"the graph has {found}, stated are {stated}"


def _example(tensor: Tensor, step: int) -> torch.Tensor:
    """Any values of the right type and shape, [EXAMPLE_BATCH, ...]: only shapes are traced."""
    sides = iter(step * multiple for multiple in TRACED)
    shape = [next(sides) if length is None else length for length in tensor.shape]
    dtype = {"int64": torch.int64, "float32": torch.float32}[tensor.dtype]
    return torch.zeros([EXAMPLE_BATCH, *shape], dtype=dtype)


def _open(tensor: Tensor, step: int) -> dict[int, Any]:
    """The open dimensions by position: the batch, and where they are, height and width."""
    dims: dict[int, Any] = {0: BATCH}
    names = iter(SIDES)
    for position, length in enumerate(tensor.shape, 1):
        if length is None:
            dims[position] = step * torch.export.Dim(next(names), min=1)
    return dims


def _name_output(model: Any, signature: Signature, step: int) -> None:
    """Open dimensions of the output by the names they have in the inputs."""
    sides = (f"{step * signature.pixels_per_latent}*{side}" for side in SIDES)
    rest = [next(sides) if length is None else length for length in signature.output.shape]
    model.graph.outputs[0].shape = onnx_ir.Shape([BATCH, *rest])


def _described(value: Any) -> Tensor:
    """An ONNX value as our `Tensor`; its first dimension must be a named one."""
    kind = value.type.tensor_type
    batch, *rest = kind.shape.dim
    assert batch.dim_param, f"the batch of {value.name} is fixed at {batch.dim_value}"
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    lengths = (None if dim.dim_param else dim.dim_value for dim in rest)
    return Tensor(value.name, dtype, tuple(lengths))


def _name_parts(model: Any) -> None:
    """Each node's name begins with the part of the pipeline that it came from, as in `unet/`."""
    for node in model.graph.all_nodes():
        scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
        if len(scopes) > 2:  # the whole, the part, …, the node itself
            node.name = f"{scopes[1]}/{node.name}"


def _strip(model: Any) -> None:
    """Remove everything that describes the source instead of the computation."""
    model.producer_version = None
    model.doc_string = None
    model.metadata_props.clear()
    model.graph.doc_string = None
    model.graph.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.doc_string = None
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
            value.doc_string = None


def _lay_out(model: Any) -> None:
    """Transposed weights are put in order one by one as they are written.

    Numpy writes a view that is not in order number by number: a third of a full-size SD 3's time.
    """
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor.raw, np.ndarray) and not tensor.raw.flags.c_contiguous:
            value.const_value = onnx_ir.LazyTensor(
                partial(_in_order, tensor), tensor.dtype, tensor.shape, name=tensor.name
            )


def _in_order(tensor: Any) -> Any:
    """The same numbers one after the other in memory."""
    return onnx_ir.Tensor(np.ascontiguousarray(tensor.raw), tensor.dtype, name=tensor.name)


@contextmanager
def _exporter_noise_off() -> Iterator[None]:
    """Quieten what torch's exporter says of its own inner life: nothing a user could act on."""
    with quiet(*EXPORTER_LOGS, level=logging.ERROR), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated")
        warnings.filterwarnings("ignore", r"# The axis name: \w+ will not be used")
        yield
