"""Fidelity against closed forms, sets made by hand, and implementations that are not ours."""

import numpy as np
import pytest
import scipy.linalg
import torch
from prdc import compute_prdc
from torch import Tensor

from distill.fidelity import (
    Gaussian,
    Matrix,
    Moments,
    ball_radii,
    clip_cosines,
    clip_score,
    gaussian_distance,
    neighbour_figures,
)


def normal(n: int, D: int, seed: int) -> Matrix:
    return np.random.default_rng(seed).normal(size=(n, D))


def covariance(D: int, rank: int, seed: int) -> Matrix:
    factor = normal(D, rank, seed)
    found: Matrix = factor @ factor.T
    return found


def moments_of(rows: Matrix, batch: int) -> Moments:
    moments = Moments()
    for part in torch.from_numpy(rows).split(batch):
        moments.add(part)
    return moments


def test_gaussians_on_turned_axes_have_a_closed_form() -> None:
    axes, _ = np.linalg.qr(normal(6, 6, seed=0))
    s, t = np.array([3, 2, 1, 0.5, 0.1, 0]), np.array([1, 2, 3, 0, 0.7, 0])
    shift = normal(1, 6, seed=1)[0]
    one = Gaussian(np.zeros(6), (axes * s**2) @ axes.T)
    other = Gaussian(shift, (axes * t**2) @ axes.T)
    expected = shift @ shift + ((s - t) ** 2).sum()
    assert gaussian_distance(one, other) == pytest.approx(expected, rel=1e-12)
    assert gaussian_distance(other, one) == pytest.approx(expected, rel=1e-12)


def test_any_two_gaussians_agree_with_the_root_of_scipy() -> None:
    for seed in range(5):
        Cx, Cy = covariance(20, 30, seed), covariance(20, 25, seed + 10)
        product = scipy.linalg.sqrtm(Cx @ Cy)
        mean = normal(1, 20, seed)[0]
        expected = mean @ mean + np.trace(Cx + Cy - 2 * product.real)
        found = gaussian_distance(Gaussian(mean, Cx), Gaussian(np.zeros(20), Cy))
        assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("rank", [1, 7, 60])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_a_set_is_at_no_distance_from_itself_whatever_its_rank(rank: int, scale: float) -> None:
    one = Gaussian(normal(1, 60, seed=2)[0], scale * covariance(60, rank, seed=3))
    assert gaussian_distance(one, one) <= 1e-11 * scale * rank * 60


def test_subspaces_that_do_not_meet_are_as_far_as_their_traces() -> None:
    one, other = np.zeros((8, 8)), np.zeros((8, 8))
    one[:4, :4], other[4:, 4:] = covariance(4, 4, seed=4), covariance(4, 4, seed=5)
    found = gaussian_distance(Gaussian(np.zeros(8), one), Gaussian(np.zeros(8), other))
    assert found == pytest.approx(np.trace(one) + np.trace(other), rel=1e-12)


@pytest.mark.parametrize("batch", [1, 7, 100])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_moments_in_batches_are_those_of_all_rows(batch: int, offset: float) -> None:
    rows = normal(100, 5, seed=6) @ normal(5, 5, seed=7) + offset
    found = moments_of(rows, batch).gaussian()
    assert np.allclose(found.mean, rows.mean(0), rtol=1e-13)
    assert np.allclose(found.covariance, np.cov(rows, rowvar=False), rtol=1e-8, atol=1e-8)


def test_moments_need_rows_of_one_width_and_two_of_them() -> None:
    moments = moments_of(normal(1, 3, seed=0), 1)
    with pytest.raises(AssertionError, match="2 rows or more, not 1"):
        moments.gaussian()
    with pytest.raises(AssertionError, match="4 against 3"):
        moments.add(torch.zeros(2, 4))
    with pytest.raises(AssertionError, match="is not"):
        moments.add(torch.zeros(2))
    with pytest.raises(AssertionError, match="3 against 2 features"):
        gaussian_distance(Gaussian(np.zeros(3), np.eye(3)), Gaussian(np.zeros(2), np.eye(2)))


@pytest.mark.parametrize("seed", range(4))
def test_neighbours_agree_with_an_independent_implementation(seed: int) -> None:
    x, y = normal(1100, 4, seed), 0.8 * normal(300, 4, seed + 50) + 0.2 * seed
    found = neighbour_figures(torch.from_numpy(x), torch.from_numpy(y))
    three, five = (compute_prdc(x, y, nearest_k=k) for k in (3, 5))
    expected = [three["precision"], three["recall"], five["density"], five["coverage"]]
    assert list(found.values()) == pytest.approx(expected, abs=1e-12)
    assert 0 < found["recall"] < 1


def line(*places: float) -> Tensor:
    return torch.tensor(places).unsqueeze(1)


def test_points_on_a_line_are_counted_by_hand() -> None:
    x = line(0, 1, 2, 3, 4, 5)  # radii for k = 3: 3 2 2 2 2 3; for k = 5: 5 4 3 3 4 5
    assert ball_radii(x.double(), 3).tolist() == [3, 2, 2, 2, 2, 3]
    y = line(-2.5, 2.6, 100, 101, 102, 103)  # radii for k = 3: 103.5 98.4 3 2 2 3
    found = neighbour_figures(x, y)
    assert found["precision"] == 2 / 6  # the first two
    assert found["recall"] == 1.0  # the first two lie far from all others: their balls are wide
    assert found["density"] == pytest.approx((2 + 6) / (5 * 6))  # -2.5: balls of 0 and 1
    assert found["coverage"] == 1.0


def test_a_set_against_itself_is_perfect_and_against_one_far_away_is_nothing() -> None:
    x = torch.from_numpy(normal(60, 3, seed=8))
    same = neighbour_figures(x, x)
    assert [same[name] for name in ("precision", "recall", "coverage")] == [1.0, 1.0, 1.0]
    assert same["density"] == pytest.approx(6 / 5)  # a ball holds its own point and five others
    assert set(neighbour_figures(x, x + 1e3).values()) == {0.0}


def test_copies_of_one_picture_are_precise_but_recall_nothing() -> None:
    x = torch.from_numpy(normal(100, 2, seed=9))
    found = neighbour_figures(x, x[:1].repeat(50, 1))
    assert found["precision"] == 1.0
    assert found["recall"] == pytest.approx(1 / 100)
    assert found["coverage"] < 0.2


def test_too_few_points_for_their_neighbours_are_refused() -> None:
    with pytest.raises(AssertionError, match="5 neighbours need more than 5 points, not 5"):
        neighbour_figures(torch.zeros(5, 2), torch.zeros(9, 2))


def test_the_clip_score_is_a_hundred_cosines_and_never_negative() -> None:
    pictures = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    texts = torch.tensor([[5.0, 0.0], [0.0, -1.0], [1.0, 0.0]])
    cosines = clip_cosines(pictures, texts)
    assert cosines.tolist() == pytest.approx([1.0, -1.0, 0.5**0.5])
    assert clip_score(cosines) == pytest.approx(100 * (1 + 0.5**0.5) / 3)
    with pytest.raises(AssertionError, match=r"\(3, 2\) and \(2, 2\)"):
        clip_cosines(pictures, texts[:2])
