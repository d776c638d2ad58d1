"""What to make of a one-step model: everything the user may choose beside where it lies."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from export.errors import ExportError
from export.gate.parity import Limits
from export.graph.precision import Precision
from export.graph.to_onnx import LARGEST_BATCH, OPSET, OPSETS
from export.signature import Size

SINGLE = Precision()


@dataclass(frozen=True)
class Options:
    """What the graph is made of, how it is checked, and what becomes of older versions.

    `sizes` empty: the model's own. `vae`: a decoder in place of its own. `keep`: versions that
    remain after publishing (None: all). `gate` False: nothing is measured, which the manifest says.
    """

    max_batch: int = 8
    sizes: tuple[Size, ...] = ()
    opset: int = OPSET
    precision: Precision = SINGLE
    vae: Path | None = None
    quantize: bool = False
    runtime: str = "onnxruntime"
    keep: int | None = None
    gate: bool = True
    limits: Limits | None = None

    def check(self) -> None:
        """`ExportError` names the option that is impossible, before any heavy work."""
        if not 1 <= self.max_batch <= LARGEST_BATCH:
            raise ExportError(
                f"max_batch is {self.max_batch}; it must lie between 1 and {LARGEST_BATCH}"
            )
        if self.keep is not None and self.keep < 1:
            raise ExportError(
                f"keep is {self.keep}; it must be at least 1, the version just published"
            )
        if self.runtime not in ("onnxruntime", "python"):
            raise ExportError(
                f"runtime is {self.runtime!r}; a new version is served by onnxruntime or python, "
                f"and by tensorrt once `distill engine` has added an engine"
            )
        if self.opset not in OPSETS:
            allowed = ", ".join(map(str, OPSETS))
            raise ExportError(f"opset is {self.opset}; allowed are {allowed}")
        if self.quantize and not self.gate:
            raise ExportError("quantize is int8, which is kept only where it is measured to pay")

    def to_json(self) -> dict[str, Any]:
        """What of it changes the graph, as plain values: two equal ones give the same graph."""
        return {
            "max_batch": self.max_batch,
            "sizes": [f"{width}x{height}" for width, height in self.sizes],
            "opset": self.opset,
            "precision": self.precision.to_json(),
            "quantize": self.quantize,
            "gate": self.gate,
            "limits": None if self.limits is None else asdict(self.limits),
        }
