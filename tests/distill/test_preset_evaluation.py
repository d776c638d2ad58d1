"""Evaluation by a published protocol, whole: figures by hand, and nothing measured twice."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_classes import save_tiny_edm
from tiny_networks import random_pictures, save_network, tiny_inception
from tiny_protocol import CAPTIONS, coco_recipe
from tiny_training import CPU, draw, silent

from distill.data import DataError
from distill.evaluate import EvaluationError, run_evaluation, sheet_texts, table
from distill.feature_networks import load_clip
from distill.fidelity import Gaussian, gaussian_distance, neighbour_figures
from distill.picture_shapes import cleanly_resized, squared
from distill.presets import PRESETS, preset_of, texts_of
from distill.recipe import Evaluate, Recipe, RecipeError, read_recipe
from distill.teachers.opening import load_teacher
from distill.teachers.sdxl import SdxlTeacher

NAMES = ["teacher, 2 steps", "teacher, 1 step", "student, 1 step"]


@dataclass(frozen=True)
class Evaluated:
    recipe: Recipe
    result: dict[str, Any]


@pytest.fixture(scope="module")
def evaluated(
    teacher: SdxlTeacher, tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory
) -> Evaluated:
    recipe = coco_recipe(tmp_path_factory.mktemp("preset"), tiny_sdxl)
    return Evaluated(recipe, run_evaluation(teacher, teacher.denoiser, recipe, silent))


def drawn_by_hand(teacher: SdxlTeacher, timestep: int) -> list[Image.Image]:
    made = []
    for seed, caption in enumerate(CAPTIONS, 40):
        noise, condition = draw(1, 4, 8, 8, seed=seed), teacher.encode([caption])
        latents = teacher.one_step(teacher.denoiser, noise, timestep, condition)
        made.append(Image.fromarray(teacher.decode(latents)[0].numpy()))
    return made


@torch.no_grad()
def features(pictures: list[Image.Image]) -> torch.Tensor:
    sized = np.stack([cleanly_resized(squared(p, 512), 299) for p in pictures])
    planes = torch.from_numpy(sized).permute(0, 3, 1, 2)
    return tiny_inception()(planes, return_features=True).double()


def gaussian(rows: torch.Tensor) -> Gaussian:
    return Gaussian(rows.mean(0).numpy(), np.cov(rows.numpy(), rowvar=False))


@torch.no_grad()
def test_the_figures_are_those_of_pictures_drawn_by_hand(
    teacher: SdxlTeacher, evaluated: Evaluated
) -> None:
    own = evaluated.result["features"]["generators"][NAMES[2]]
    pictures = drawn_by_hand(teacher, 399)
    made, real = features(pictures), features(random_pictures(12, 320, 310))
    assert own["images"] == 8
    assert own["fid"] == pytest.approx(gaussian_distance(gaussian(made), gaussian(real)), rel=1e-2)
    for name, value in neighbour_figures(real, made).items():
        assert own[name] == pytest.approx(value, abs=0.13), name
    clip = load_clip(evaluated.recipe.evaluate.clip, CPU)
    seen = clip.pictures([squared(p, 256) for p in pictures])
    cosines = torch.cosine_similarity(seen, clip.texts(CAPTIONS))
    assert own["clip_cosine"] == pytest.approx(cosines.mean().item(), abs=1e-3)
    assert own["clip_score"] == pytest.approx(100 * cosines.clamp(min=0).mean().item(), abs=0.1)
    assert own["patch_fid"] > 0


def measured(teacher: SdxlTeacher, recipe: Recipe) -> list[str]:
    """Names of the generators that an evaluation measures anew."""
    lines: list[str] = []
    result = run_evaluation(teacher, teacher.denoiser, recipe, lines.append)
    assert json.loads((recipe.run / "evaluate.json").read_text("utf-8")) == result
    known = [line.removesuffix(": measured before") for line in lines]
    return [name for name in result["features"]["generators"] if name not in known]


def test_nothing_is_measured_twice_until_the_protocol_changes(
    teacher: SdxlTeacher, tiny_sdxl: Path, evaluated: Evaluated
) -> None:
    folder = evaluated.recipe.run.parent
    assert measured(teacher, evaluated.recipe) == []
    only = coco_recipe(folder, tiny_sdxl, generators=["student"])
    assert measured(teacher, only) == []
    reseeded = coco_recipe(folder, tiny_sdxl, generators=["student"], seed=41)
    assert measured(teacher, reseeded) == NAMES[2:]
    assert measured(teacher, reseeded) == []
    save_network(tiny_inception(seed=1), folder / "inception.pt")
    assert measured(teacher, reseeded) == NAMES[2:]


def test_captions_too_long_for_the_teacher_are_cut_and_told_once(
    teacher: SdxlTeacher, tiny_sdxl: Path, tmp_path: Path
) -> None:
    long = " ".join(["red"] * 80)
    recipe = coco_recipe(tmp_path, tiny_sdxl, generators=["one_step_teacher", "student"])
    (tmp_path / "captions.txt").write_text("\n".join([long, *CAPTIONS[1:]]) + "\n")
    lines: list[str] = []
    result = run_evaluation(teacher, teacher.denoiser, recipe, lines.append)
    sentence = "1 of 8 prompts are too long for the teacher and are cut after the last word that"
    assert sum(sentence in line for line in lines) == 1
    assert result["features"]["generators"]["student, 1 step"]["images"] == 8


def test_what_was_measured_before_a_crash_is_kept(
    teacher: SdxlTeacher, tiny_sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = coco_recipe(tmp_path, tiny_sdxl, generators=["one_step_teacher", "student"])
    whole = teacher.one_step

    def until_the_student(*arguments: Any) -> torch.Tensor:
        if arguments[2] == 399:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(teacher, "one_step", until_the_student)
    with pytest.raises(KeyboardInterrupt):
        run_evaluation(teacher, teacher.denoiser, recipe, silent)
    monkeypatch.undo()
    assert measured(teacher, recipe) == NAMES[2:]


def test_a_student_alone_must_be_there(
    teacher: SdxlTeacher, tiny_sdxl: Path, tmp_path: Path
) -> None:
    recipe = coco_recipe(tmp_path, tiny_sdxl, generators=["student"])
    with pytest.raises(EvaluationError, match="student alone, but there is no student yet"):
        run_evaluation(teacher, None, recipe, silent)


def test_the_table_and_the_sheet_show_every_generator(evaluated: Evaluated) -> None:
    head, *lines = table(evaluated.result).splitlines()
    assert head.split() == (
        ["FID", "patch", "FID", "precision", "recall", "density", "coverage", "CLIP", "score"]
    )
    assert [line[:16].strip() for line in lines] == NAMES
    assert evaluated.recipe.evaluate is not None
    assert sheet_texts(evaluated.recipe.evaluate) == list(CAPTIONS)
    with Image.open(evaluated.recipe.run / "contact-sheet.png") as sheet:
        assert sheet.width == 12 + 3 * (4 * 66 + 12)


def test_a_student_below_its_floor_is_warned_of(teacher: SdxlTeacher, evaluated: Evaluated) -> None:
    line = {"force/mid/r1": 0.1, "floor/mid/r1": 0.2}
    stats = [json.dumps({"step": step, **line}) for step in range(5)]
    (evaluated.recipe.run / "stats.jsonl").write_text("\n".join(stats))
    lines: list[str] = []
    result = run_evaluation(teacher, teacher.denoiser, evaluated.recipe, lines.append)
    assert result["below_floor"] == {"mid/r1": pytest.approx(0.5)}
    assert "lies below its noise floor at mid/r1 (0.50 of it)" in lines[0]


def test_the_protocols_are_the_published_ones() -> None:
    imagenet = Evaluate(preset="imagenet64", inception=Path("a"), reference=Path("b"))
    texts = texts_of(imagenet, preset_of(imagenet))
    assert len(texts) == 50_000
    assert {texts.count(label) for label in ("0", "500", "999")} == {50}
    assert len(set(texts[:1000])) == 1000
    assert preset_of(imagenet).network_px is None
    coco = PRESETS["coco10k"]
    assert (coco.images, coco.size_px, coco.patch_px, coco.classes) == (10_000, 512, 299, None)


def test_a_caption_that_comes_twice_is_drawn_twice(tmp_path: Path, tiny_sdxl: Path) -> None:
    settings = coco_recipe(tmp_path, tiny_sdxl, images=6).evaluate
    assert settings is not None
    captions = ["red", "blue", "red", "green", "red", "blue"]
    (tmp_path / "captions.txt").write_text("\n".join([*captions, "", "grey"]))
    assert texts_of(settings, preset_of(settings)) == captions


def test_captions_that_are_missing_or_too_few_are_named(tmp_path: Path, tiny_sdxl: Path) -> None:
    def texts(**changes: object) -> object:
        settings = coco_recipe(tmp_path, tiny_sdxl, **changes).evaluate
        assert settings is not None
        return texts_of(settings, preset_of(settings))

    with pytest.raises(DataError, match=r"has 8 captions; 9 are asked for \(evaluate"):
        texts(images=9)
    with pytest.raises(DataError, match=r"evaluate\.prompts: .*no\.txt does not exist"):
        texts(prompts="no.txt")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"preset": None}, "inception is given, but no preset that uses it"),
        ({"inception": None}, "preset needs inception"),
        ({"real": None}, "preset needs reference or real"),
        ({"prompts": None}, "preset coco10k needs prompts"),
        ({"classes": 5}, "preset coco10k has captions, not classes"),
        ({"preset": "imagenet64"}, "preset imagenet64 has classes, neither prompts nor clip"),
        ({"preset": "imagenet"}, "'imagenet64' or 'coco10k'"),
        ({"generators": ["pupil"]}, "evaluate.generators.0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    tmp_path: Path, tiny_sdxl: Path, changes: dict[str, object], sentence: str
) -> None:
    with pytest.raises(RecipeError, match=sentence):
        coco_recipe(tmp_path, tiny_sdxl, **changes)


def test_an_evaluation_without_judge_or_preset_is_refused(evaluated: Evaluated) -> None:
    path = evaluated.recipe.run.parent / "recipe.yaml"
    with pytest.raises(RecipeError, match="judge or preset must say what is measured"):
        read_recipe(path, ["evaluate={captions: 5}"])


def test_a_preset_of_another_kind_than_the_teacher_is_refused(
    teacher: SdxlTeacher, tiny_sdxl: Path, tmp_path: Path
) -> None:
    classes = {"preset": "imagenet64", "prompts": None, "clip": None, "classes": 4}
    recipe = coco_recipe(tmp_path, tiny_sdxl, **classes)
    with pytest.raises(EvaluationError, match="imagenet64, which is of classes, but the teacher"):
        run_evaluation(teacher, None, recipe, silent)
    edm = load_teacher(save_tiny_edm(tmp_path / "edm"), CPU)
    with pytest.raises(EvaluationError, match="coco10k, which is of captions, but the teacher dr"):
        run_evaluation(edm, None, coco_recipe(tmp_path, tiny_sdxl), silent)
    recipe = coco_recipe(tmp_path, tiny_sdxl, **{**classes, "classes": 5})
    with pytest.raises(EvaluationError, match=r"evaluate\.classes is 5, but the teacher has 4 cl"):
        run_evaluation(edm, None, recipe, silent)
