"""Diagnostics: keys, and that each figure rises and falls with what it names."""

import pytest
import torch
from torch import Tensor

from distill.diagnostics import diagnose, effective_number, reach_figures

RADII = (0.05, 0.5)
KINDS = ("force", "floor", "reach", "ess", "support")


def gaussian(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def figures_of(g: Tensor) -> dict[str, float]:
    """Figures of samples g [B, N, D] against standard normals, 48 positives and 16 anchors."""
    B, N, D = g.shape
    real, p, a = gaussian(B, N, D, seed=1), gaussian(B, 48, D, seed=2), gaussian(B, 16, D, seed=3)
    return diagnose({"mid": g}, {"mid": real}, {"mid": p}, {"mid": a}, RADII)


def test_keys_name_figure_layer_and_radius() -> None:
    figures = figures_of(gaussian(2, 4, 8, seed=0))
    per_radius = {f"{name}/mid/r{r:g}" for name in KINDS for r in RADII}
    assert set(figures) == {*per_radius, "covered/mid"}
    assert all(isinstance(value, float) for value in figures.values())


def test_samples_of_the_right_distribution_stand_at_the_floor() -> None:
    figures = figures_of(gaussian(16, 32, 8, seed=0))
    for r in RADII:
        assert figures[f"force/mid/r{r:g}"] == pytest.approx(figures[f"floor/mid/r{r:g}"], rel=0.1)
        assert figures[f"reach/mid/r{r:g}"] == pytest.approx(1.0, abs=0.1)
    assert figures["covered/mid"] > 0.95


def test_shifted_samples_stand_above_the_floor_at_a_wide_radius() -> None:
    figures = figures_of(gaussian(16, 32, 8, seed=0) + 0.7)
    assert figures["force/mid/r0.5"] > 1.5 * figures["floor/mid/r0.5"]


def test_lost_samples_feel_less_than_the_floor_and_reach_tells_them_apart() -> None:
    figures = figures_of(gaussian(16, 32, 8, seed=0) * 0.3 + 8.0)
    assert figures["force/mid/r0.05"] < figures["floor/mid/r0.05"]
    assert figures["reach/mid/r0.05"] < 0.01


def test_a_lost_mode_is_missing_from_the_covered_share() -> None:
    g, p = gaussian(4, 16, 8, seed=0), gaussian(4, 16, 8, seed=1)
    a = torch.cat([gaussian(4, 8, 8, seed=2), gaussian(4, 8, 8, seed=3) + 30.0], dim=1)
    assert diagnose({"mid": g}, {"mid": p}, {"mid": p}, {"mid": a}, RADII)["covered/mid"] == 0.5


def test_a_wider_radius_reaches_more_targets_and_more_positives() -> None:
    g, p = gaussian(4, 16, 8, seed=0), gaussian(4, 24, 8, seed=1)
    figures = {k: value.item() for k, value in reach_figures(g, p, (0.01, 0.3, 100.0)).items()}
    assert figures["ess/r0.01"] < figures["ess/r0.3"] < figures["ess/r100"]
    assert figures["ess/r0.01"] < 1.5
    assert figures["ess/r100"] == pytest.approx(15 + 24, rel=0.01)
    assert figures["support/r0.01"] < figures["support/r0.3"] < figures["support/r100"]
    assert figures["support/r100"] == pytest.approx(1.0, rel=0.01)


def test_a_collapsed_group_turns_to_one_positive() -> None:
    g = gaussian(3, 1, 4, seed=0).expand(3, 6, 4)
    support = reach_figures(g, gaussian(3, 10, 4, seed=1), (0.01,))["support/r0.01"]
    assert support.item() == pytest.approx(0.1, abs=0.01)


def test_effective_number_is_one_for_one_weight_and_all_for_equal_ones() -> None:
    weights = torch.tensor([[0.0, 7.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0], [1.0, 1.0, 0.0, 0.0]])
    assert effective_number(weights).tolist() == [1.0, 4.0, 2.0]


def test_real_samples_of_another_number_are_a_programmer_error() -> None:
    g, real = {"mid": gaussian(1, 4, 2, seed=0)}, {"mid": gaussian(1, 5, 2, seed=0)}
    with pytest.raises(AssertionError, match="layer mid: real"):
        diagnose(g, real, real, real, RADII)
