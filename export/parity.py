"""What the parity gate measured, the limits it holds, and how both are told."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Limits:
    """The largest differences allowed, in uint8 levels."""

    max_levels: int = 1
    mean_levels: float = 0.01
    invariance_levels: int = 0


@dataclass(frozen=True)
class BatchParity:
    """One batch size: differences from both references and from the same picture drawn alone."""

    batch: int
    pictures: int
    max_levels: int
    mean_levels: float
    differing: float
    stock_max_levels: int
    stock_mean_levels: float
    invariance_levels: int


@dataclass(frozen=True)
class Parity:
    """One row per batch size, in rising order."""

    batches: tuple[BatchParity, ...]
    limits: Limits

    def faults(self) -> list[str]:
        """What lies beyond the limits, one clause each; empty when the graph is good."""
        return [clause for batch in self.batches for clause in self._faults_of(batch)]

    def _faults_of(self, batch: BatchParity) -> list[str]:
        limits = self.limits
        measured = (
            ("max difference from torch", batch.max_levels, limits.max_levels),
            ("mean difference from torch", batch.mean_levels, limits.mean_levels),
            ("max difference from stock diffusers", batch.stock_max_levels, limits.max_levels),
            ("mean difference from stock diffusers", batch.stock_mean_levels, limits.mean_levels),
            (
                "difference from the picture alone",
                batch.invariance_levels,
                limits.invariance_levels,
            ),
        )
        return [
            f"at batch {batch.batch} the {what} is {value:.4g} levels (allowed {allowed:g})"
            for what, value, allowed in measured
            if value > allowed
        ]

    @property
    def batch_invariance(self) -> str:
        """`bitwise`, or the number of levels within which a picture depends on its batch."""
        levels = max(batch.invariance_levels for batch in self.batches)
        return "bitwise" if levels == 0 else f"within {levels} levels"

    def to_json(self) -> dict[str, object]:
        """Plain values for the manifest."""
        return {
            "batch_invariance": self.batch_invariance,
            "limits": asdict(self.limits),
            "batches": [asdict(batch) for batch in self.batches],
        }

    def table(self) -> str:
        """The figures for a reader, one line per batch size."""
        lines = ["batch  pictures  max  mean      differing  stock max  stock mean  invariance"]
        lines += [
            f"{b.batch:5d}  {b.pictures:8d}  {b.max_levels:3d}  {b.mean_levels:.6f}  "
            f"{b.differing:9.4%}  {b.stock_max_levels:9d}  {b.stock_mean_levels:10.6f}  "
            f"{b.invariance_levels:10d}"
            for b in self.batches
        ]
        return "\n".join([*lines, f"batch invariance: {self.batch_invariance}"])
