"""What tells of progress: the raw force against its noise floor, and what it acts on.

The drifting loss itself stays near the square of the number of radii even at equality. Below, a
figure of the student's samples stands beside the same figure of independent real samples in their
place. At the floor the two cannot be told apart; below it the samples are under-dispersed. A radius
of few targets (ess) is mostly floor: a shift shows at the wide radii first.

Keys, for every LAYER and radius r…
force/LAYER/r…    root mean square of the student's raw force
floor/LAYER/r…    the same of real samples
reach/LAYER/r…    share of a sample's softmax row that lies on positives, relative to equality;
                  near 0 a sample sees only its like, and a small force means lost, not close
ess/LAYER/r…      effective number of targets in a sample's softmax row, 1 to N − 1 + P
support/LAYER/r…  effective share of the positives that samples turn to, 1/P (all to one) to 1
covered/LAYER     share of anchors whose margin the student meets

Shapes: B groups, N student samples and N real samples each, P positives, A anchors, D numbers.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from distill.losses import (
    ALONE,
    Across,
    anchor_margins,
    drifting_force,
    layer_key,
    relative_distances,
    root_mean_square,
)


@torch.no_grad()
def diagnose(
    features_g: Mapping[str, Tensor],
    features_real: Mapping[str, Tensor],
    features_p: Mapping[str, Tensor],
    features_a: Mapping[str, Tensor],
    radii: Sequence[float],
    alpha: float = 0.5,
    across: Across = ALONE,
) -> dict[str, float]:
    """All figures by key (see the module's head), as floats for a line of statistics.

    Features by layer: [B, N, D_l], [B, N, D_l], [B, P, D_l], [B, A, D_l] with A ≥ 2; the real
    samples overlap neither positives nor anchors. The figures are of all processes' groups.
    ValueError: see `losses.drifting_force`.
    """
    figures: dict[str, Tensor] = {}
    for layer, g in features_g.items():
        real, p = features_real[layer], features_p[layer]
        assert real.shape == g.shape, f"layer {layer}: real {real.shape}, student's {g.shape}"
        seen = {
            **force_figures("force", g, p, radii, across),
            **force_figures("floor", real, p, radii, across),
            **reach_figures(g, p, radii, across),
            "covered": (anchor_margins(g, features_a[layer], alpha, across) <= 0).float().mean(),
        }
        figures |= {layer_key(name, layer): value for name, value in seen.items()}
    return {name: across.mean(value).item() for name, value in figures.items()}


def force_figures(
    name: str, x: Tensor, p: Tensor, radii: Sequence[float], across: Across = ALONE
) -> dict[str, Tensor]:
    """Root mean square of the raw force on x per radius: [B, N, D], [B, P, D] -> scalars."""
    forces, _ = drifting_force(x, p, radii, across=across)
    return {
        f"{name}/r{r:g}": root_mean_square(F, across) for r, F in zip(radii, forces, strict=True)
    }


def reach_figures(
    g: Tensor, p: Tensor, radii: Sequence[float], across: Across = ALONE
) -> dict[str, Tensor]:
    """`reach`, `ess` and `support` per radius: g [B, N, D], p [B, P, D] -> scalars."""
    N, P = g.shape[1], p.shape[1]
    relative, _ = relative_distances(g, g, p, mask_self=True, across=across)
    figures: dict[str, Tensor] = {}
    for r in radii:
        rows = (-relative / r).softmax(dim=2)  # [B, N, N+P]
        turned_to = (-relative[:, :, N:] / r).softmax(dim=2).sum(dim=1)  # [B, P]
        figures[f"reach/r{r:g}"] = rows[:, :, N:].sum(dim=2).mean() * (N - 1 + P) / P
        figures[f"ess/r{r:g}"] = effective_number(rows).mean()
        figures[f"support/r{r:g}"] = effective_number(turned_to).mean() / P
    return figures


def effective_number(weights: Tensor) -> Tensor:
    """Kish's effective sample size (Σw)² / Σw² along the last axis: [..., M] -> [...], 1 to M."""
    return weights.sum(dim=-1).square() / weights.square().sum(dim=-1)
