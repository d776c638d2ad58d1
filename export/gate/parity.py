"""What the gate measured, the limits it holds, and how both are told.

A level is one of uint8's 256 steps. References go by name: `torch` (the graph's module), `stock`
(diffusers' own call), `onnx` (ONNX Runtime, unoptimised, one picture at a time). `alone` is the
same picture drawn by the same runtime in a batch of one.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from export.errors import ParityError
from export.gate.cases import Pictures
from export.signature import Size

ALONE = "alone"
NAMES = {
    "torch": "torch",
    "stock": "stock diffusers",
    "onnx": "ONNX Runtime",
    ALONE: "the picture alone",
}


@dataclass(frozen=True)
class Limits:
    """The largest differences allowed: in levels, and as a fraction of all values.

    `mean_levels` holds for every single picture.
    """

    max_levels: int = 1
    mean_levels: float = 0.01
    differing: float = 0.001
    invariance_levels: int = 0


@dataclass(frozen=True)
class Difference:
    """Over many pictures: the largest, the mean, and the fraction of values that differ at all.

    `worst_mean_levels` is the mean over that one picture where it is largest: a fault in one row
    does not hide behind the good ones.
    """

    max_levels: int
    mean_levels: float
    worst_mean_levels: float
    differing: float


@dataclass(frozen=True)
class BatchParity:
    """One batch size at one picture size: the differences from each reference and from `alone`.

    `flat` counts the pictures of one flat colour where the reference has more: what values that are
    not finite leave of a picture in uint8.
    """

    size: Size
    batch: int
    pictures: int
    against: Mapping[str, Difference]
    alone: Difference
    flat: int

    def faults(self, limits: Limits) -> list[str]:
        """What lies beyond the limits, one clause each."""
        where = f"at batch {self.batch} of {self.size[0]}x{self.size[1]}"
        checks = [
            clause
            for name, difference in self.against.items()
            for clause in _reference_faults(NAMES[name], difference, limits)
        ]
        checks += _over(
            "difference from the picture alone", self.alone.max_levels, limits.invariance_levels
        )
        if self.flat:
            checks.append(f"{self.flat} of {self.pictures} pictures are one flat colour")
        return [f"{where} {clause}" for clause in checks]

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return {
            "size": f"{self.size[0]}x{self.size[1]}",
            "batch": self.batch,
            "pictures": self.pictures,
            "against": {name: asdict(found) for name, found in self.against.items()},
            "alone": asdict(self.alone),
            "flat": self.flat,
        }


@dataclass(frozen=True)
class Worst:
    """A picture that lies far from what it should be: its slot in which batch, and both pictures.

    `companions` are the rows of its batch, in order; `levels` the largest difference.
    """

    size: Size
    batch: int
    slot: int
    companions: tuple[int, ...]
    prompt: str
    seed: int
    reference: str
    levels: int
    mean_levels: float
    expected: Pictures = field(compare=False, repr=False)  # [H, W, 3]
    got: Pictures = field(compare=False, repr=False)

    def __str__(self) -> str:
        prompt = self.prompt if len(self.prompt) <= 40 else f"{self.prompt[:37]}..."
        return (
            f"row {self.slot} of batch {self.batch} (prompt {prompt!r}, seed {self.seed}), "
            f"{self.levels} levels from {NAMES[self.reference]} ({self.mean_levels:.4g} on average)"
        )

    def to_json(self) -> dict[str, object]:
        """Plain values, without the pictures."""
        return {
            "size": f"{self.size[0]}x{self.size[1]}",
            "batch": self.batch,
            "row": self.slot,
            "companions": list(self.companions),
            "prompt": self.prompt,
            "seed": self.seed,
            "reference": self.reference,
            "max_levels": self.levels,
            "mean_levels": self.mean_levels,
        }


@dataclass(frozen=True)
class Parity:
    """A line per picture size and batch size, rising; the worst pictures, the worst first."""

    batches: tuple[BatchParity, ...]
    limits: Limits
    worst: tuple[Worst, ...]

    def faults(self) -> list[str]:
        """What lies beyond the limits, one clause each; empty when the graph is good."""
        return [clause for batch in self.batches for clause in batch.faults(self.limits)]

    def check(self, subject: str) -> None:
        """`ParityError`, one sentence with the first limit that is broken and the worst picture."""
        faults = self.faults()
        if faults:
            others = f" and {len(faults) - 1} more figures are beyond" if len(faults) > 1 else ""
            raise ParityError(f"{subject}: {faults[0]}{others}; the worst is {self.worst[0]}")

    @property
    def level(self) -> str:
        """How far a picture depends on its batch: `bitwise`, `within N levels`, `not invariant`."""
        levels = max(batch.alone.max_levels for batch in self.batches)
        if levels > self.limits.invariance_levels:
            return "not invariant"
        return f"within {levels} levels" if levels else "bitwise"

    def to_json(self) -> dict[str, object]:
        """Plain values, for the manifest and for a file."""
        return {
            "level": self.level,
            "limits": asdict(self.limits),
            "batches": [batch.to_json() for batch in self.batches],
            "worst": self.worst[0].to_json(),
            "faults": self.faults(),
        }

    def table(self) -> str:
        """The figures for a reader, a line per size and batch, at most 100 columns."""
        names = tuple(self.batches[0].against)
        header = f"{'size':>9} batch drawn"
        header += "".join(f" | {f'{name}: max':>10}     mean differing" for name in names)
        lines = [f"{header} | alone flat", *(_line(batch, names) for batch in self.batches)]
        return "\n".join([*lines, f"batch invariance: {self.level}"])


def _line(batch: BatchParity, names: tuple[str, ...]) -> str:
    """One line of the table."""
    found = [batch.against[name] for name in names]
    size = f"{batch.size[0]}x{batch.size[1]}"
    cells = [f"{f.max_levels:10d} {f.mean_levels:8.6f} {f.differing:9.4%}" for f in found]
    counts = f"{batch.alone.max_levels:5d} {batch.flat:4d}"
    return " | ".join([f"{size:>9} {batch.batch:5d} {batch.pictures:5d}", *cells, counts])


def _reference_faults(name: str, found: Difference, limits: Limits) -> list[str]:
    """The three limits on the difference from one reference."""
    clauses = _over(f"max difference from {name}", found.max_levels, limits.max_levels)
    clauses += _over(
        f"mean difference of one picture from {name}", found.worst_mean_levels, limits.mean_levels
    )
    if found.differing > limits.differing:
        clauses.append(
            f"{found.differing:.3%} of the values differ from {name} "
            f"(allowed {limits.differing:.3%})"
        )
    return clauses


def _over(what: str, value: float, allowed: float) -> list[str]:
    """A clause about a figure in levels, if it lies beyond its limit."""
    if value <= allowed:
        return []
    return [f"the {what} is {value:.4g} levels (allowed {allowed:g})"]
