"""The drifting and coverage losses against a slow reference, invariants and limits."""

import math

import pytest
import torch
from torch import Tensor

from distill import losses

RADII = (0.05, 0.2, 1.0)


def gaussian(*shape: int, seed: int = 0, shift: float = 0.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + shift


def reference_forces(g: Tensor, p: Tensor, radii: tuple[float, ...]) -> list[Tensor]:
    """Raw forces by loops over single samples in float64, straight from the method's text."""
    g, p = g.double(), p.double()
    B, N, D = g.shape
    targets = torch.cat([g, p], dim=1)
    M = targets.shape[1]
    square = (g[:, :, None] - targets[:, None]).square().sum(dim=3)
    d = square.clamp(min=1e-8).sqrt()
    s = d.mean()
    u = max(float(s) / math.sqrt(D), 1e-3)
    forces = []
    for r in radii:
        F = torch.zeros_like(g)
        for b in range(B):
            e = torch.exp(-d[b] / max(float(s), 1e-3) / r)
            e[range(N), range(N)] = 0.0  # out of its own reach
            A = (e / e.sum(1, keepdim=True) * (e / e.sum(0, keepdim=True))).clamp(min=1e-6).sqrt()
            for i in range(N):
                pull, push = A[i, N:].sum(), A[i, :N].sum()
                for j in range(M):
                    weight = A[i, j] * (push if j >= N else -pull)
                    F[b, i] += weight * (targets[b, j] - g[b, i]) / u
        forces.append(F)
    return forces


def test_raw_force_agrees_with_a_loop_over_single_samples() -> None:
    g, p = gaussian(2, 3, 7), gaussian(2, 5, 7, seed=1, shift=0.4)
    forces, _ = losses.drifting_force(g, p, RADII)
    for F, expected in zip(forces, reference_forces(g, p, RADII), strict=True):
        assert torch.allclose(F.double(), expected, atol=2e-6, rtol=1e-5)


def test_loss_is_the_mean_square_of_the_summed_normalised_forces() -> None:
    g, p = gaussian(2, 4, 6), gaussian(2, 3, 6, seed=1)
    forces = reference_forces(g, p, RADII)
    F = sum((f / f.square().mean().sqrt() for f in forces), torch.zeros(1))
    loss, figures = losses.drifting_loss(g, p, RADII)
    assert loss.item() == pytest.approx(F.square().mean().item(), rel=1e-5)
    for r, f in zip(RADII, forces, strict=True):
        assert float(figures[f"force/r{r:g}"]) == pytest.approx(f.square().mean().sqrt().item())


def test_gradient_is_the_force_turned_round() -> None:
    g, p = gaussian(2, 4, 6).requires_grad_(), gaussian(2, 3, 6, seed=1).requires_grad_()
    loss, figures = losses.drifting_loss(g, p, RADII)
    loss.backward()
    forces, u = losses.drifting_force(g, p, RADII)
    F = torch.stack([f / losses.root_mean_square(f) for f in forces]).sum(dim=0)
    assert g.grad is not None
    assert torch.allclose(g.grad, -2 * F / u / g.numel(), rtol=1e-4, atol=1e-7)
    assert p.grad is None
    assert figures["scale"] == u


def test_swapping_the_two_distributions_flips_the_field() -> None:
    x, q, p = gaussian(2, 5, 9), gaussian(2, 6, 9, seed=1), gaussian(2, 4, 9, seed=2, shift=1.0)
    there, _ = losses.drifting_force(q, p, RADII, at=x)
    back, _ = losses.drifting_force(p, q, RADII, at=x)
    for F, G in zip(there, back, strict=True):
        assert F.abs().max() > 0.01
        assert torch.allclose(F, -G, atol=1e-6)


def test_equal_multisets_give_zero_force_everywhere() -> None:
    x, q = gaussian(2, 5, 9, shift=0.5), gaussian(2, 6, 9, seed=1)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    for F in losses.drifting_force(q, q[:, order], RADII, at=x)[0]:
        assert F.abs().max() < 1e-6


def test_attraction_and_repulsion_carry_the_same_total() -> None:
    # Moving all positives by c moves the force by c times the attraction's total weight, and
    # moving all samples takes c times the repulsion's away: with A held, the two are equal.
    g, p, c = gaussian(2, 4, 6), gaussian(2, 3, 6, seed=1), 10.0
    A = gaussian(2, 4, 7, seed=2).abs()
    pulled = losses.weighted_force(A, g, p + c) - losses.weighted_force(A, g, p)
    pushed = losses.weighted_force(A, g + c, p) - losses.weighted_force(A, g, p)
    total = A[:, :, :4].sum(2) * A[:, :, 4:].sum(2) * c
    assert torch.allclose(pulled, total[..., None].expand_as(pulled), rtol=1e-4)
    assert torch.allclose(pushed, -total[..., None].expand_as(pushed), rtol=1e-4)


def test_a_collapsed_group_on_its_positive_stands_still() -> None:
    g = gaussian(2, 1, 5).expand(2, 4, 5).clone().requires_grad_()
    loss, _ = losses.drifting_loss(g, g.detach()[:, :3], RADII)
    loss.backward()
    assert loss.item() < 1e-8
    assert g.grad is not None
    assert g.grad.abs().max() < 1e-3


def test_order_of_samples_and_of_positives_does_not_matter() -> None:
    g, p = gaussian(2, 4, 6), gaussian(2, 5, 6, seed=1)
    order_g, order_p = torch.tensor([2, 0, 3, 1]), torch.tensor([4, 1, 0, 3, 2])
    straight, _ = losses.drifting_force(g, p, RADII)
    shuffled, _ = losses.drifting_force(g[:, order_g], p[:, order_p], RADII)
    for F, G in zip(straight, shuffled, strict=True):
        assert torch.allclose(F[:, order_g], G, atol=1e-6)


@pytest.mark.parametrize(("factor", "shift"), [(1.0, 100.0), (1000.0, 0.0), (30.0, -5.0)])
def test_force_does_not_depend_on_origin_and_scale(factor: float, shift: float) -> None:
    g, p = gaussian(2, 4, 6), gaussian(2, 5, 6, seed=1)
    plain, u = losses.drifting_force(g, p, RADII)
    moved, v = losses.drifting_force(factor * g + shift, factor * p + shift, RADII)
    assert v.item() == pytest.approx(factor * u.item(), rel=1e-5)
    for F, G in zip(plain, moved, strict=True):
        assert torch.allclose(F, G, atol=2e-3 if shift else 1e-6)


def test_groups_do_not_feel_each_other() -> None:
    g, p = gaussian(2, 4, 6), gaussian(2, 5, 6, seed=1)
    mirror = torch.tensor([1.0, -1.0]).view(2, 1, 1)  # leaves every distance as it was
    plain, _ = losses.drifting_force(g, p, RADII)
    other, _ = losses.drifting_force(g * mirror, p * mirror, RADII)
    for F, G in zip(plain, other, strict=True):
        assert torch.equal(F[0], G[0])
        assert torch.allclose(F[1], -G[1], atol=1e-6)


def test_self_distance_is_masked_after_normalising_and_only_there() -> None:
    g, p = gaussian(1, 3, 4), gaussian(1, 2, 4, seed=1)
    masked, s = losses.relative_distances(g, g, p, mask_self=True)
    open_, same = losses.relative_distances(g, g, p, mask_self=False)
    assert s == same
    difference = masked - open_
    assert torch.equal(difference[0, :, :3] > 1e5, torch.eye(3, dtype=torch.bool))
    assert torch.equal(difference[0, :, 3:], torch.zeros(3, 2))
    assert losses.relative_distances(1000 * g, g * 1000, p * 1000, True)[0].max() < 1.1e6


def test_affinity_is_clamped_inside_the_root() -> None:
    relative = torch.tensor([[[0.0, 50.0], [50.0, 0.0]]])
    A = losses.affinity(relative, 0.1)
    assert torch.allclose(A, torch.tensor([[[1.0, 1e-3], [1e-3, 1.0]]]))


def test_distances_keep_their_digits_far_from_the_origin() -> None:
    x = torch.full((1, 1, 1000), 100.0)
    y = x.clone()
    y[..., 0] += 0.001
    expected = float(y[0, 0, 0]) - 100.0
    assert losses.pairwise_distances(x, y).item() == pytest.approx(expected, rel=1e-4)
    assert losses.pairwise_distances(x, x).item() == pytest.approx(1e-4)


def test_autocast_does_not_reach_the_losses() -> None:
    g, p = gaussian(2, 4, 64), gaussian(2, 5, 64, seed=1)
    plain = losses.tfd_loss({"a": g}, {"a": p}, {"a": p}, RADII, alpha=2.0)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = losses.tfd_loss({"a": g}, {"a": p}, {"a": p}, RADII, alpha=2.0)[0]
    assert torch.equal(plain, under)


def test_coverage_agrees_with_the_formula_written_out() -> None:
    g, a = gaussian(2, 3, 4, shift=1.0), gaussian(2, 4, 4, seed=1)
    to_g = (a[:, :, None] - g[:, None]).square().sum(3).sqrt()
    h = to_g.flatten().sort().values[(to_g.numel() - 1) // 2].item()
    terms = []
    for b in range(2):
        for k in range(4):
            S = sum(math.exp(-to_g[b, k, i].item() / h) for i in range(3)) / 3
            near = [(a[b, k] - a[b, j]).norm().item() for j in range(4) if j != k]
            T = sum(math.exp(-d / (2 * h)) for d in near) / 3
            terms.append(0.9 * T - S)
    loss, figures = losses.coverage_loss(g, a, alpha=0.9)
    assert loss.item() == pytest.approx(sum(max(0.0, t) for t in terms) / 8, rel=1e-5)
    assert float(figures["covered"]) == pytest.approx(sum(t <= 0 for t in terms) / 8)


def test_coverage_gradient_holds_the_bandwidth_fixed() -> None:
    g, a = gaussian(1, 2, 3, shift=2.0).requires_grad_(), gaussian(1, 3, 3, seed=1)
    a.requires_grad_()
    loss, _ = losses.coverage_loss(g, a, alpha=1.0)
    loss.backward()
    assert a.grad is None
    a.requires_grad_(False)
    expected = g.detach().clone().requires_grad_()
    d = (a[:, :, None] - expected[:, None]).square().sum(3).sqrt()
    h = d.detach().median()
    T = (-(a[:, :, None] - a[:, None]).square().sum(3).add(1e-8).sqrt() / (2 * h)).exp()
    margins = (T.sum(2) - 1) / 2 - (-d / h).exp().mean(2)
    margins.relu().mean().backward()
    assert g.grad is not None
    assert expected.grad is not None
    assert g.grad.abs().max() > 1e-3
    assert torch.allclose(g.grad, expected.grad, rtol=1e-3, atol=1e-5)


def test_samples_that_cover_the_anchors_owe_nothing() -> None:
    a = gaussian(2, 6, 4)
    covered, figures = losses.coverage_loss(a.clone(), a)
    assert covered.item() == 0.0
    assert figures["covered"] == 1.0
    two_modes = torch.cat([gaussian(1, 4, 4), gaussian(1, 4, 4, seed=1, shift=50.0)], dim=1)
    lost, figures = losses.coverage_loss(gaussian(1, 4, 4, seed=2), two_modes)
    assert lost.item() > 0.0
    assert figures["covered"] == 0.5


def test_following_the_coverage_gradient_recovers_a_lost_mode() -> None:
    two_modes = torch.cat([gaussian(1, 4, 2), gaussian(1, 4, 2, seed=1, shift=6.0)], dim=1)
    g = gaussian(1, 4, 2, seed=2).requires_grad_()
    optimizer = torch.optim.Adam([g], lr=0.2)
    for _ in range(100):
        optimizer.zero_grad()
        losses.coverage_loss(g, two_modes, alpha=0.8)[0].backward()
        optimizer.step()
    from_origin = g.detach().norm(dim=2)
    assert from_origin.min() < 1.5
    assert (g.detach() - 6.0).norm(dim=2).min() < 1.5


@pytest.mark.parametrize("start", [0.3, 3.0])
def test_drifting_teaches_a_linear_generator_mean_and_deviation(start: float) -> None:
    mean, deviation = torch.tensor([3.0, -1.0]), torch.tensor([1.0, 0.3])
    m, s = torch.zeros(2, requires_grad=True), torch.full((2,), start, requires_grad=True)
    optimizer = torch.optim.Adam([m, s], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 150)
    for step in range(150):
        p = gaussian(8, 48, 2, seed=step) * deviation + mean
        g = gaussian(8, 32, 2, seed=1000 + step) * s + m
        optimizer.zero_grad()
        losses.drifting_loss(g, p, (0.1, 0.5))[0].backward()
        optimizer.step()
        schedule.step()
    assert torch.allclose(m.detach(), mean, atol=0.05)
    assert torch.allclose(s.detach().abs(), deviation, rtol=0.05)


def test_the_objective_sums_over_layers_and_weighs_coverage() -> None:
    g = {"mid": gaussian(2, 4, 6, shift=3.0), "sample": gaussian(2, 4, 9, shift=3.0)}
    p = {"mid": gaussian(2, 3, 6, seed=1), "sample": gaussian(2, 3, 9, seed=1)}
    a = {"mid": gaussian(2, 5, 6, seed=2), "sample": gaussian(2, 5, 9, seed=2)}
    total, figures = losses.tfd_loss(g, p, a, RADII, coverage_weight=3.0, alpha=1.5)
    drift = sum(losses.drifting_loss(g[k], p[k], RADII)[0].item() for k in g)
    coverage = sum(losses.coverage_loss(g[k], a[k], 1.5)[0].item() for k in g)
    assert coverage > 0.0
    assert total.item() == pytest.approx(drift + 3 * coverage, rel=1e-5)
    kinds = {"drift", "scale", "coverage", "covered", "force"}
    assert {key.split("/")[0] for key in figures} == kinds
    assert "force/mid/r0.05" in figures
    assert len(figures) == 2 * (4 + len(RADII))


def test_without_coverage_the_anchors_are_not_looked_at() -> None:
    g, p = {"mid": gaussian(2, 4, 6)}, {"mid": gaussian(2, 3, 6, seed=1)}
    total, figures = losses.tfd_loss(g, p, {}, RADII, coverage_weight=0.0)
    assert total == losses.drifting_loss(g["mid"], p["mid"], RADII)[0]
    assert not any(key.startswith("cover") for key in figures)


def test_the_loss_stays_near_the_radii_squared_at_equality_but_the_raw_force_falls() -> None:
    radii = (0.02, 0.05, 0.1, 0.2)
    few, many = gaussian(64, 8, 64), gaussian(4, 128, 64, seed=1)
    loss_few, seen_few = losses.drifting_loss(few[:, :4], few[:, 4:], radii)
    loss_many, seen_many = losses.drifting_loss(many[:, :64], many[:, 64:], radii)
    assert 10 < loss_many.item() < 16
    assert 10 < loss_few.item() < 16
    assert float(seen_few["force/r0.2"]) == pytest.approx(0.31, abs=0.02)
    assert float(seen_many["force/r0.2"]) == pytest.approx(0.063, abs=0.01)


@pytest.mark.parametrize("radii", [(), (0.1, 0.0), (-0.2,), (math.nan,)])
def test_impossible_radii_are_refused_by_value(radii: tuple[float, ...]) -> None:
    g = gaussian(1, 2, 3)
    with pytest.raises(ValueError, match=r"radii (is empty|contains (0|-0.2|nan))"):
        losses.drifting_loss(g, g, radii)


def test_groups_too_small_are_refused_with_their_size() -> None:
    one, two = gaussian(2, 1, 3), gaussian(2, 2, 3, seed=1)
    with pytest.raises(ValueError, match="samples per group is 1: drifting needs at least 2"):
        losses.drifting_loss(one, two, RADII)
    with pytest.raises(ValueError, match="anchors per group is 1"):
        losses.coverage_loss(two, one)


def test_features_of_other_groups_or_widths_are_a_programmer_error() -> None:
    with pytest.raises(AssertionError, match="B and D differ"):
        losses.drifting_loss(gaussian(2, 4, 6), gaussian(2, 4, 7), RADII)
    with pytest.raises(AssertionError, match=r"not \[B, N, D\]"):
        losses.pairwise_distances(gaussian(4, 6), gaussian(4, 6))
