"""What the drifting field is where both distributions are one, and under swaps and scales."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distill.losses import drifting_force, drifting_loss

RADII = (0.05, 0.2, 1.0)


def gaussian(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(2, 5), st.integers(1, 6), st.integers(1, 9)),
    radius=st.floats(0.02, 3.0),
    shift=st.floats(-2.0, 2.0),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_the_field_is_antisymmetric_in_the_two_distributions(
    shape: tuple[int, int, int, int], radius: float, shift: float, seed: int
) -> None:
    B, N, P, D = shape
    x, q = gaussian(B, 4, D, seed=seed), gaussian(B, N, D, seed=seed + 1)
    p = gaussian(B, P, D, seed=seed + 2) + shift
    there, _ = drifting_force(q, p, [radius], at=x)
    back, _ = drifting_force(p, q, [radius], at=x)
    assert torch.allclose(there[0], -back[0], rtol=1e-9, atol=1e-12)


@given(factor=st.floats(1.0, 1e9), radius=st.floats(0.02, 3.0), seed=st.integers(0, 2**20))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_force_and_loss_do_not_change_when_features_are_scaled(
    factor: float, radius: float, seed: int
) -> None:
    # But for the clamp: a sample's distance to itself counts as 1e-4 in s, whatever the scale.
    g, p = 10 * gaussian(2, 4, 6, seed=seed), 10 * gaussian(2, 5, 6, seed=seed + 1)
    plain, u = drifting_force(g, p, [radius])
    scaled, v = drifting_force(factor * g, factor * p, [radius])
    assert v.item() == pytest.approx(factor * u.item(), rel=2e-6)
    assert torch.allclose(plain[0], scaled[0], rtol=1e-3, atol=1e-4)
    loss, again = (
        drifting_loss(g, p, [radius])[0],
        drifting_loss(factor * g, factor * p, [radius])[0],
    )
    assert again.item() == pytest.approx(loss.item(), rel=1e-3)


def inward(N: int, P: int, groups: int, at_others: bool) -> tuple[Tensor, Tensor]:
    """Mean of −⟨F(x), x⟩ / D over points x, and its standard error, per radius, at equality."""
    g, p, x = (gaussian(groups, n, 8, seed=n + 100 * k) for k, n in enumerate((N, P, N)))
    forces, _ = drifting_force(g, p, RADII, at=x if at_others else None)
    each = torch.stack([-(F * (x if at_others else g)).mean(dim=(1, 2)) for F in forces])
    return each.mean(dim=1), each.std(dim=1) / groups**0.5


@pytest.mark.parametrize("N", [2, 8, 32])
def test_from_one_distribution_the_field_is_zero_in_expectation(N: int) -> None:
    mean, error = inward(N, N, groups=20_000 // N, at_others=True)
    assert (error < 0.01).all()
    assert (mean.abs() < 3 * error).all(), (mean, error)


def test_on_the_samples_themselves_it_is_nearly_so() -> None:
    """A sample does not repel itself, so the halves differ a little: measured, below 1 % of s."""
    mean, error = inward(16, 48, groups=1500, at_others=False)
    assert (error < 0.002).all()
    assert (mean.abs() < 0.01).all(), (mean, error)


def test_a_deviation_a_fifth_off_is_pushed_back_far_beyond_the_error() -> None:
    z, p = gaussian(1500, 16, 8, seed=0), gaussian(1500, 48, 8, seed=1)
    for factor, sign in ((0.8, 1), (1.2, -1)):
        forces, _ = drifting_force(factor * z, p, RADII)
        for F in forces:
            each = sign * (F * z).mean(dim=(1, 2))
            assert each.mean() > 5 * each.std() / len(each) ** 0.5
