"""The whole objective and its gradient against loops over single numbers, in float64.

The reference knows nothing of `distill.losses`: plain Python floats, one group, one sample and one
number at a time, written from the equations of TFD and Drifting. The gradient is derived by hand:
targets, scale and force are constants, so dL/dg = −2 F / (u · count); an anchor whose margin is
above zero pulls on every sample by its own share of the support.

Lists: g [B][N][D] samples, p [B][P][D] positives, a [B][A][D] anchors.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distill.losses import tfd_loss

Vector = list[float]
Rows = list[list[Vector]]
MIN_SQUARE = 1e-8
MIN_RMS = 1e-6  # keeps a force of exactly zero at zero; the equations divide by it


def distance(x: Vector, y: Vector) -> float:
    return math.sqrt(max(sum((i - j) ** 2 for i, j in zip(x, y, strict=True)), MIN_SQUARE))


def drifting(g: Rows, p: Rows, radii: list[float]) -> tuple[float, Rows]:
    """The drifting loss of a layer and its gradient by g."""
    N, D = len(g[0]), len(g[0][0])
    targets = [mine + theirs for mine, theirs in zip(g, p, strict=True)]
    d = [[[distance(x, t) for t in ts] for x in xs] for xs, ts in zip(g, targets, strict=True)]
    s = math.fsum(v for group in d for row in group for v in row) / (len(g) * N * len(targets[0]))
    u = max(s / math.sqrt(D), 1e-3)
    total = [[[0.0] * D for _ in range(N)] for _ in g]
    count = len(g) * N * D
    for r in radii:
        F = [force(ts, rows, N, max(s, 1e-3) * r, u) for ts, rows in zip(targets, d, strict=True)]
        square = math.fsum(v * v for group in F for row in group for v in row)
        rms = max(math.sqrt(square / count), MIN_RMS)
        for b, i, k in places(F):
            total[b][i][k] += F[b][i][k] / rms
    loss = math.fsum(v * v for group in total for row in group for v in row) / count
    return loss, [[[-2 * v / (u * count) for v in row] for row in group] for group in total]


def kernel(d: Vector, own: int, width: float) -> Vector:
    """Shares exp(−d / width), summing to 1, of all but a sample's own place (none if beyond)."""
    near = min(v for k, v in enumerate(d) if k != own)
    e = [0.0 if k == own else math.exp((near - v) / width) for k, v in enumerate(d)]
    return [v / math.fsum(e) for v in e]


def force(targets: list[Vector], d: list[Vector], N: int, width: float, u: float) -> list[Vector]:
    """One group's raw force at one radius, in scaled features: [N][D]."""
    M, D = len(targets), len(targets[0])
    A = [[0.0] * M for _ in range(N)]
    rows = [kernel([d[i][j] for j in range(M)], i, width) for i in range(N)]
    for j in range(M):
        column = kernel([d[i][j] for i in range(N)], j, width)
        for i in range(N):
            A[i][j] = math.sqrt(max(rows[i][j] * column[i], 1e-6))
    F = [[0.0] * D for _ in range(N)]
    for i in range(N):
        pull, push = math.fsum(A[i][:N]), math.fsum(A[i][N:])
        for j in range(M):
            weight = A[i][j] * pull if j >= N else -A[i][j] * push
            for k in range(D):
                F[i][k] += weight * (targets[j][k] - targets[i][k]) / u
    return F


def coverage(g: Rows, a: Rows, alpha: float) -> tuple[float, Rows]:
    """The anchor-margin loss of a layer and its gradient by g."""
    B, N, A, D = len(g), len(g[0]), len(a[0]), len(g[0][0])
    every = sorted(distance(x, y) for xs, ys in zip(a, g, strict=True) for x in xs for y in ys)
    h = every[(len(every) - 1) // 2]  # of an even number, the lower of the two in the middle
    gradient = [[[0.0] * D for _ in range(N)] for _ in g]
    loss = 0.0
    for b in range(B):
        for k in range(A):
            d = [distance(a[b][k], x) for x in g[b]]
            S = sum(math.exp(-v / h) for v in d) / N
            others = [distance(a[b][k], a[b][j]) for j in range(A) if j != k]
            margin = alpha * sum(math.exp(-v / (2 * h)) for v in others) / (A - 1) - S
            if margin <= 0:
                continue
            loss += margin / (B * A)
            for i in range(N):
                if d[i] > math.sqrt(MIN_SQUARE):  # below the clamp nothing depends on g
                    share = math.exp(-d[i] / h) / (h * d[i] * N * B * A)
                    for m in range(D):
                        gradient[b][i][m] += share * (g[b][i][m] - a[b][k][m])
    return loss, gradient


def places(rows: Rows) -> list[tuple[int, int, int]]:
    return [
        (b, i, k)
        for b, group in enumerate(rows)
        for i, row in enumerate(group)
        for k in range(len(row))
    ]


def reference(
    g: Rows, p: Rows, a: Rows, radii: list[float], weight: float, alpha: float
) -> tuple[float, Tensor]:
    """Loss and gradient of one layer."""
    drift, pulled = drifting(g, p, radii)
    missing, covered = coverage(g, a, alpha)
    both = [torch.tensor(rows, dtype=torch.float64) for rows in (pulled, covered)]
    return drift + weight * missing, both[0] + weight * both[1]


def agree(g: Tensor, p: Tensor, a: Tensor, radii: list[float], weight: float = 1.5) -> None:
    """Ours and the reference, value and gradient, within 1e-6 relative."""
    x = g.clone().requires_grad_()
    loss, _ = tfd_loss({"l": x}, {"l": p}, {"l": a}, radii, weight, 0.9)
    loss.backward()  # type: ignore[no-untyped-call]
    value, gradient = reference(g.tolist(), p.tolist(), a.tolist(), radii, weight, 0.9)
    assert loss.item() == pytest.approx(value, rel=1e-6)
    assert x.grad is not None
    assert x.grad.dtype is torch.float64
    assert (x.grad - gradient).abs().max() <= 1e-6 * gradient.abs().max()


def gaussian(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(2, 5), st.integers(1, 5), st.integers(2, 4)),
    D=st.integers(1, 7),
    radii=st.lists(st.floats(0.02, 3.0), min_size=1, max_size=4),
    size=st.sampled_from([1e-4, 1e-2, 1.0, 30.0, 1e4]),
    shift=st.floats(-3.0, 3.0),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_value_and_gradient_agree_with_loops_over_numbers(
    shape: tuple[int, int, int, int],
    D: int,
    radii: list[float],
    size: float,
    shift: float,
    seed: int,
) -> None:
    B, N, P, A = shape
    g, p = gaussian(B, N, D, seed=seed), gaussian(B, P, D, seed=seed + 1) + shift
    a = gaussian(B, A, D, seed=seed + 2) + shift
    agree(size * g, size * p, size * a, radii)


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("case", ["twins", "on a positive", "on an anchor", "all in one point"])
def test_they_agree_where_distances_are_zero(case: str, size: float) -> None:
    g, p = gaussian(2, 4, 5, seed=1), gaussian(2, 3, 5, seed=2) + 1
    a = gaussian(2, 3, 5, seed=3) + 2
    if case == "twins":
        g[:, 1] = g[:, 0]
    elif case == "on a positive":
        g[0, 2] = p[0, 1]
    elif case == "on an anchor":
        g[1, 0] = a[1, 1]
    else:
        g[:] = g[0, 0]
    agree(size * g, size * p, size * a, [0.05, 0.3])


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_they_agree_with_one_positive_and_many_numbers(size: float) -> None:
    g, p, a = (gaussian(1, n, 96, seed=n) for n in (5, 1, 2))
    agree(size * g, size * p, size * a, [0.02, 0.05, 0.1, 0.2])


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4, 1e12])
@pytest.mark.parametrize("D", [8, 20_000])
def test_single_precision_keeps_its_digits_at_every_size(D: int, size: float) -> None:
    g, p, a = (size * gaussian(2, n, D, seed=n) for n in (4, 3, 2))
    exact, single = g.clone().requires_grad_(), g.float().requires_grad_()
    for x in (exact, single):
        real = {"l": p.to(x.dtype)}, {"l": a.to(x.dtype)}
        loss, _ = tfd_loss({"l": x}, *real, (0.05, 0.2))
        loss.backward()  # type: ignore[no-untyped-call]
    assert exact.grad is not None
    assert single.grad is not None
    assert (single.grad - exact.grad).norm() < 2e-4 * exact.grad.norm()
