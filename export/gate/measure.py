"""The measuring itself: a runtime draws every row in every batch size; each picture is compared.

N rows, B batch, H x W picture size in pixels. A picture is compared with every reference and with
itself drawn alone, so a row that is swapped, stale or spoilt by its company shows.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from export.errors import ParityError
from export.gate.cases import Cases, Infer, Pictures
from export.gate.parity import ALONE, BatchParity, Difference, Limits, Parity, Worst

KEPT = 8  # worst pictures
SHUFFLE = 20_000  # any number: the same orders every time
Key = tuple[float, float]


def measure(infer: Infer, cases: Sequence[Cases], max_batch: int, limits: Limits) -> Parity:
    """Every picture size, every batch size up to `max_batch`; `ParityError` only for a wrong shape.

    Whether the figures are good is for `Parity.check` to say.
    """
    batches: list[BatchParity] = []
    worst: list[Worst] = []
    for of_size in cases:
        alone = np.concatenate([draw(infer, of_size, [row]) for row in range(len(of_size.seeds))])
        ledger = _Ledger(of_size, {**of_size.pictures, ALONE: alone}, limits)
        batches += [ledger.measure(infer, size) for size in range(1, max_batch + 1)]
        worst = sorted([*worst, *ledger.worst.values()], key=ledger.rank, reverse=True)[:KEPT]
    return Parity(tuple(batches), limits, tuple(worst))


def compositions(rows: int, size: int) -> Iterator[list[int]]:
    """The batches of one size: all rows in turn, all rows shuffled, and one row many times.

    Where the rows do not fill the last batch they begin again, so that every slot is used.
    """
    for order in (range(rows), np.random.RandomState(SHUFFLE + size).permutation(rows).tolist()):
        for start in range(0, rows, size):
            yield [order[(start + i) % rows] for i in range(size)]
        if size == 1:
            return
    for row in (0, size % rows):
        yield [row] * size


def pictures_drawn(rows: int, max_batch: int) -> int:
    """How many pictures `measure` draws for the rows of one picture size."""
    batches = (compositions(rows, size) for size in range(1, max_batch + 1))
    return rows + sum(len(batch) for of_size in batches for batch in of_size)


def draw(infer: Infer, cases: Cases, rows: Sequence[int]) -> Pictures:
    """Run the rows as one batch; type and shape [B, H, W, 3] must be those of the cases."""
    width, height = cases.size
    picked = list(rows)
    pictures = infer({name: np.ascontiguousarray(a[picked]) for name, a in cases.feeds.items()})
    expected = (len(picked), height, width, 3)
    if pictures.dtype != np.uint8 or pictures.shape != expected:
        raise ParityError(
            f"the graph gives {pictures.dtype} {list(pictures.shape)} for a batch of "
            f"{len(picked)}; it must give uint8 {list(expected)}"
        )
    return pictures


def differences(left: Pictures, right: Pictures) -> NDArray[np.float64]:
    """Per picture: the largest level, the mean level and the fraction that differs, [B, 3]."""
    gap = (np.maximum(left, right) - np.minimum(left, right)).reshape(len(left), -1)  # [B, H*W*3]
    figures = gap.max(axis=1), gap.mean(axis=1), np.count_nonzero(gap, axis=1) / gap.shape[1]
    return np.stack([np.asarray(figure, np.float64) for figure in figures], axis=1)


def is_flat(pictures: Pictures) -> NDArray[np.bool_]:
    """Which pictures are one flat colour, [B]."""
    flat: NDArray[np.bool_] = (pictures == pictures[:, :1, :1]).all(axis=(1, 2, 3))
    return flat


class _Ledger:
    """What was found for the rows of one picture size; `worst` has one entry per row."""

    def __init__(self, cases: Cases, expected: Mapping[str, Pictures], limits: Limits) -> None:
        self._cases, self._expected, self._limits = cases, expected, limits
        self._flat = is_flat(next(iter(expected.values())))  # [N]
        self.worst: dict[int, Worst] = {}

    def measure(self, infer: Infer, size: int) -> BatchParity:
        """All compositions of one batch size."""
        found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in self._expected}
        flat = 0
        for rows in compositions(len(self._cases.seeds), size):
            got = draw(infer, self._cases, rows)
            for name, pictures in self._expected.items():
                found[name].append(differences(got, pictures[rows]))
                self._keep(name, rows, found[name][-1], got)
            flat += int((is_flat(got) & ~self._flat[rows]).sum())
        total = {name: _total(np.concatenate(parts)) for name, parts in found.items()}
        drawn = sum(len(part) for part in found[ALONE])
        alone = total.pop(ALONE)
        return BatchParity(self._cases.size, size, drawn, total, alone, flat)

    def rank(self, worst: Worst) -> Key:
        """How far beyond its limit, then how far on average."""
        return self._key(worst.reference, worst.levels, worst.mean_levels)

    def _key(self, name: str, levels: float, mean_levels: float) -> Key:
        limits = self._limits
        allowed = limits.invariance_levels if name == ALONE else limits.max_levels
        return levels - allowed, mean_levels

    def _keep(
        self, name: str, rows: Sequence[int], found: NDArray[np.float64], got: Pictures
    ) -> None:
        """Remember a picture that is worse than what its row was so far."""
        for slot, row in enumerate(rows):
            levels, mean_levels, _ = found[slot].tolist()
            known = self.worst.get(row)
            if known is not None and self._key(name, levels, mean_levels) <= self.rank(known):
                continue
            self.worst[row] = Worst(
                size=self._cases.size,
                batch=len(rows),
                slot=slot,
                companions=tuple(rows),
                prompt=self._cases.prompts[row],
                seed=self._cases.seeds[row],
                reference=name,
                levels=int(levels),
                mean_levels=mean_levels,
                expected=self._expected[name][row],
                got=got[slot].copy(),
            )


def _total(figures: NDArray[np.float64]) -> Difference:
    """Over all pictures, from what was found for each, [M, 3]."""
    return Difference(
        max_levels=int(figures[:, 0].max()),
        mean_levels=float(figures[:, 1].mean()),
        worst_mean_levels=float(figures[:, 1].max()),
        differing=float(figures[:, 2].mean()),
    )
