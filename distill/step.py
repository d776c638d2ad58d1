"""One micro-batch of the method: what is drawn, what is generated, and the loss (arXiv 2605.07327).

All randomness is a function of (seed, step, micro-batch). One of several processes draws all of it
too, and keeps what belongs to its own groups.

Shapes: B groups (of this process), N student samples, P positives and A anchors per group;
c x h x w latents.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from distill.data import Draw, Samples, draw
from distill.diagnostics import diagnose
from distill.feature_cache import FeatureCache
from distill.features import FeatureExtractor
from distill.losses import ALONE, Across, tfd_loss
from distill.noise import sample_sigma
from distill.processes import Share
from distill.recipe import Drift, Recipe
from distill.student import level_of
from distill.teachers.teacher import Condition, Teacher


@dataclass(frozen=True)
class Randomness:
    """The random numbers of one micro-batch, from (seed, step, micro-batch) alone."""

    arrays: np.random.Generator
    tensors: torch.Generator
    share: Share | None = None  # which groups are this process's; None: all

    @classmethod
    def of(cls, seed: int, step: int, micro: int, share: Share | None = None) -> Randomness:
        arrays = np.random.default_rng([seed, step, micro])
        seeded = torch.Generator("cpu").manual_seed(int(arrays.integers(2**62)))
        return cls(arrays, seeded, share)

    @property
    def own(self) -> slice:
        """Which groups are this process's."""
        return slice(None) if self.share is None else self.share.own

    def normal(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Numbers for the samples of this process's groups: [B * K, ...]."""
        if self.share is None:
            return torch.randn(shape, generator=self.tensors).to(device)
        assert shape[0] % len(self.share) == 0, (shape, self.share)
        each = (self.share.groups, shape[0] // len(self.share), *shape[1:])
        drawn = torch.randn(each, generator=self.tensors)[self.own]
        return drawn.flatten(0, 1).to(device)


def micro_batch(
    teacher: Teacher,
    student: nn.Module,
    extractor: FeatureExtractor,
    samples: Samples,
    recipe: Recipe,
    randomness: Randomness,
    across: Across = ALONE,
    cache: FeatureCache | None = None,
) -> tuple[Tensor, dict[str, float | Tensor]]:
    """Loss and figures of `groups` conditions, or of this process's share of them.

    With a `cache` the features of positives and anchors are read instead of computed.
    """
    drift = recipe.drift
    counts = (drift.positives, drift.anchors)
    drawn = draw(samples, drift.groups, counts, randomness.arrays, randomness.own)
    generated = generate(teacher, student, drawn.conditions, recipe, randomness)
    both = torch.cat(drawn.parts, dim=1)
    if cache is not None:
        which = torch.from_numpy(randomness.arrays.integers(cache.draws, size=drift.groups))
        which = which[randomness.own]
        sigma = cache.sigma(drawn.choice, which).to(teacher.device)
        kept = cache.read(drawn.choice, which, both)
        features_both = {layer: phi.to(teacher.device) for layer, phi in kept.items()}
    else:
        sigma = step_sigma(drift, randomness).to(teacher.device)
    features_g = features(teacher, extractor, generated, drawn.conditions, sigma, randomness)
    if cache is None:
        # Two passes are the fewest: one keeps its graph, the other need not and so costs a third.
        with torch.no_grad():
            features_both = features(teacher, extractor, both, drawn.conditions, sigma, randomness)
    return tfd_loss(
        features_g,
        {layer: phi[:, : drift.positives] for layer, phi in features_both.items()},
        {layer: phi[:, drift.positives :] for layer, phi in features_both.items()},
        drift.radii,
        drift.coverage_weight,
        drift.coverage_alpha,
        across,
    )


def generate(
    teacher: Teacher,
    student: nn.Module,
    conditions: Condition,
    recipe: Recipe,
    randomness: Randomness,
) -> Tensor:
    """Student samples x = G(z, c) of every group: [B, N, c, h, w] float32, with their graph."""
    N = recipe.drift.samples
    repeated = conditions.repeated(N).to(teacher.device)
    noise = randomness.normal((len(repeated), *teacher.latent_shape), teacher.device)
    half = recipe.train.precision == "bf16"
    with torch.autocast(teacher.device.type, dtype=torch.bfloat16, enabled=half):
        x = teacher.one_step(student, noise, level_of(teacher, recipe), repeated)
    return x.view(-1, N, *teacher.latent_shape)


def step_sigma(drift: Drift, randomness: Randomness) -> Tensor:
    """One feature noise level per group, shared by its samples, positives and anchors: [B]."""
    drawn = sample_sigma(
        randomness.tensors, drift.groups, drift.sigma_mean, drift.sigma_std, *drift.sigma
    )
    return drawn[randomness.own]


def features(
    teacher: Teacher,
    extractor: FeatureExtractor,
    x: Tensor,
    conditions: Condition,
    sigma: Tensor,
    randomness: Randomness,
) -> dict[str, Tensor]:
    """φ_l of clean latents x [B, K, c, h, w], noised to the group's sigma [B]: {l: [B·L, K, D_l]}.

    Independent noise per sample, the group's own condition, float32 throughout. Each of a layer's L
    windows (1 for a whole layer) makes groups of its own: samples meet only at the same place.
    """
    B, K = x.shape[:2]
    flat = x.to(teacher.device).flatten(0, 1)
    noise = randomness.normal(tuple(flat.shape), teacher.device)
    repeated = conditions.repeated(K).to(teacher.device)
    run = teacher.feature_pass(flat, noise, sigma.repeat_interleave(K), repeated)
    with torch.autocast(teacher.device.type, enabled=False):
        phi = extractor(run, flat)
    return {
        layer: value.view(B, K, *value.shape[1:]).transpose(1, 2).flatten(0, 1)
        for layer, value in phi.items()
    }


@torch.no_grad()
def diagnostics(
    teacher: Teacher,
    student: nn.Module,
    extractor: FeatureExtractor,
    samples: Samples,
    recipe: Recipe,
    step: int,
    share: Share | None = None,
    across: Across = ALONE,
) -> dict[str, float]:
    """Raw forces against their floor and the like (see `diagnostics`), on draws of their own.

    Left out where prompts have too few samples for N real ones beside positives and anchors.
    """
    drift = recipe.drift
    counts = (drift.positives, drift.anchors, drift.samples)
    if min(len(members) for members in samples.members) < sum(counts):
        return {}
    randomness = Randomness.of(recipe.train.seed, step, recipe.train.accumulate, share)
    drawn: Draw = draw(samples, drift.groups, counts, randomness.arrays, randomness.own)
    generated = generate(teacher, student, drawn.conditions, recipe, randomness)
    sigma = step_sigma(drift, randomness).to(teacher.device)
    positives, anchors, real, own = (
        features(teacher, extractor, x, drawn.conditions, sigma, randomness)
        for x in (*drawn.parts, generated)
    )
    return diagnose(own, real, positives, anchors, drift.radii, drift.coverage_alpha, across)
