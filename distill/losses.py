"""Teacher-Feature Drifting: the drifting loss, the coverage loss and their sum over layers.

Pure functions of features; no network lives here. Sources: Teacher-Feature Drifting, arXiv
2605.07327 (TFD), on top of Generative Modeling via Drifting, arXiv 2602.04770 (Drifting); the
docstrings name the part meant. All is computed in float32 (float64 features stay float64),
whatever autocast is in force.

Shapes                              Symbols
B  groups (conditions) of a step    g, p, a  features of student samples, positives, anchors
N  student samples per group        d        Euclidean distance of two feature vectors
P  positives per group              s        mean distance over the batch, detached
A  anchors per group                u        s / sqrt(D): features g/u have distances near sqrt(D)
D  numbers in a feature vector      r        radius of the kernel, in units of s
R  radii                            A⁻, A⁺   affinities of samples to samples, to positives
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Figures = dict[str, float | Tensor]

MIN_DISTANCE = 1e-4  # the root of the clamp on the squared distance, 1e-8
MIN_SCALE = 1e-3
MIN_AFFINITY_SQUARED = 1e-6
MIN_RMS = 1e-6  # a force of rounding errors alone stays near zero
SELF_DISTANCE = 1e6


def unchanged(x: Tensor) -> Tensor:
    """What a lone process has of all processes: its own."""
    return x


@dataclass(frozen=True)
class Across:
    """How figures of one process's groups become figures of the groups of all processes.

    `mean` takes a detached scalar that is a mean over groups; `rows` a detached tensor [B, ...], of
    which it gives all processes' rows in the order of the groups.
    """

    mean: Callable[[Tensor], Tensor] = unchanged
    rows: Callable[[Tensor], Tensor] = unchanged


ALONE = Across()


def pairwise_distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances within each group, never below 1e-4.

    x [B, N, D], y [B, M, D] -> [B, N, M]. By differences, not by the matrix product: the
    sum |x|² + |y|² − 2xy cancels where long vectors lie close, which is where the kernel looks.
    """
    check_shapes(x, y)
    d = torch.cdist(precise(x), precise(y), compute_mode="donot_use_mm_for_euclid_dist")
    return d.clamp(min=MIN_DISTANCE)


def relative_distances(
    x: Tensor, g: Tensor, p: Tensor, mask_self: bool, across: Across = ALONE
) -> tuple[Tensor, Tensor]:
    """Distances in units of their mean, and that mean (Drifting: normalisation of features).

    x [B, N, D], g [B, M, D], p [B, P, D] -> d/s [B, N, M+P] and s, a scalar. `mask_self` puts a
    sample out of its own reach (x and g are then the same points).
    """
    check_shapes(g, p)
    d = pairwise_distances(x, torch.cat([g, p], dim=1))
    s = across.mean(d.mean())
    d = d / s.clamp(min=MIN_SCALE)
    if mask_self:
        d[:, :, : g.shape[1]] += SELF_DISTANCE * torch.eye(x.shape[1], device=d.device)
    return d, s


def affinity(relative: Tensor, radius: float) -> Tensor:
    """A = sqrt(softmax over targets · softmax over samples) (Drifting: the kernel).

    relative [B, N, M] -> [B, N, M]. The clamp at 1e-6 lies inside the root.
    """
    logits = -relative / radius
    product = logits.softmax(dim=2) * logits.softmax(dim=1)
    return product.clamp(min=MIN_AFFINITY_SQUARED).sqrt()


def weighted_force(A: Tensor, g: Tensor, p: Tensor) -> Tensor:
    """Attraction by the positives less repulsion by the samples (Drifting: the drifting field).

    A [B, N, M+P], g [B, M, D], p [B, P, D] -> [B, N, D]. Each half is weighted by the other half's
    row sum, so both carry the same total; the point's own position then cancels, and only an origin
    near the points is needed, for precision.
    """
    A_neg, A_pos = A[:, :, : g.shape[1]], A[:, :, g.shape[1] :]
    w_pos = A_pos * A_neg.sum(dim=2, keepdim=True)
    w_neg = A_neg * A_pos.sum(dim=2, keepdim=True)
    origin = torch.cat([g, p], dim=1).mean(dim=1, keepdim=True)
    return w_pos @ (p - origin) - w_neg @ (g - origin)


@torch.no_grad()
def drifting_force(
    g: Tensor,
    p: Tensor,
    radii: Sequence[float],
    at: Tensor | None = None,
    across: Across = ALONE,
) -> tuple[list[Tensor], Tensor]:
    """The raw force of every radius, not normalised, and the scale u; neither carries a gradient.

    g [B, N, D], p [B, P, D] -> R forces [B, N, D] in scaled features, u a scalar. With `at`
    [B, K, D] the field is read at those points instead, none of them masked from itself.
    ValueError: no radius, a radius that is not positive, or a group of one sample.
    """
    check_radii(radii)
    if at is None and g.shape[1] < 2:
        raise ValueError(f"samples per group is {g.shape[1]}: drifting needs at least 2")
    with torch.autocast(g.device.type, enabled=False):
        g, p = precise(g), precise(p)
        x = g if at is None else precise(at)
        relative, s = relative_distances(x, g, p, mask_self=at is None, across=across)
        u = (s / g.shape[2] ** 0.5).clamp(min=MIN_SCALE)
        return [weighted_force(affinity(relative, r), g / u, p / u) for r in radii], u


def drifting_loss(
    g: Tensor, p: Tensor, radii: Sequence[float], across: Across = ALONE
) -> tuple[Tensor, Figures]:
    """One layer's drifting loss ‖g/u − sg(g/u + F)‖² (Drifting: the training objective).

    g [B, N, D] with its graph, p [B, P, D] -> scalar, figures `scale` and `force/r…`. F is the sum
    over radii of forces divided by their own root mean square; the loss is the mean over samples
    and elements. Its value stays near R² even at equality; the raw force tells of progress.
    """
    forces, u = drifting_force(g, p.detach(), radii, across=across)
    rms = [root_mean_square(F, across) for F in forces]
    F = torch.stack([f / m.clamp(min=MIN_RMS) for f, m in zip(forces, rms, strict=True)]).sum(dim=0)
    with torch.autocast(g.device.type, enabled=False):
        scaled = precise(g) / u
        loss = (scaled - (scaled + F).detach()).square().mean()
    figures: Figures = {f"force/r{r:g}": m for r, m in zip(radii, rms, strict=True)}
    return loss, {"scale": u, **figures}


def anchor_margins(g: Tensor, a: Tensor, alpha: float, across: Across = ALONE) -> Tensor:
    """α T_k − S_k of every anchor: above zero where the student leaves it uncovered (TFD).

    g [B, N, D], a [B, A, D] -> [B, A]. S_k is the anchor's support by the samples with bandwidth h,
    T_k by the other anchors with 2h; h is the median anchor-to-sample distance, detached.
    """
    A = a.shape[1]
    to_samples = pairwise_distances(a, g)
    h = across.rows(to_samples.detach()).median()
    S = (-to_samples / h).exp().mean(dim=2)
    others = (-pairwise_distances(a, a) / (2 * h)).exp() * (1 - torch.eye(A, device=a.device))
    T = others.sum(dim=2) / (A - 1)
    return alpha * T - S


def coverage_loss(
    g: Tensor, a: Tensor, alpha: float = 0.5, across: Across = ALONE
) -> tuple[Tensor, Figures]:
    """One layer's anchor-margin loss mean_k max(0, α T_k − S_k) (TFD: mode coverage).

    g [B, N, D] with its graph, a [B, A, D] -> scalar, figure `covered` (share of anchors whose
    margin is met). ValueError: fewer than 2 anchors per group.
    """
    if a.shape[1] < 2:
        raise ValueError(f"anchors per group is {a.shape[1]}: the coverage loss needs at least 2")
    with torch.autocast(g.device.type, enabled=False):
        margins = anchor_margins(precise(g), precise(a.detach()), alpha, across)
    return margins.relu().mean(), {"covered": (margins.detach() <= 0).float().mean()}


def tfd_loss(
    features_g: Mapping[str, Tensor],
    features_p: Mapping[str, Tensor],
    features_a: Mapping[str, Tensor],
    radii: Sequence[float],
    coverage_weight: float = 1.0,
    alpha: float = 0.5,
    across: Across = ALONE,
) -> tuple[Tensor, Figures]:
    """The whole objective: drifting plus weighted coverage, summed over layers (TFD: objective).

    Features by layer: [B, N, D_l], [B, P, D_l], [B, A, D_l] -> scalar, figures `drift/LAYER`,
    `scale/LAYER`, `force/LAYER/r…`, `coverage/LAYER`, `covered/LAYER`. With a weight of 0 the
    anchors are not looked at. With several processes the scale s, the forces' root mean squares and
    the bandwidth h are those of all their groups; the scalar is the mean over this process's own.
    ValueError: see `drifting_loss` and `coverage_loss`.
    """
    assert features_g, "tfd_loss got no layer"
    assert features_g.keys() == features_p.keys(), f"{[*features_g]} against {[*features_p]}"
    terms: list[Tensor] = []
    figures: Figures = {}
    for layer, g in features_g.items():
        drift, seen = drifting_loss(g, features_p[layer], radii, across)
        terms.append(drift)
        seen["drift"] = drift.detach()
        if coverage_weight != 0:
            coverage, covered = coverage_loss(g, features_a[layer], alpha, across)
            terms.append(coverage_weight * coverage)
            seen |= {**covered, "coverage": coverage.detach()}
        figures |= {layer_key(name, layer): value for name, value in seen.items()}
    return torch.stack(terms).sum(), figures


def layer_key(name: str, layer: str) -> str:
    """A figure's name with its layer put in: force/r0.05 of mid_block is force/mid_block/r0.05."""
    head, _, tail = name.partition("/")
    return f"{head}/{layer}/{tail}" if tail else f"{head}/{layer}"


def precise(x: Tensor) -> Tensor:
    """At least float32: half precision is widened, float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def root_mean_square(x: Tensor, across: Across = ALONE) -> Tensor:
    """Root mean square over every element, of all processes: any shape -> scalar."""
    return across.mean(x.square().mean()).sqrt()


def check_shapes(x: Tensor, y: Tensor) -> None:
    """Assert that both are [B, any, D]."""
    assert x.ndim == y.ndim == 3, f"features have shapes {x.shape} and {y.shape}, not [B, N, D]"
    assert x.shape[::2] == y.shape[::2], f"B and D differ: {x.shape} against {y.shape}"


def check_radii(radii: Sequence[float]) -> None:
    """ValueError unless there is at least one radius and all are above 0."""
    if not radii:
        raise ValueError("radii is empty: name at least one radius above 0")
    for r in radii:
        if not r > 0:
            raise ValueError(f"radii contains {r:g}: every radius must be above 0")
