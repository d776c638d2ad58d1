"""Evaluation by a small judge: figures against a count by hand, and nothing measured twice."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_training import CPU, draw, silent, tiny_recipe
from torch import nn

from distill.evaluate import known_in, read_result, run_evaluation, table
from distill.generators import generators
from distill.judge import Judge, JudgeError, load_judge
from distill.judged import protocol_of
from distill.metrics import frechet_distance
from distill.recipe import Recipe
from distill.student import make_student
from distill.teachers.opening import load_teacher
from distill.teachers.sdxl import SdxlTeacher

JUDGE = """
import numpy as np

def captions(count, seed):
    rng = np.random.default_rng(seed)
    return [("a red circle", "blue", "a green square")[i] for i in rng.integers(3, size=count)]

def vague_captions():
    return ["red", "a circle"]

def right(caption, picture):
    red, green, blue = picture.mean((0, 1))
    return bool(red > blue) == ("red" in caption)

def modes(caption):
    return ["dark", "light"]

def mode(caption, picture):
    level = picture.mean()
    return None if level > 150 else "dark" if level < 128 else "light"

def attributes(picture):
    return [*picture.mean((0, 1)), picture.std()]

def reference(texts, seed):
    rng = np.random.default_rng(seed)
    for text in texts:
        yield rng.integers(len(text), 256, (64, 64, 3), dtype=np.uint8)
"""
NAMES = ["teacher, 2 steps", "teacher, 1 step", "student, 1 step"]


def judged_recipe(folder: Path, model: Path, *overrides: str) -> Recipe:
    folder.mkdir(exist_ok=True)
    (folder / "judge.py").write_text(JUDGE)
    settings = "evaluate={judge: judge.py, captions: 7, vague_seeds: 5, batch: 3, seed: 40}"
    return tiny_recipe(folder, model, settings, *overrides)


@pytest.fixture
def judged(tmp_path: Path, tiny_sdxl: Path) -> Recipe:
    return judged_recipe(tmp_path, tiny_sdxl)


def new_student(teacher: SdxlTeacher, seed: int = 0) -> nn.Module:
    student = make_student(teacher).eval()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.02 * draw(*parameter.shape, seed=seed))
    return student


def pictures_of(teacher: SdxlTeacher, unet: nn.Module, t: int, prompts: list[str]) -> Any:
    """Pictures of prompts in one step, one at a time, with the protocol's seeds from 40 on."""
    made = []
    for seed, prompt in enumerate(prompts, 40):
        with torch.no_grad():
            latents = teacher.one_step(
                unet, draw(1, 4, 8, 8, seed=seed), t, teacher.encode([prompt])
            )
        made.append(teacher.decode(latents)[0].numpy())
    return made


@dataclass(frozen=True)
class Evaluated:
    """An evaluation that was made once, and what a count by hand needs."""

    recipe: Recipe
    student: nn.Module
    judge: Judge
    figures: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def evaluated(
    teacher: SdxlTeacher, tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory
) -> Evaluated:
    recipe, student = (
        judged_recipe(tmp_path_factory.mktemp("evaluated"), tiny_sdxl),
        new_student(teacher),
    )
    result = run_evaluation(teacher, student, recipe, silent)
    judge = load_judge(recipe.run.parent / "judge.py")
    return Evaluated(recipe, student, judge, result["generators"])


def test_the_figures_are_those_counted_by_hand(teacher: SdxlTeacher, evaluated: Evaluated) -> None:
    judge, figures = evaluated.judge, evaluated.figures
    captions = judge.captions(7, 40)
    reference = np.array(
        [judge.attributes(p) for seed in range(41, 45) for p in judge.reference(captions, seed)]
    )
    assert list(figures) == NAMES
    for name, unet, t in ((NAMES[1], teacher.denoiser, 999), (NAMES[2], evaluated.student, 399)):
        made, own = pictures_of(teacher, unet, t, captions), figures[name]
        right = [judge.right(c, p) for c, p in zip(captions, made, strict=True)]
        seen = np.array([judge.attributes(picture) for picture in made])
        assert own["caption_accuracy"] == pytest.approx(sum(right) / 7)
        assert own["caption_accuracy_first_half"] == pytest.approx(sum(right[:4]) / 4)
        assert own["caption_accuracy_second_half"] == pytest.approx(sum(right[4:]) / 3)
        distance = frechet_distance(seen, reference)
        assert own["frechet_distance"] == pytest.approx(distance, rel=1e-2)
        assert own["ms_per_picture"] > 0


def test_modes_are_counted_by_vague_caption(teacher: SdxlTeacher, evaluated: Evaluated) -> None:
    judge, student, figures = evaluated.judge, evaluated.student, evaluated.figures
    met = []
    for caption in ("red", "a circle"):
        seen = [judge.mode(caption, p) for p in pictures_of(teacher, student, 399, [caption] * 5)]
        found = figures[NAMES[2]]["mode_shares"][caption]
        assert found == {mode: seen.count(mode) / 5 for mode in ("dark", "light")}
        for mode, share in figures[NAMES[0]]["mode_shares"][caption].items():
            met.append(found[mode] >= share / 3)
    assert figures[NAMES[2]]["mode_coverage"] == sum(met) / 4
    assert figures[NAMES[0]]["mode_coverage"] == 1.0


def test_the_many_step_teacher_is_guided_and_seeded(
    teacher: SdxlTeacher, evaluated: Evaluated
) -> None:
    judge = evaluated.judge
    captions = judge.captions(7, 40)
    latents = teacher.sample(teacher.encode(captions), range(40, 47), 2, 2.0)
    made = teacher.decode(latents).numpy()
    right = [judge.right(c, p) for c, p in zip(captions, made, strict=True)]
    assert evaluated.figures[NAMES[0]]["caption_accuracy"] == pytest.approx(sum(right) / 7)


def measured(teacher: SdxlTeacher, student: nn.Module | None, recipe: Recipe) -> list[str]:
    """Names of the generators that an evaluation measures anew."""
    lines: list[str] = []
    result = run_evaluation(teacher, student, recipe, lines.append)
    assert json.loads((recipe.run / "evaluate.json").read_text("utf-8")) == result
    known = [line.removesuffix(": measured before") for line in lines]
    return [name for name in result["generators"] if name not in known]


def test_only_a_changed_student_is_measured_again(
    teacher: SdxlTeacher, evaluated: Evaluated, judged: Recipe
) -> None:
    judged.run.mkdir()
    before = (evaluated.recipe.run / "evaluate.json").read_bytes()
    (judged.run / "evaluate.json").write_bytes(before)
    assert measured(teacher, evaluated.student, judged) == []
    assert (judged.run / "evaluate.json").read_bytes() == before
    assert measured(teacher, new_student(teacher, seed=1), judged) == NAMES[2:]
    assert measured(teacher, None, judged) == []  # without a student there are two
    kept = json.loads((judged.run / "evaluate.json").read_text())["generators"]
    assert kept.keys() == set(NAMES[:2])


def double_denoiser(teacher: SdxlTeacher) -> None:
    next(teacher.pipe.unet.parameters()).mul_(2)


def double_text_encoder(teacher: SdxlTeacher) -> None:
    next(teacher.pipe.text_encoder_2.parameters()).mul_(2)


def double_vae(teacher: SdxlTeacher) -> None:
    next(teacher.pipe.vae.parameters()).mul_(2)


@pytest.mark.parametrize("change", [double_denoiser, double_text_encoder, double_vae])
def test_another_teacher_makes_all_figures_stale(
    tiny_sdxl: Path, judged: Recipe, change: Callable[[SdxlTeacher], None]
) -> None:
    teacher = load_teacher(tiny_sdxl, CPU)
    student = new_student(teacher)
    before = [way.sha256 for way in generators(teacher, student, judged)]
    assert [way.sha256 for way in generators(teacher, student, judged)] == before
    change(teacher)
    after = [way.sha256 for way in generators(teacher, student, judged)]
    assert len({*before, *after}) == 6


@pytest.mark.parametrize(
    ("override", "stale"),
    [("teacher.guidance_scale=3", [0]), ("teacher.steps=3", [0]), ("student.timestep=250", [2])],
)
def test_a_setting_makes_the_figures_stale_that_depend_on_it(
    teacher: SdxlTeacher, tiny_sdxl: Path, tmp_path: Path, override: str, stale: list[int]
) -> None:
    student = new_student(teacher)
    before, after = (
        generators(teacher, student, judged_recipe(tmp_path, tiny_sdxl, *overrides))
        for overrides in ([], [override])
    )
    assert [i for i in range(3) if before[i].sha256 != after[i].sha256] == stale


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"protocol": {}, "generators": {"a": 1}}'])
def test_figures_that_are_broken_or_of_another_protocol_are_not_taken(
    tmp_path: Path, content: str
) -> None:
    path, protocol = tmp_path / "evaluate.json", {"captions": 7}
    assert known_in(read_result(path), protocol) == {}
    path.write_text(content)
    assert known_in(read_result(path), protocol) == {}
    path.write_text(json.dumps({"protocol": protocol, "generators": {"a": {"sha256": ""}}}))
    assert known_in(read_result(path), protocol) == {"a": {"sha256": ""}}


def test_the_protocol_is_the_judge_with_all_that_lies_beside_it(judged: Recipe) -> None:
    settings = judged.evaluate
    assert settings is not None
    seen = [protocol_of(settings), protocol_of(settings)]
    settings.judge.write_text(JUDGE.replace("red > blue", "red > green"))
    seen.append(protocol_of(settings))
    (settings.judge.parent / "beside.py").write_text("A = 1")
    seen.append(protocol_of(settings))
    seen.append(protocol_of(settings.model_copy(update={"captions": 8})))
    assert [seen.index(protocol) for protocol in seen] == [0, 0, 2, 3, 4]


def test_the_contact_sheet_shows_all_generators_side_by_side(
    teacher: SdxlTeacher, evaluated: Evaluated
) -> None:
    sheet = np.asarray(Image.open(evaluated.recipe.run / "contact-sheet.png"))
    rows, block = 3 + 3 + 1, 4 * (64 + 2) + 12  # captions first and last, a vague one; four seeds
    assert sheet.shape == (32 + rows * 88, 12 + 3 * block, 3)
    noise = torch.cat([draw(1, 4, 8, 8, seed=seed) for seed in range(4)])
    condition = teacher.encode(evaluated.judge.captions(1, 40)).repeated(4)
    with torch.no_grad():
        shown = teacher.decode(teacher.one_step(evaluated.student, noise, 399, condition))
    for seed in range(4):
        left = 12 + 2 * block + seed * 66
        placed = sheet[52 : 52 + 64, left : left + 64].astype(int)
        assert np.abs(placed - shown[seed].numpy()).max() <= 1


def test_mode_coverage_can_be_left_out(
    teacher: SdxlTeacher, tiny_sdxl: Path, tmp_path: Path
) -> None:
    overrides = ("evaluate.captions=2", "evaluate.vague_seeds=0")
    recipe = judged_recipe(tmp_path, tiny_sdxl, *overrides)
    result = run_evaluation(teacher, None, recipe, silent)
    assert all("mode_coverage" not in figures for figures in result["generators"].values())
    assert table(result).splitlines()[1].split()[-2] == "-"


def test_a_judge_that_is_missing_is_named(teacher: SdxlTeacher, judged: Recipe) -> None:
    assert judged.evaluate is not None
    judged.evaluate.judge.unlink()
    with pytest.raises(JudgeError, match=r"evaluate\.judge: .*judge\.py does not exist"):
        run_evaluation(teacher, None, judged, silent)


def test_the_table_has_a_line_a_generator() -> None:
    figures = {"caption_accuracy": 0.975, "frechet_distance": 1.23456, "ms_per_picture": 41.28}
    result = {"generators": {"teacher": {**figures, "mode_coverage": 1.0}, "student": figures}}
    assert table(result).splitlines() == [
        "         caption accuracy  Fréchet distance  mode coverage  ms/picture",
        "teacher            97.5 %             1.235        100.0 %        41.3",
        "student            97.5 %             1.235              -        41.3",
    ]
