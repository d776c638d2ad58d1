"""How near one set of pictures is to another, as pure functions of a network's features.

The Fréchet distance sees mean and spread, precision and density whether pictures look real, recall
and coverage whether all kinds of real ones are met, the CLIP score whether they fit their captions.
All in float64.

Shapes: real x [n, D], generated y [m, D]; k nearest neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Matrix = NDArray[np.float64]
NEIGHBOURS_PRECISION = 3  # k of precision and recall, as published
NEIGHBOURS_DENSITY = 5  # k of density and coverage, as published
BLOCK_ROWS = 1024  # distances are computed so many rows at a time


@dataclass(frozen=True)
class Gaussian:
    """What a Fréchet distance knows of a set: mean [D] and covariance [D, D], float64."""

    mean: Matrix
    covariance: Matrix


class Moments:
    """Mean and covariance of rows that come in batches: memory is D² whatever their number.

    Batches are merged by their own mean and scatter (Chan, Golub and LeVeque, 1979), so nothing
    cancels where the mean is large.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean = torch.zeros(0, dtype=torch.float64)
        self._scatter = torch.zeros(0, 0, dtype=torch.float64)

    def add(self, features: Tensor) -> None:
        """Takes in features [n, D] of any number type and device."""
        assert features.ndim == 2, f"{tuple(features.shape)} is not [n, D]"
        rows = features.detach().double()
        if not self.count:
            D = rows.shape[1]
            self._mean, self._scatter = rows.new_zeros(D), rows.new_zeros(D, D)
        assert rows.shape[1] == len(self._mean), f"{rows.shape[1]} against {len(self._mean)}"
        own = rows.mean(0)
        centred, shift = rows - own, own - self._mean
        total = self.count + len(rows)
        self._scatter += centred.T @ centred
        self._scatter += torch.outer(shift, shift) * (self.count * len(rows) / total)
        self._mean = self._mean + shift * (len(rows) / total)
        self.count = total

    def gaussian(self) -> Gaussian:
        """The Gaussian of all rows so far; the covariance divides by their number less one."""
        assert self.count > 1, f"a covariance needs 2 rows or more, not {self.count}"
        covariance = self._scatter / (self.count - 1)
        return Gaussian(self._mean.cpu().numpy(), covariance.cpu().numpy())


def gaussian_distance(x: Gaussian, y: Gaussian) -> float:
    """|μx − μy|² + tr(Cx + Cy − 2 (Cx Cy)^½), the squared Fréchet distance (arXiv 1706.08500).

    The trace of the root is the nuclear norm of Cx^½ Cy^½. So no root of a product is taken, whose
    rounding errors would be magnified where a covariance has not full rank.
    """
    assert x.mean.shape == y.mean.shape, f"{len(x.mean)} against {len(y.mean)} features"
    shift = x.mean - y.mean
    cross = np.linalg.svd(root(x.covariance) @ root(y.covariance), compute_uv=False).sum()
    traces = np.trace(x.covariance) + np.trace(y.covariance)
    return float(max(0.0, shift @ shift + traces - 2 * cross))


def root(covariance: Matrix) -> Matrix:
    """The symmetric root of a covariance; eigenvalues that are rounding errors count as zero."""
    values, vectors = np.linalg.eigh(covariance)
    noise = max(values.max(), 0.0) * len(values) * np.finfo(np.float64).eps
    kept: Matrix = np.sqrt(np.where(values > noise, values, 0.0))
    found: Matrix = (vectors * kept) @ vectors.T
    return found


def neighbour_figures(x: Tensor, y: Tensor) -> dict[str, float]:
    """Precision, recall, density and coverage of generated y [m, D] against real x [n, D].

    precision  share of y within some real point's ball, which ends at its k-th neighbour, k = 3
    recall     share of x within some generated point's ball (both: arXiv 1904.06991, eq. 1 and 2)
    density    how many real balls hold a generated point, over k = 5; above 1 in dense places
    coverage   share of real balls that hold a generated point (both: arXiv 2002.09797, eq. 3 and 4)
    """
    x, y = x.double(), y.double()
    few, many = NEIGHBOURS_PRECISION, NEIGHBOURS_DENSITY
    real_few, real_many = ball_radii(x, few), ball_radii(x, many)
    made_few = ball_radii(y, few)
    held_few = torch.zeros(len(y), dtype=torch.bool, device=x.device)
    held_many = torch.zeros(len(y), dtype=torch.float64, device=x.device)
    met, covered = [], []
    for rows, d in distances(x, y):  # [b, m]
        held_few |= (d <= real_few[rows, None]).any(dim=0)
        within = d <= real_many[rows, None]
        held_many += within.sum(dim=0)
        covered.append(within.any(dim=1))
        met.append((d <= made_few).any(dim=1))
    return {
        "precision": held_few.double().mean().item(),
        "recall": torch.cat(met).double().mean().item(),
        "density": held_many.mean().item() / many,
        "coverage": torch.cat(covered).double().mean().item(),
    }


def ball_radii(x: Tensor, k: int) -> Tensor:
    """The distance of each point to its k-th nearest other: [n, D] -> [n]."""
    assert len(x) > k, f"{k} neighbours need more than {k} points, not {len(x)}"
    # The nearest of all is the point itself.
    return torch.cat([d.kthvalue(k + 1, dim=1).values for _, d in distances(x, x)])


def distances(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Euclidean distances in blocks of rows of x: [n, D], [m, D] -> slices and [b, m]."""
    for start in range(0, len(x), BLOCK_ROWS):
        rows = slice(start, min(start + BLOCK_ROWS, len(x)))
        yield rows, torch.cdist(x[rows], y)


def clip_cosines(pictures: Tensor, texts: Tensor) -> Tensor:
    """Cosine of each picture's embedding to its caption's: [n, E], [n, E] -> [n] float64."""
    assert pictures.shape == texts.shape, f"{tuple(pictures.shape)} and {tuple(texts.shape)}"
    return torch.cosine_similarity(pictures.double(), texts.double(), dim=1)


def clip_score(cosines: Tensor) -> float:
    """Mean of 100 · max(cos, 0) (CLIPScore, arXiv 2104.08718, with the weight 100): 0 to 100."""
    return float(100 * cosines.clamp(min=0).mean())
