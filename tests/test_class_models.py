"""Class to image from end to end: teacher, student, one graph, gateway, and stock diffusers."""

import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml
from diffusers import ConsistencyModelPipeline
from PIL import Image
from tiny_classes import save_class_student
from torch import Generator

import singlepass

# A judge of classes: even ones are dark, odd ones light.
JUDGE = """
import numpy as np

def captions(count, seed): return [str(i % 4) for i in range(count)]
def vague_captions(): return ["1"]
def right(caption, picture): return mode(caption, picture) == ["dark", "light"][int(caption) % 2]
def modes(caption): return ["dark", "light"]
def mode(caption, picture): return "dark" if picture.mean() < 128 else "light"
def attributes(picture): return picture.mean((0, 1)).tolist()
def reference(texts, seed):
    rng = np.random.default_rng(seed)
    for _ in texts: yield rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
"""


class Project(NamedTuple):
    """A folder with a recipe, and what `distill run` said of it."""

    folder: Path
    said: str


def distill(*arguments: object) -> tuple[int, str]:
    """One command in this process: its status and all that it said."""
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        status = singlepass.main([str(argument) for argument in arguments])
    return status, out.getvalue()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """`distill run`, once, from a tiny class-conditional EDM to a served student."""
    from diffusers import CMStochasticIterativeScheduler

    folder = tmp_path_factory.mktemp("classes")
    save_class_student(folder / "teacher", CMStochasticIterativeScheduler(clip_denoised=False))
    (folder / "classes.txt").write_text("0\n1\n3\n")
    (folder / "judge.py").write_text(JUDGE)
    drift = {"layers": ["down_blocks.1", "mid_block"], "pool": 2}
    drift |= {"groups": 2, "samples": 2, "positives": 3, "anchors": 2}
    recipe = {
        "run": "run",
        "teacher": {"model": "teacher", "steps": 2, "guidance_scale": 1.0},
        "positives": {"source": "teacher", "prompts": "classes.txt", "per_prompt": 7},
        "drift": drift,
        "train": {"steps": 3, "learning_rate": 1e-4, "precision": "fp32", "warmup_steps": 0},
        "evaluate": {"judge": "judge.py", "captions": 4, "vague_seeds": 2},
        "export": {"model": "things", "repository": "repository", "max_batch": 2},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    status, said = distill("run", folder / "recipe.yaml")
    assert status == 0, said
    return Project(folder, said)


def test_a_recipe_of_classes_runs_to_a_served_model(project) -> None:
    assert "warning" not in project.said
    assert "batch invariance: bitwise" in project.said
    assert "served by ONNX Runtime, text to PNG: " in project.said
    assert (project.folder / "repository" / "things" / "1" / "model.onnx").is_file()
    status, said = distill("run", project.folder / "recipe.yaml")
    assert (status, "holds this student already" in said) == (0, True)


def test_the_command_line_draws_the_picture_of_stock_diffusers(project, tmp_path) -> None:
    out = tmp_path / "a.png"
    base = ["--repository", project.folder / "repository", "-o", out]
    status, said = distill("generate", "--class-label", "3", "--seed", "7", *base)
    assert (status, said) == (0, f"{out}: seed 7, model things/1\n")
    pipeline = ConsistencyModelPipeline.from_pretrained(project.folder / "run" / "student")
    pipeline.set_progress_bar_config(disable=True)
    stock = pipeline(class_labels=[3], generator=Generator().manual_seed(7)).images[0]
    assert np.abs(np.asarray(Image.open(out)).astype(int) - np.asarray(stock)).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "class_label: is required, as things/1 draws classes: 0 to 3"),
        (["a red circle"], "prompt: is not supported: things/1 draws classes, 0 to 3"),
        (["--class-label", "4"], "class_label: is 4, things/1 has the classes 0 to 3"),
    ],
)
def test_generate_says_what_a_model_of_classes_is_asked_for(
    project, tmp_path, arguments, sentence
) -> None:
    base = ["--repository", project.folder / "repository", "-o", tmp_path / "a.png"]
    status, said = distill("generate", *arguments, *base)
    assert (status, said.startswith(f"distill: {sentence}")) == (1, True), said


def test_a_text_model_is_not_asked_for_a_class(tiny_export, tmp_path) -> None:
    base = ["--repository", tiny_export.repository, "-o", tmp_path / "a.png"]
    status, said = distill("generate", "a", "--class-label", "1", *base)
    assert status == 1
    assert said.startswith("distill: class_label: is not supported: tiny/1 has no classes")


def test_the_repository_is_inspected_and_verified(project) -> None:
    repository = project.folder / "repository"
    status, said = distill("inspect", repository / "things" / "1")
    assert (status, "things/1: class-to-image" in said) == (0, True)
    student = project.folder / "run" / "student"
    against = ["--against", "torch", "--student", student, "--rows", 4, "--threads", 1]
    status, said = distill("verify", repository, *against)
    assert status == 0, said
    status, said = distill("configure", repository, "things", "--runtime", "python")
    assert (status, said) == (0, f"{repository / 'things'}: python serves version 1\n")
