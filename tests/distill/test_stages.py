"""The stages: what each needs, what it refuses, and a run that begins from captioned pictures."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_training import CPU, Trained, silent, tiny_recipe

from distill import trackers
from distill.data import DataError
from distill.recipe import Recipe, RecipeError, read_recipe
from distill.run import check_run_folder, distil, evaluate, pick_device, steps_done
from distill.stats import whole_lines
from distill.student import load_student
from distill.teachers.opening import load_teacher
from distill.teachers.teacher import TeacherError


def write_pictures(folder: Path) -> None:
    folder.mkdir()
    rng, lines = np.random.default_rng(0), []
    for number in range(12):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / f"{number}.png")
        lines.append({"file_name": f"{number}.png", "text": ("red", "blue")[number % 2]})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))


def test_a_run_may_begin_from_captioned_pictures(tiny_sdxl: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures")
    recipe = tiny_recipe(
        tmp_path,
        tiny_sdxl,
        "positives={source: images, folder: pictures, batch: 5}",
        "train={steps: 2, warmup_steps: 0, precision: bf16, sample_steps: 9, diagnose_steps: 1}",
    )
    lines: list[str] = []
    student = distil(recipe, lines.append)
    assert lines == [f"encoding 12 pictures of {tmp_path / 'pictures'}"]
    assert (recipe.run / "pictures" / "shard-00000.safetensors").is_file()
    assert load_student(load_teacher(tiny_sdxl, CPU), student).training is False
    first, second = whole_lines(recipe.run / "stats.jsonl")
    assert "floor/mid_block/r0.1" not in first  # 6 of a prompt are positives and anchors already
    assert second["loss"] != first["loss"]


@pytest.mark.parametrize(
    ("overrides", "error", "sentence"),
    [
        (["teacher.model=nowhere"], TeacherError, r"teacher\.model: .*nowhere does not exist"),
        (["positives.prompts=no.txt"], DataError, r"positives\.prompts: .*no\.txt does not exist"),
        (["positives.prompts=empty.txt"], DataError, r"empty\.txt is empty, so the prompt bank"),
        (["positives.prompts=long.txt"], DataError, r"prompt 'qqq.* has 92 tokens; the limit"),
        (["drift.layers=[nose]"], ValueError, r"layer 'nose' does not exist; there are down_bl"),
        (["positives.per_prompt=3"], DataError, r"has 3 samples; .* asks for 6 of each prompt"),
        (["drift.pool=3"], ValueError, r"pool is 3, but must divide layer 'down_blocks\.1' of"),
        (
            ["positives={source: images, folder: nowhere}"],
            DataError,
            r"positives\.folder: .*nowhere/metadata\.jsonl does not exist",
        ),
        (["train.device=cuda:9"], RecipeError, r"train\.device is 'cuda:9', which is not to be"),
        (["train.device=toaster"], RecipeError, r"train\.device is 'toaster', which is not to "),
    ],
)
def test_what_is_not_there_stops_a_run_in_one_sentence(
    tiny_sdxl: Path, tmp_path: Path, overrides: list[str], error: type[ValueError], sentence: str
) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "long.txt").write_text("q" * 90)
    recipe = tiny_recipe(tmp_path, tiny_sdxl, *overrides)
    with pytest.raises(error, match=sentence) as raised:
        distil(recipe, silent)
    assert "\n" not in str(raised.value)
    assert not (recipe.run / "student").exists()


def begun(trained: Trained, recipe: Recipe) -> None:
    """The folder of a recipe, as its run would have left it."""
    shutil.copytree(trained.recipe.run / "checkpoints", recipe.run / "checkpoints")
    (recipe.run / "recipe.yaml").write_text(recipe.resolved(), "utf-8")


def test_a_run_folder_of_another_recipe_is_refused_by_key(
    trained: Trained, recipe: Recipe, tiny_sdxl: Path
) -> None:
    begun(trained, recipe)
    check_run_folder(recipe)
    other = tiny_recipe(
        recipe.run.parent, tiny_sdxl, "train.seed=1", "drift.groups=3", "train.device=cpu"
    )
    with pytest.raises(RecipeError) as error:
        distil(other, silent)
    assert str(error.value) == (
        f"run folder {recipe.run} was begun with another drift.groups, train.seed;"
        " choose another run folder (--set run=...), delete it, or go on nevertheless"
        " (--resume-changed)"
    )


def test_another_recipe_goes_on_where_it_is_told_to(
    trained: Trained, recipe: Recipe, tiny_sdxl: Path
) -> None:
    begun(trained, recipe)
    lines: list[str] = []
    other = tiny_recipe(recipe.run.parent, tiny_sdxl, "train.steps=7", "drift.radii=[0.2]")
    distil(other, lines.append, resume_changed=True)
    assert lines[0] == (
        f"run folder {recipe.run} was begun with another drift.radii, train.steps; it goes on"
    )
    assert steps_done(other, silent) == 7
    check_run_folder(other)  # the folder is now of the new recipe


def test_a_key_that_an_older_run_folder_lacks_had_its_default(
    trained: Trained, recipe: Recipe, tiny_sdxl: Path
) -> None:
    begun(trained, recipe)
    path = recipe.run / "recipe.yaml"
    path.write_text(path.read_text("utf-8").replace("  optimizer: adamw\n", ""), "utf-8")
    check_run_folder(recipe)
    other = tiny_recipe(recipe.run.parent, tiny_sdxl, "train.optimizer=adamw8bit")
    with pytest.raises(RecipeError, match=r"begun with another train\.optimizer;"):
        check_run_folder(other)


def test_what_does_not_shape_the_student_may_change(
    trained: Trained, recipe: Recipe, tiny_sdxl: Path
) -> None:
    begun(trained, recipe)
    overrides = ["checkpoint_steps=1", "keep_checkpoints=9", "sample_steps=1", "diagnose_steps=1"]
    check_run_folder(
        tiny_recipe(recipe.run.parent, tiny_sdxl, *(f"train.{one}" for one in overrides))
    )
    check_run_folder(tiny_recipe(recipe.run.parent, tiny_sdxl, "export.model=another"))


def test_the_steps_done_are_those_of_the_last_whole_checkpoint(
    trained: Trained, recipe: Recipe
) -> None:
    assert steps_done(recipe, silent) == 0
    begun(trained, recipe)
    assert steps_done(recipe, silent) == 6
    (recipe.run / "checkpoints" / "step-00000006" / "meta.json").unlink()
    assert steps_done(recipe, silent) == 4


def test_auto_is_a_device_of_this_machine() -> None:
    assert pick_device("auto").type in ("cpu", "cuda")
    assert pick_device("cpu") == CPU


def test_without_an_evaluate_section_there_is_nothing_to_measure_by(recipe: Recipe) -> None:
    with pytest.raises(RecipeError, match="the recipe has no evaluate section"):
        evaluate(recipe, silent)


JUDGE = """
import numpy as np
def captions(count, seed): return ["red", "blue"] * (count // 2)
def vague_captions(): return ["a shape"]
def right(caption, picture): return caption == "red"
def modes(caption): return ["any"]
def mode(caption, picture): return "any"
def attributes(picture): return picture.mean((0, 1))
def reference(texts, seed):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in texts]
"""


def judged(trained: Trained, tiny_sdxl: Path, folder: Path) -> Recipe:
    """A recipe that evaluates, whose run has a student."""
    (folder / "judge.py").write_text(JUDGE)
    settings = "evaluate={judge: judge.py, captions: 2, vague_seeds: 1}"
    recipe = tiny_recipe(folder, tiny_sdxl, settings)
    shutil.copytree(trained.student, recipe.run / "student")
    return recipe


def test_evaluation_takes_the_student_of_the_run_where_there_is_one(
    trained: Trained, tiny_sdxl: Path, tmp_path: Path
) -> None:
    recipe = judged(trained, tiny_sdxl, tmp_path)
    result = evaluate(recipe, silent)
    assert list(result["generators"])[-1] == "student, 1 step"
    for figures in result["generators"].values():
        assert (figures["caption_accuracy"], figures["mode_coverage"]) == (0.5, 1.0)
    shutil.rmtree(recipe.run / "student")
    assert len(evaluate(recipe, silent)["generators"]) == 2


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.optimizer=adamw8bit", r"adamw8bit', which needs bitsandbytes"),
        ("train.trackers=[wandb]", r"train\.trackers names wandb, which is not installed"),
        ("student.lora={rank: 2, targets: [nose]}", r"student\.lora\.targets is nose: "),
        ("train.compile=true", r"train\.compile is true, .* compiler: there is no nowhere \(CXX"),
        ("drift.pool=3", r"pool is 3, but must divide layer 'down_blocks\.1' of 4x4"),
    ],
)
def test_what_is_missing_is_told_before_samples_are_made_and_may_be_mended(
    tiny_sdxl: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    override: str,
    sentence: str,
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr(trackers, "installed", lambda name: False)
    monkeypatch.setenv("CXX", "nowhere")
    recipe = tiny_recipe(tmp_path, tiny_sdxl, override)
    with pytest.raises(RecipeError if "pool" not in override else ValueError, match=sentence):
        distil(recipe, silent)
    assert not recipe.run.exists()


def test_a_run_that_failed_before_its_first_step_may_change(
    recipe: Recipe, tiny_sdxl: Path
) -> None:
    recipe.run.mkdir()
    (recipe.run / "recipe.yaml").write_text(recipe.resolved(), "utf-8")
    (recipe.run / "stats.jsonl").touch()
    other = tiny_recipe(recipe.run.parent, tiny_sdxl, "train.seed=1")
    check_run_folder(other)
    (recipe.run / "stats.jsonl").write_text('{"step": 0}\n')
    with pytest.raises(RecipeError, match=r"begun with another train\.seed;"):
        check_run_folder(other)


def test_a_run_keeps_what_it_was_evaluated_by(
    trained: Trained, tiny_sdxl: Path, tmp_path: Path
) -> None:
    recipe = judged(trained, tiny_sdxl, tmp_path)
    before = tiny_recipe(tmp_path, tiny_sdxl, "train.seed=3")
    (recipe.run / "recipe.yaml").write_text(before.resolved(), "utf-8")
    evaluate(recipe, silent)
    kept = read_recipe(recipe.run / "recipe.yaml")
    assert kept == before.model_copy(update={"evaluate": recipe.evaluate})
