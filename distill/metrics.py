"""Figures of quality, as pure functions of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from distill.fidelity import Gaussian, Matrix, gaussian_distance


def frechet_distance(x: Matrix, y: Matrix) -> float:
    """Squared Fréchet distance of the Gaussians fitted to rows x [n, D] and y [m, D].

    Dowson and Landau, 1982; on network features it is FID (arXiv 1706.08500).
    """
    assert x.ndim == y.ndim == 2, f"{x.shape} and {y.shape} are not [n, D]"
    assert x.shape[1] == y.shape[1], f"{x.shape[1]} against {y.shape[1]} attributes"
    return gaussian_distance(fitted(x), fitted(y))


def fitted(x: Matrix) -> Gaussian:
    """Mean and covariance of rows [n, D]."""
    return Gaussian(x.mean(0), np.atleast_2d(np.cov(x, rowvar=False)))


def shares(seen: Sequence[str | None], modes: Sequence[str]) -> dict[str, float]:
    """The share of pictures that show each mode; what shows none of them counts in the whole."""
    assert seen, "no picture to count modes in"
    return {mode: sum(s == mode for s in seen) / len(seen) for mode in modes}


def mode_coverage(
    found: Mapping[str, Mapping[str, float]], expected: Mapping[str, Mapping[str, float]]
) -> float:
    """The share of modes, over all captions, seen at a third or more of the expected share.

    Both are shares by caption and mode. A mode whose expected share is 0 asks for nothing.
    """
    assert found.keys() == expected.keys(), "the captions differ"
    met = [
        found[caption][mode] >= share / 3
        for caption, by_mode in expected.items()
        for mode, share in by_mode.items()
    ]
    return sum(met) / len(met)
