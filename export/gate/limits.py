"""The gate's default limits: what rounding alone explains, by the arithmetic of the graph.

In float32, torch and ONNX Runtime agree to a level. In float16 or bfloat16 two right
implementations differ, the more the nearer to the noise the denoiser stands. The allowances are
twice what was measured against float32 (docs/gate.md, `benchmarks/gate.py rounding`). In int8
single edges move, so that only the mean can be held.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from export.gate.parity import Limits

ORDER = ("float32", "float16", "bfloat16", "int8")  # rising coarseness
TYPES = {
    onnx.TensorProto.INT8: "int8",
    onnx.TensorProto.UINT8: "int8",
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
}
FLOAT32 = Limits()
DENOISERS = ("unet.", "transformer.")
DENOISER = {  # the denoiser and the text encoders
    "float32": FLOAT32,
    "float16": Limits(40, 0.65, 0.12),
    "bfloat16": Limits(110, 2.8, 0.5),
    "int8": Limits(255, 9.0, 1.0),
}
DECODER = {
    "float32": FLOAT32,
    "float16": Limits(4, 0.10, 0.05),
    "bfloat16": Limits(8, 0.8, 0.6),
    "int8": Limits(255, 9.0, 1.0),
}


@dataclass(frozen=True)
class Arithmetic:
    """The coarsest type of the weights of the denoiser (with its encoders) and of the decoder."""

    denoiser: str
    decoder: str


def limits_for(arithmetic: Arithmetic, here: bool = True) -> Limits:
    """The allowances of both parts together.

    `here` is ONNX Runtime's CPU provider, where a picture does not depend on its batch at all.
    Elsewhere kernels are chosen per batch size and float32 is multiplied with the 10 bits of TF32,
    so float32 is allowed what float16 is, and a picture may differ from itself drawn alone by as
    much as from the reference.
    """
    if here and arithmetic == Arithmetic("float32", "float32"):
        return FLOAT32
    kinds = arithmetic.denoiser, arithmetic.decoder
    denoiser, decoder = ("float16" if kind == "float32" and not here else kind for kind in kinds)
    parts = DENOISER[denoiser], DECODER[decoder]
    limits = Limits(
        max_levels=sum(part.max_levels for part in parts),
        mean_levels=sum(part.mean_levels for part in parts),
        differing=min(1.0, sum(part.differing for part in parts)),
    )
    return limits if here else replace(limits, invariance_levels=limits.max_levels)


def arithmetic_of(file: Path) -> Arithmetic:
    """Read from the weights of an ONNX file, which keep the names of their parts."""
    denoiser, decoder = {"float32"}, {"float32"}
    for weight in onnx.load(str(file), load_external_data=False).graph.initializer:
        kind = TYPES.get(weight.data_type)
        if kind is None or not weight.dims:
            continue
        if weight.name.startswith("vae."):
            decoder.add(kind)
        elif kind == "int8" or weight.name.startswith((*DENOISERS, "text_encoder")):
            denoiser.add(kind)
    return Arithmetic(max(denoiser, key=ORDER.index), max(decoder, key=ORDER.index))
