"""torch -> ONNX: one file with standard operators only, a dynamic batch and no trace of its maker.

Whatever the exporter notes about the source (stack traces, module paths, the names of its own
rewriting rules) is removed, so that the same student gives the same bytes on every machine.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from export.signature import Signature, Tensor

OPSET = 23
EXAMPLE_BATCH = 2  # 0 and 1 are special to torch.export; any other stands for all
LARGEST_BATCH = 63  # from 64 on, diffusers' upsampling takes another branch
INLINE_BYTES = 1_500_000_000  # a protobuf ends at 2 GB; beyond this the weights lie beside it
EXPORTER_LOGS = ("torch.onnx._internal.exporter._registration",)


def write_onnx(graph: nn.Module, signature: Signature, file: Path, opset: int = OPSET) -> None:
    """Write `graph` to `file` (weights beyond 1.5 GB beside it, as `<file>.data`) and check it."""
    example = signature.at(signature.sizes[0]) if signature.sizes else signature
    inputs = tuple(_example(tensor) for tensor in example.inputs)
    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    with torch.no_grad(), _exporter_noise_off():
        program = torch.onnx.export(
            graph,
            inputs,
            dynamo=True,
            opset_version=opset,
            input_names=[tensor.name for tensor in signature.inputs],
            output_names=[signature.output.name],
            dynamic_shapes=tuple({0: batch} for _ in inputs),
            optimize=True,
            verbose=False,
        )
    assert program is not None
    _strip(program.model)
    weights_bytes = sum(p.numel() * p.element_size() for p in graph.parameters())
    program.save(file, external_data=weights_bytes > INLINE_BYTES)
    check_onnx(file, signature)


def check_onnx(file: Path, signature: Signature) -> None:
    """The checker passes, operators are ONNX's own, and inputs and output are as stated."""
    onnx.checker.check_model(str(file), full_check=True)
    model = onnx.load(str(file), load_external_data=False)
    domains = {node.domain for node in model.graph.node} | {f.domain for f in model.functions}
    assert domains <= {""}, f"operators of foreign domains: {domains}"
    found = [_described(value) for value in (*model.graph.input, *model.graph.output)]
    stated = [*signature.inputs, signature.output]
    assert found == stated, f"the graph has {found}, stated are {stated}"


def _example(tensor: Tensor) -> torch.Tensor:
    """Any values of the right type and shape, [EXAMPLE_BATCH, ...]: only shapes are traced."""
    dtype = {"int64": torch.int64, "float32": torch.float32}[tensor.dtype]
    assert None not in tensor.shape, tensor
    return torch.zeros([EXAMPLE_BATCH, *filter(None, tensor.shape)], dtype=dtype)


def _described(value: Any) -> Tensor:
    """An ONNX value as our `Tensor`; its first dimension must be a named one."""
    kind = value.type.tensor_type
    batch, *rest = kind.shape.dim
    assert batch.dim_param, f"the batch of {value.name} is fixed at {batch.dim_value}"
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    return Tensor(value.name, dtype, tuple(dim.dim_value for dim in rest))


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


@contextmanager
def _exporter_noise_off() -> Iterator[None]:
    """Quieten what torch's exporter says of its own inner life: nothing a user could act on."""
    loggers = [logging.getLogger(name) for name in EXPORTER_LOGS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated")
            warnings.filterwarnings("ignore", r"# The axis name: batch will not be used")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
