"""Features of positives and anchors, computed once: a step runs the teacher for its samples alone.

Every prompt has K fixed noise levels, and every sample of it K fixed noises, one at each level. A
group draws one of the K for all its positives and anchors; its student samples are noised to that
level too, with fresh noise.

    FOLDER/index.json               what the rows are of
           shard-00000.safetensors  by layer [members · K, L, D_l], K rows a member of a prompt

The layer `sample` is the latent itself, which the samples hold already; it is not stored.

Shapes: B groups, M samples read of each; L windows and D_l numbers of a layer; c x h x w latents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from distill.data import Choice, Samples
from distill.features import SAMPLE, FeatureExtractor, split_name, windows
from distill.noise import sample_sigma
from distill.recipe import Drift, Recipe
from distill.shards import StoredRows, begin, open_shard, shard_path, write_shard
from distill.teachers.teacher import Teacher

Report = Callable[[str], None]
SIGMAS, NOISES = 1, 2  # what a fixed random stream is for
BATCHES = 8  # of a shard
PROBED = 64  # latents that the index holds the digest of


@dataclass(frozen=True)
class FeatureCache:
    """Features of every member of every prompt at K noise draws; read from the disk as needed."""

    layers: tuple[str, ...]
    sigmas: Tensor  # [prompts, K]
    members: tuple[Tensor, ...]  # as the samples'
    starts: Tensor  # [prompts], how many members earlier prompts have
    rows: dict[str, StoredRows]  # by stored layer [members · K, L, D_l]

    @property
    def draws(self) -> int:
        """K."""
        return self.sigmas.shape[1]

    def sigma(self, choice: Choice, which: Tensor) -> Tensor:
        """The noise level of draw `which` [B] of the chosen prompts: [B]."""
        return self.sigmas[choice.prompts, which]

    def read(self, choice: Choice, which: Tensor, latents: Tensor) -> dict[str, Tensor]:
        """φ_l of what was chosen, at draw `which` [B] of each group: {l: [B·L, M, D_l]}.

        latents [B, M, c, h, w] are the chosen samples themselves, all parts one after the other.
        """
        B, M = latents.shape[:2]
        index = self._members_of(choice) * self.draws + which[:, None]
        found = {}
        for layer in self.layers:
            if is_stored(layer):
                phi = self.rows[layer][index]
            else:
                _, window = split_name(layer)
                phi = windows(layer, latents.flatten(0, 1).float(), window)
                phi = phi.view(B, M, *phi.shape[1:])
            found[layer] = phi.transpose(1, 2).flatten(0, 1)
        return found

    def _members_of(self, choice: Choice) -> Tensor:
        """The numbers of the chosen samples among all members of all prompts: [B, M]."""
        numbers = [
            self.starts[prompt] + (self.members[prompt] == rows[:, None]).int().argmax(dim=1)
            for prompt, rows in zip(choice.prompts, torch.cat(choice.rows, dim=1), strict=True)
        ]
        return torch.stack(numbers)


def is_stored(layer: str) -> bool:
    """False of the latent itself, which the samples hold already."""
    return split_name(layer)[0] != SAMPLE


def open_feature_cache(
    teacher: Teacher, samples: Samples, recipe: Recipe, report: Report
) -> FeatureCache | None:
    """The cache of a recipe, made as far as it is not made yet; None if it asks for none."""
    drift = recipe.drift
    if not drift.cached_draws:
        return None
    folder = recipe.run / "features"
    if other := begin(folder, facts(teacher, samples, recipe)):
        report(f"features {folder} were of another {', '.join(other)}; they are made again")
    sizes = torch.tensor([len(members) for members in samples.members])
    sigmas = fixed_sigmas(drift, recipe.train.seed, len(sizes))
    starts = sizes.cumsum(0) - sizes
    stored = tuple(layer for layer in drift.layers if is_stored(layer))
    rows: dict[str, StoredRows] = {}
    if stored:
        paths = list(make_shards(teacher, samples, recipe, stored, sigmas, folder))
        opened = [open_shard(path) for path in paths]
        rows = {layer: StoredRows([shard[layer] for shard in opened]) for layer in stored}
        report(f"features {folder}: {int(sizes.sum())} samples, {drift.cached_draws} draws each")
    return FeatureCache(drift.layers, sigmas, samples.members, starts, rows)


def make_shards(
    teacher: Teacher,
    samples: Samples,
    recipe: Recipe,
    layers: tuple[str, ...],
    sigmas: Tensor,
    folder: Path,
) -> Iterator[Path]:
    """Makes the missing shards and names all, in order."""
    extractor = FeatureExtractor(teacher.denoiser, layers, recipe.drift.pool, teacher.hidden)
    sizes = torch.tensor([len(members) for members in samples.members])
    prompts = torch.arange(len(sizes)).repeat_interleave(sizes)
    latents = torch.cat(samples.members)
    batch, width = members_of_batch(recipe), members_of_shard(recipe)
    starts = range(0, len(latents), width)
    for number, first in enumerate(tqdm(starts, desc="features", unit="shard", disable=None)):
        path = shard_path(folder, number)
        if not path.is_file():
            members = torch.arange(first, min(first + width, len(latents)))
            parts = [
                features_of(teacher, samples, extractor, prompts, latents, sigmas, recipe, some)
                for some in torch.split(members, batch)
            ]
            write_shard(path, {name: torch.cat([part[name] for part in parts]) for name in layers})
        yield path


def members_of_batch(recipe: Recipe) -> int:
    """Members that go through the teacher at once, each at all of its draws."""
    return max(1, recipe.positives.batch // recipe.drift.cached_draws)


def members_of_shard(recipe: Recipe) -> int:
    return BATCHES * members_of_batch(recipe)


@torch.no_grad()
def features_of(
    teacher: Teacher,
    samples: Samples,
    extractor: FeatureExtractor,
    prompts: Tensor,
    latents: Tensor,
    sigmas: Tensor,
    recipe: Recipe,
    members: Tensor,
) -> dict[str, Tensor]:
    """φ_l of members [m] at each of their K draws: {l: [m·K, L, D_l]} on the CPU.

    prompts, latents [members]: the prompt of each member, and its row among the latents.
    """
    K = sigmas.shape[1]
    x = samples.latents[latents[members]].repeat_interleave(K, 0).to(teacher.device)
    shape = (K, *x.shape[1:])
    noise = torch.cat([fixed_noise(recipe.train.seed, int(m), shape) for m in members])
    condition = samples.conditions[prompts[members]].repeated(K).to(teacher.device)
    sigma = sigmas[prompts[members]].flatten().to(teacher.device)
    run = teacher.feature_pass(x, noise.to(teacher.device), sigma, condition)
    with torch.autocast(teacher.device.type, enabled=False):
        return {layer: phi.cpu() for layer, phi in extractor(run, x).items()}


def fixed_sigmas(drift: Drift, seed: int, prompts: int) -> Tensor:
    """K noise levels of every prompt, a function of the seed: [prompts, K]."""
    K = drift.cached_draws
    drawn = sample_sigma(
        stream(seed, SIGMAS, 0), prompts * K, drift.sigma_mean, drift.sigma_std, *drift.sigma
    )
    return drawn.view(prompts, K)


def fixed_noise(seed: int, member: int, shape: tuple[int, ...]) -> Tensor:
    """The noises of one member, a function of the seed and its number: [K, c, h, w]."""
    return torch.randn(shape, generator=stream(seed, NOISES, member))


def stream(seed: int, purpose: int, number: int) -> torch.Generator:
    """A generator of its own for each purpose and number."""
    # Four numbers, where those of the training steps are made of three: no stream is both.
    mixed = np.random.default_rng([seed, purpose, number, 0xF]).integers(2**62)
    return torch.Generator("cpu").manual_seed(int(mixed))


def facts(teacher: Teacher, samples: Samples, recipe: Recipe) -> dict[str, object]:
    """What the features are of."""
    drift = recipe.drift
    digest = hashlib.sha256()
    for members in samples.members:
        digest.update(members.numpy().tobytes())
    probed = torch.linspace(0, len(samples.latents) - 1, PROBED).long()
    digest.update(samples.latents[probed].float().numpy().tobytes())
    return {
        "teacher_sha256": teacher.sampling_digest(),
        "prompts_sha256": hashlib.sha256("\n".join(samples.prompts).encode()).hexdigest(),
        "samples_sha256": digest.hexdigest(),
        "layers": list(drift.layers),
        "pool": drift.pool,
        "sigma": [*drift.sigma, drift.sigma_mean, drift.sigma_std],
        "cached_draws": drift.cached_draws,
        "batch": recipe.positives.batch,
        "seed": recipe.train.seed,
    }
