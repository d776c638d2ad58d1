"""int8 for the CPU: ONNX Runtime's quantization, kept only where it is measured to pay.

Ranges are calibrated once and stored (quantize, dequantize pairs). Dynamic quantization is not on
offer: it takes its range from the whole batch, so a picture would depend on its neighbours.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from export.errors import ExportError
from export.gate.cases import Feeds, Infer
from export.gate.session import open_session

CANDIDATES = (("MatMul", "Gemm"), ("MatMul", "Gemm", "Conv"))
PREPARED = ("onnx.quant.pre_process", "onnxruntime.quant")  # there is nothing left to prepare
ROUNDS = 15


@dataclass(frozen=True)
class Int8Limits:
    """What int8 must give and may cost: a gain in time, and levels of difference from float."""

    speedup: float = 1.1
    mean_levels: float = 1.0
    invariance_levels: int = 0


@dataclass(frozen=True)
class Trial:
    """One way to quantize: milliseconds a picture beside the float graph's, and the differences."""

    operators: tuple[str, ...]
    float_ms: float
    ms: float
    mean_levels: float
    max_levels: int
    invariance_levels: int

    def within(self, limits: Int8Limits) -> bool:
        """Whether it is worth keeping."""
        return (
            self.float_ms >= limits.speedup * self.ms
            and self.mean_levels <= limits.mean_levels
            and self.invariance_levels <= limits.invariance_levels
        )


@dataclass(frozen=True)
class Quantized:
    """What was tried, and which trial's graph took the float graph's place, if any."""

    trials: tuple[Trial, ...]
    kept: Trial | None
    limits: Int8Limits

    def sentence(self) -> str:
        """For the user: what was done, and the figures that decided it."""
        tried = "; ".join(
            f"{'+'.join(t.operators)} {t.ms:.1f} ms against {t.float_ms:.1f} ms, "
            f"mean difference {t.mean_levels:.2f} levels (max {t.max_levels})"
            for t in self.trials
        )
        verdict = (
            f"int8 is kept for {'+'.join(self.kept.operators)}" if self.kept else "float32 is kept"
        )
        return (
            f"{verdict}: {tried}; allowed are a gain of {self.limits.speedup:g} times at least and "
            f"{self.limits.mean_levels:g} levels in the mean at most"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        return asdict(self)


def quantize_int8(
    file: Path, feeds: Feeds, threads: int = 0, limits: Int8Limits | None = None
) -> Quantized:
    """Try int8 on an ONNX file and put the fastest good graph in its place, or leave it alone.

    `feeds` are N rows of inputs, two at least: the first half calibrates, the second is measured.
    """
    limits = limits or Int8Limits()
    rows = len(next(iter(feeds.values())))
    if rows < 2:
        raise ExportError(f"int8 needs 2 rows to calibrate and to measure with, not {rows}")
    if file.with_name(f"{file.name}.data").exists():
        raise ExportError(
            f"quantize is int8, but the weights of {file.name} lie beside it: too large"
        )
    half = rows // 2
    with tempfile.TemporaryDirectory(prefix=".int8-", dir=file.parent) as folder:
        trials = {}
        for operators in CANDIDATES:
            out = Path(folder) / f"{len(operators)}.onnx"
            _write(file, out, operators, {name: value[:half] for name, value in feeds.items()})
            measured = {name: value[half:] for name, value in feeds.items()}
            trials[_try(file, out, operators, measured, threads)] = out
        good = [trial for trial in trials if trial.within(limits)]
        kept = min(good, key=lambda trial: trial.ms) if good else None
        if kept is not None:
            trials[kept].replace(file)
    return Quantized(tuple(trials), kept, limits)


class _Rows(CalibrationDataReader):  # type: ignore[misc]
    """Calibration data: one picture's inputs at a time."""

    def __init__(self, feeds: Feeds) -> None:
        self._rows = _rows(feeds)

    def get_next(self) -> Feeds | None:
        return next(self._rows, None)


def _rows(feeds: Feeds) -> Iterator[Feeds]:
    for row in range(len(next(iter(feeds.values())))):
        yield {name: value[row : row + 1] for name, value in feeds.items()}


def _write(file: Path, out: Path, operators: tuple[str, ...], feeds: Feeds) -> None:
    """Quantize with fixed ranges and weights per channel; only standard operators."""
    model = onnx.load(str(file))
    onnx.helper.set_model_props(model, dict([PREPARED]))
    quantize_static(
        model,
        str(out),
        _Rows(feeds),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(operators),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={"MatMulConstBOnly": True},
    )
    quantized = onnx.load(str(out))
    del quantized.metadata_props[:]
    quantized.producer_name = quantized.producer_version = ""
    onnx.save(quantized, str(out))


def _try(file: Path, out: Path, operators: tuple[str, ...], feeds: Feeds, threads: int) -> Trial:
    """Both graphs in turn, one picture a call, so that a slow moment hits both."""
    both = open_session(file, threads), open_session(out, threads)
    one = next(_rows(feeds))
    times = [[_seconds(infer, one) for infer in both] for _ in range(ROUNDS + 1)][1:]
    float_s, int8_s = (statistics.median(column) for column in zip(*times, strict=True))
    wanted, got = (infer(feeds) for infer in both)
    alone = np.concatenate([both[1](row) for row in _rows(feeds)])
    gap = _gap(wanted, got)
    return Trial(
        operators=operators,
        float_ms=1e3 * float_s,
        ms=1e3 * int8_s,
        mean_levels=float(gap.mean()),
        max_levels=int(gap.max()),
        invariance_levels=int(_gap(alone, got).max()),
    )


def _seconds(infer: Infer, feeds: Feeds) -> float:
    start = time.perf_counter()
    infer(feeds)
    return time.perf_counter() - start


def _gap(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Absolute difference in levels."""
    gap: NDArray[np.int16] = np.abs(left.astype(np.int16) - right.astype(np.int16))
    return gap
