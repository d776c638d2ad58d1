"""The check of the data: real pictures as training reads them, against the reference."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_protocol import coco_recipe
from tiny_training import CPU, silent

from distill.data import DataError
from distill.feature_networks import load_inception
from distill.presets import preset_of
from distill.recipe import Recipe, RecipeError
from distill.reference import KEPT, real_statistics
from distill.reference_check import check_reference, verdict


def class_recipe(folder: Path, model: Path, reference: str, **changes: object) -> Recipe:
    own = {"preset": "imagenet64", "prompts": None, "clip": None, "reference": reference}
    return coco_recipe(folder, model, **{**own, **changes})


@pytest.fixture
def reference(tmp_path: Path, tiny_sdxl: Path) -> str:
    """Statistics of the real pictures as training reads them, kept as a file."""
    np.savez(tmp_path / "zero.npz", mu=np.zeros(6), sigma=np.eye(6))
    recipe = class_recipe(tmp_path, tiny_sdxl, "zero.npz", images=12)
    assert check_reference(recipe, silent)["alike"] is False
    assert recipe.evaluate is not None
    inception = load_inception(recipe.evaluate.inception, CPU)
    real_statistics(recipe, recipe.evaluate.real, preset_of(recipe.evaluate), inception, silent)
    (recipe.run / KEPT).rename(tmp_path / "own.npz")
    return "own.npz"


def test_pictures_are_at_no_distance_from_their_own_statistics(
    tmp_path: Path, tiny_sdxl: Path, reference: str
) -> None:
    lines: list[str] = []
    recipe = class_recipe(tmp_path, tiny_sdxl, reference, images=12)
    result = check_reference(recipe, lines.append)
    assert result == {"fid": pytest.approx(0, abs=1e-6), "images": 12, "alike": True}
    assert lines == [f"FID of 12 real pictures of {tmp_path / 'real'} against the reference: 0.00"]
    kept = json.loads((recipe.run / "reference-check.json").read_text())
    assert kept == result


def test_no_more_pictures_are_read_than_the_recipe_asks_for(
    tmp_path: Path, tiny_sdxl: Path, reference: str
) -> None:
    few = class_recipe(tmp_path, tiny_sdxl, reference, images=7)
    assert check_reference(few, silent)["images"] == 7


def test_pictures_of_another_kind_are_warned_of() -> None:
    said = verdict(12.0, 50_000, Path("pictures"))
    assert said.startswith("warning: FID of 50000 real pictures of pictures against the reference:")
    assert "12.00, above 1: pictures prepared like that are not the reference's" in said
    assert "(500 are few: 10000 or more tell better)" in verdict(12.0, 500, Path("pictures"))


def test_the_pictures_of_training_are_checked_where_it_reads_pictures(
    tmp_path: Path, tiny_sdxl: Path
) -> None:
    np.savez(tmp_path / "zero.npz", mu=np.zeros(6), sigma=np.eye(6))
    recipe = class_recipe(tmp_path, tiny_sdxl, "zero.npz", real=None)
    with pytest.raises(RecipeError, match=r"positives\.folder or evaluate\.real"):
        check_reference(recipe, silent)
    update = {"source": "images", "folder": tmp_path / "real" / "odd"}
    positives = recipe.positives.model_copy(update=update)
    trained = recipe.model_copy(update={"positives": positives})
    lines: list[str] = []
    assert check_reference(trained, lines.append)["images"] == 6
    assert "real/odd against" in lines[0]


def test_a_check_without_a_reference_or_of_another_network_is_refused(
    tmp_path: Path, tiny_sdxl: Path
) -> None:
    with pytest.raises(RecipeError, match=r"needs evaluate\.preset and evaluate\.reference"):
        check_reference(coco_recipe(tmp_path, tiny_sdxl), silent)
    np.savez(tmp_path / "wide.npz", mu=np.zeros(9), sigma=np.eye(9))
    with pytest.raises(DataError, match=r"wide\.npz has 9 features, the network .* 6"):
        check_reference(class_recipe(tmp_path, tiny_sdxl, "wide.npz"), silent)
