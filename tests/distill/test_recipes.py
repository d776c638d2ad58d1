"""The recipes of the real teachers, against models of their full size without weights."""

from pathlib import Path

import pytest
import torch
import yaml
from torch._subclasses.fake_tensor import FakeTensorMode

from distill.budget import dry_run
from distill.features import FeatureExtractor
from distill.outline import open_outline, outlined_condition
from distill.recipe import read_recipe
from distill.step import Randomness, features
from distill.student import level_of

RECIPES = Path(__file__).parents[2] / "recipes"
NAMES = ("sdxl", "imagenet64")
POOLED = {
    "sdxl": [81_920, 81_920, 327_680],
    "imagenet64": [24_576, 9_216, 3_072, 9_216, 24_576],
}
PARAMETERS = {"sdxl": 2_567_463_684, "imagenet64": 295_900_000}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_valid_and_names_what_it_needs(name: str) -> None:
    recipe = read_recipe(RECIPES / f"{name}.yaml")
    assert recipe.teacher.model.parent == RECIPES.parent / "models"
    text = dry_run(recipe)
    assert yaml.safe_load(text)["drift"]["radii"] == [0.02, 0.05, 0.1, 0.2]
    assert recipe.teacher.model.is_dir() or "# No budget: the teacher's directory" in text


@pytest.mark.parametrize("name", NAMES)
def test_its_layers_have_the_dimensions_of_the_paper(name: str) -> None:
    recipe = read_recipe(RECIPES / f"{name}.yaml")
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    teacher = open_outline(RECIPES / "outlines" / name, mode)
    drift = recipe.drift
    extractor = FeatureExtractor(teacher.denoiser, drift.layers, drift.pool, teacher.hidden)
    with mode, torch.no_grad():
        x = torch.empty(1, 1, *teacher.latent_shape)
        condition, sigma = outlined_condition(teacher, 1), torch.full((1,), 0.05)
        seen = features(teacher, extractor, x, condition, sigma, Randomness.of(0, 0, 0))
    assert [phi.shape[-1] for phi in seen.values()] == POOLED[name]
    count = sum(p.numel() for p in teacher.denoiser.parameters())
    assert count == pytest.approx(PARAMETERS[name], rel=1e-3)
    assert level_of(teacher, recipe) == {"sdxl": 399.0, "imagenet64": 80.0}[name]


@pytest.mark.parametrize("name", NAMES)
def test_it_says_that_it_was_not_measured(name: str) -> None:
    assert "NOT YET MEASURED BY US" in (RECIPES / f"{name}.yaml").read_text("utf-8")


def test_imagenet64_has_the_settings_of_the_paper() -> None:
    recipe = read_recipe(RECIPES / "imagenet64.yaml")
    drift, train = recipe.drift, recipe.train
    assert (drift.groups, drift.samples, drift.positives, drift.anchors) == (70, 4, 4, 4)
    assert (drift.sigma, drift.sigma_mean, drift.sigma_std) == ((0.02, 0.1), -1.2, 1.2)
    assert (train.steps, train.learning_rate, train.warmup_steps) == (200_000, 2e-6, 500)
    assert (train.betas, train.weight_decay, train.clip_norm) == ((0.9, 0.999), 0.01, 10.0)
    assert (train.ema_decay, train.precision) == (0.0, "bf16")


def test_imagenet64_reads_pictures_as_those_of_its_teacher_and_statistics_were_made() -> None:
    recipe = read_recipe(RECIPES / "imagenet64.yaml")
    assert recipe.teacher.model.name == "edm-imagenet64"
    assert recipe.positives.resize == "lanczos"  # EDM's dataset tool; its -baseline.npz is ADM's
    assert recipe.evaluate is not None
    assert recipe.evaluate.reference is not None
    assert recipe.evaluate.reference.name == "imagenet-64x64.npz"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "fits"), [("sdxl", "8"), ("imagenet64", "4")])
def test_the_budget_of_the_full_size(name: str, fits: str) -> None:
    recipe = read_recipe(RECIPES / f"{name}.yaml", [f"teacher.model=outlines/{name}"])
    text = dry_run(recipe)
    assert f"{recipe.train.parallel} (train.parallel): fits in {fits} cards of 80 GB" in text
