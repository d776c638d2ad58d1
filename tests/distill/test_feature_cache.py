"""Cached features: what a live pass would give for the same draws; made once; part of training."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import (
    LAYERS,
    PROMPTS,
    different_files,
    tiny_recipe,
    tiny_samples,
    watched,
)

from distill.data import Samples, choose, draw
from distill.feature_cache import FeatureCache, fixed_noise, open_feature_cache
from distill.features import FeatureExtractor
from distill.recipe import Recipe, RecipeError
from distill.run import distil
from distill.stats import whole_lines
from distill.step import Randomness, micro_batch
from distill.student import make_student
from distill.teachers.sdxl import SdxlTeacher

WITH_SAMPLE = ("sample/4", *LAYERS)


@pytest.fixture
def caching(tiny_sdxl: Path, tmp_path: Path) -> Recipe:
    layers = f"drift.layers=[{', '.join(WITH_SAMPLE)}]"
    return tiny_recipe(tmp_path, tiny_sdxl, "drift.cached_draws=3", layers)


def opened(teacher: SdxlTeacher, samples: Samples, recipe: Recipe) -> FeatureCache:
    cache = open_feature_cache(teacher, samples, recipe, lambda text: None)
    assert cache is not None
    return cache


def shared(samples: Samples) -> Samples:
    """The same, the second prompt also having members of the first, in another order."""
    both = torch.cat([samples.members[1], samples.members[0].flip(0)])
    return replace(samples, members=(samples.members[0], both, samples.members[2]))


def test_what_is_read_is_what_a_live_pass_gives_for_the_same_draws(
    teacher: SdxlTeacher, samples: Samples, caching: Recipe
) -> None:
    samples, drift = shared(samples), caching.drift
    cache = opened(teacher, samples, caching)
    drawn = draw(samples, 3, (4, 2), np.random.default_rng(1))
    which, both = torch.tensor([2, 0, 1]), torch.cat(drawn.parts, dim=1)
    read = cache.read(drawn.choice, which, both)
    extractor = FeatureExtractor(teacher.denoiser, drift.layers, drift.pool, teacher.hidden)
    sigma = cache.sigma(drawn.choice, which)
    starts = np.cumsum([0, *map(len, samples.members)])
    for b, (prompt, rows) in enumerate(
        zip(drawn.choice.prompts.tolist(), torch.cat(drawn.choice.rows, 1).tolist(), strict=True)
    ):
        places = [int(starts[prompt]) + samples.members[prompt].tolist().index(r) for r in rows]
        noise = torch.stack([fixed_noise(0, m, (3, 4, 8, 8))[which[b]] for m in places])
        condition = samples.conditions[torch.full((6,), prompt)]
        run = teacher.feature_pass(both[b], noise, sigma[b].repeat(6), condition)
        for layer, phi in extractor(run, both[b]).items():
            windows = phi.shape[1]
            kept = read[layer].view(3, windows, 6, -1)[b].transpose(0, 1)
            assert torch.allclose(kept, phi, rtol=1e-4, atol=1e-5), layer


def test_levels_differ_by_prompt_and_draw_and_keep_to_their_range(
    teacher: SdxlTeacher, samples: Samples, caching: Recipe
) -> None:
    sigmas = opened(teacher, samples, caching).sigmas
    assert sigmas.shape == (len(PROMPTS), 3)
    assert ((sigmas >= 0.02) & (sigmas <= 0.1)).all()
    assert len(sigmas[(sigmas > 0.02) & (sigmas < 0.1)].unique()) > 5


def test_a_step_runs_the_teacher_on_its_own_samples_alone(
    tiny_sdxl: Path, samples: Samples, caching: Recipe
) -> None:
    passes: list[tuple[int, list[float]]] = []
    teacher = watched(tiny_sdxl, lambda x, n, s, c: passes.append((len(x), s.tolist())))
    drift, cache = caching.drift, opened(teacher, samples, caching)
    assert sum(count for count, _ in passes) == 3 * 30  # all members at their three draws
    passes.clear()
    extractor = FeatureExtractor(teacher.denoiser, drift.layers, drift.pool, teacher.hidden)
    given = (teacher, make_student(teacher), extractor, samples, caching)
    loss, _ = micro_batch(*given, Randomness.of(0, 0, 0), cache=cache)
    loss.backward()  # type: ignore[no-untyped-call]
    prompts = choose(samples, 2, (4, 2), Randomness.of(0, 0, 0).arrays).prompts
    assert [count for count, _ in passes] == [2 * 3]  # two groups of three, and nothing else
    for prompt, level in zip(prompts, passes[0][1][::3], strict=True):
        assert level in cache.sigmas[prompt].tolist()


def test_it_is_made_once_and_again_for_other_samples(
    tiny_sdxl: Path, samples: Samples, caching: Recipe
) -> None:
    passes, told = list[int](), list[str]()
    teacher = watched(tiny_sdxl, lambda x, n, s, c: passes.append(len(x)))
    opened(teacher, samples, caching)
    made = len(passes)
    assert made > 0
    opened(teacher, samples, caching)
    assert len(passes) == made
    other = tiny_samples(teacher, scale=2.0)
    open_feature_cache(teacher, other, caching, told.append)
    assert len(passes) == 2 * made
    assert "were of another samples_sha256; they are made again" in told[0]


def test_training_with_cached_features_repeats_bit_for_bit_after_a_break(
    tiny_sdxl: Path, tmp_path: Path
) -> None:
    changes = ("drift.cached_draws=2", "train.accumulate=1")
    recipe = tiny_recipe(tmp_path, tiny_sdxl, *changes)
    student = distil(recipe, lambda text: None)
    whole = [*whole_lines(recipe.run / "stats.jsonl")]
    student.rename(tmp_path / "whole")
    shutil.rmtree(recipe.run / "checkpoints" / "step-00000006")
    distil(recipe, lambda text: None)
    assert [*whole_lines(recipe.run / "stats.jsonl")] == whole
    assert len(whole) == 6
    assert different_files(tmp_path / "whole", student) == []


def test_without_it_nothing_is_kept(teacher: SdxlTeacher, samples: Samples, recipe: Recipe) -> None:
    assert open_feature_cache(teacher, samples, recipe, print) is None
    assert not (recipe.run / "features").exists()


def test_a_negative_number_of_draws_is_refused(tiny_sdxl: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"drift\.cached_draws is -1: .*greater than or equal"):
        tiny_recipe(tmp_path, tiny_sdxl, "drift.cached_draws=-1")


def test_layers_of_the_sample_alone_need_no_pass(
    tiny_sdxl: Path, samples: Samples, tmp_path: Path
) -> None:
    teacher = watched(tiny_sdxl, lambda x, n, s, c: pytest.fail("the teacher was run"))
    recipe = tiny_recipe(tmp_path, tiny_sdxl, "drift.cached_draws=2", "drift.layers=[sample]")
    cache = opened(teacher, samples, recipe)
    drawn = draw(samples, 2, (4, 2), np.random.default_rng(1))
    both = torch.cat(drawn.parts, dim=1)
    read = cache.read(drawn.choice, torch.tensor([0, 1]), both)
    assert torch.equal(read["sample"], both.flatten(2))
