"""FP8 for Hopper and later, through NVIDIA ModelOpt: experimental, not run in this project.

Written against the documented interface of `modelopt.onnx.quantization.quantize`, 0.47: it reads an
ONNX file, calibrates on a GPU, and writes one in which the denoiser's convolutions and matrices
have quantize and dequantize pairs of float8. ModelOpt pins an older onnx than the exporter uses:
install it in an environment of its own, `pip install "nvidia-modelopt[onnx]"`.
"""

import importlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from export.errors import PrecisionError
from export.gate.cases import Feeds

MODULE = "modelopt.onnx.quantization"
OPERATORS = ("Conv", "Gemm", "MatMul")
PARTS = ("unet", "transformer")  # a graph has one of them

Quantize = Callable[..., None]


def quantize_fp8(file: Path, out: Path, feeds: Feeds, quantize: Quantize | None = None) -> None:
    """Write `file` with its denoiser in float8 to `out`, calibrated on the rows of `feeds`.

    The other parts, the inputs and the output keep their types. `quantize` stands in for ModelOpt's
    function. Raises PrecisionError where ModelOpt is missing or the file names no denoiser.
    """
    quantize = quantize or _modelopt()
    nodes = denoiser_nodes(onnx.load(str(file), load_external_data=False).graph.node)
    if not nodes:
        raise PrecisionError(
            f"{file} has no node of the {' or '.join(PARTS)}: it was not written by this program"
        )
    external = file.with_name(f"{file.name}.data").is_file()
    quantize(
        onnx_path=str(file),
        output_path=str(out),
        quantize_mode="fp8",
        calibration_method="max",
        calibration_data={name: np.ascontiguousarray(rows) for name, rows in feeds.items()},
        calibration_eps=["cuda:0", "cpu"],
        op_types_to_quantize=list(OPERATORS),
        nodes_to_quantize=[re.escape(name) for name in nodes],
        high_precision_dtype="fp32",  # leaves every type as it is; "fp16" would turn the rest too
        mha_accumulation_dtype="fp32",
        use_external_data_format=external,
    )
    if not out.is_file():
        raise PrecisionError(f"ModelOpt wrote no {out}; its log above says why")


def denoiser_nodes(nodes: Iterable[Any]) -> list[str]:
    """The names of its convolutions and matrix products: nodes carry their part's name."""
    prefixes = tuple(f"{part}/" for part in PARTS)
    return [n.name for n in nodes if n.op_type in OPERATORS and n.name.startswith(prefixes)]


def _modelopt() -> Quantize:
    try:
        module = importlib.import_module(MODULE)
    except ImportError as error:
        raise PrecisionError(
            f"quantize is fp8, which needs NVIDIA ModelOpt ({error}); install it in an environment "
            f'of its own: pip install "nvidia-modelopt[onnx]"'
        ) from error
    quantize: Quantize = module.quantize
    return quantize
