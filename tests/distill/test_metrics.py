"""Figures of quality against closed forms and an independent route."""

import numpy as np
import pytest

from distill.fidelity import Matrix
from distill.metrics import frechet_distance, mode_coverage, shares

RNG_SEED = 3


def normal(n: int, D: int, seed: int = RNG_SEED) -> Matrix:
    return np.random.default_rng(seed).normal(size=(n, D))


def whitened(n: int, D: int, seed: int = RNG_SEED) -> Matrix:
    """Rows whose mean is 0 and whose covariance is 1, to rounding."""
    x = normal(n, D, seed)
    x -= x.mean(0)
    root: Matrix = np.linalg.cholesky(np.linalg.inv(np.cov(x, rowvar=False)))
    result: Matrix = x @ root
    return result


def root_by_newton(product: Matrix) -> Matrix:
    """The principal root of a matrix, symmetric or not, by Denman and Beavers' iteration."""
    root, inverse = product, np.eye(len(product))
    for _ in range(60):
        root, inverse = (
            (root + np.linalg.inv(inverse)) / 2,
            (inverse + np.linalg.inv(root)) / 2,
        )
    return root


def test_gaussians_on_the_same_axes_have_a_closed_form() -> None:
    x, y = whitened(200, 3), whitened(150, 3, seed=4)
    s, t, shift = np.array([1.0, 2.0, 0.5]), np.array([3.0, 2.0, 0.1]), np.array([1.0, -2.0, 0.0])
    expected = (shift**2).sum() + ((s - t) ** 2).sum()
    assert frechet_distance(x * s, y * t + shift) == pytest.approx(expected)


def test_any_covariances_agree_with_the_root_of_their_product() -> None:
    x = normal(80, 5) @ normal(5, 5, seed=1)
    y = normal(90, 5, seed=2) @ normal(5, 5, seed=5) + 0.3
    Cx, Cy = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = root_by_newton(Cx @ Cy)
    assert np.allclose(root @ root, Cx @ Cy)
    mean = x.mean(0) - y.mean(0)
    expected = mean @ mean + np.trace(Cx + Cy - 2 * root)
    assert frechet_distance(x, y) == pytest.approx(expected)
    assert frechet_distance(y, x) == pytest.approx(expected)


def test_the_distance_to_oneself_is_nothing_even_without_full_rank() -> None:
    x = normal(50, 4)
    flat = np.concatenate([x, x[:, :2], np.ones((50, 1))], axis=1)
    assert frechet_distance(x, x[::-1]) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(flat, flat) == pytest.approx(0, abs=1e-6)


def test_one_attribute_is_enough() -> None:
    x, y = normal(30, 1), normal(40, 1, seed=9) * 2 + 1
    gap = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    assert frechet_distance(x, y) == pytest.approx(gap)


def test_sets_that_cannot_be_compared_are_refused_with_their_shapes() -> None:
    with pytest.raises(AssertionError, match="2 against 3 attributes"):
        frechet_distance(normal(5, 2), normal(5, 3))
    with pytest.raises(AssertionError, match=r"\(5,\) and \(5, 2\) are not \[n, D\]"):
        frechet_distance(normal(5, 2)[:, 0], normal(5, 2))


def test_shares_count_what_shows_no_mode_in_the_whole() -> None:
    seen = ["a", "b", "a", None, "a", "other", None, "b"]
    assert shares(seen, ["a", "b", "c"]) == {"a": 3 / 8, "b": 2 / 8, "c": 0.0}
    with pytest.raises(AssertionError, match="no picture"):
        shares([], ["a"])


def test_a_mode_is_covered_from_a_third_of_its_share_on() -> None:
    expected = {"red": {"small": 0.6, "big": 0.3, "never": 0.0}, "blue": {"small": 0.9}}
    exactly = {"red": {"small": 0.2, "big": 0.1, "never": 0.0}, "blue": {"small": 0.3}}
    assert mode_coverage(expected, expected) == 1.0
    assert mode_coverage(exactly, expected) == 1.0
    less = {"red": {"small": 0.19, "big": 0.1, "never": 0.0}, "blue": {"small": 0.29}}
    assert mode_coverage(less, expected) == 2 / 4
    with pytest.raises(AssertionError, match="captions differ"):
        mode_coverage({"red": {}}, expected)
