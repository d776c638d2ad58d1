"""The command line from end to end, in this process: what it does, says and returns."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml
from PIL import Image

import singlepass
from serve.keys import read_keys

COMMANDS = {
    "run": ["recipe", "--set", "--dry-run", "--resume-changed"],
    "bank": ["recipe", "--set", "--shard"],
    "train": ["recipe", "--set", "--resume-changed"],
    "evaluate": ["recipe", "--set", "--reference"],
    "compare": ["runs", "--out"],
    "import": ["edm", "file", "--out", "--classes"],
    "export": [
        "source",
        "--model",
        "--one-step",
        "--base",
        "--sizes",
        "--dtype",
        "--vae-dtype",
        "--quantize",
        "--opset",
        "--repository",
        "--name",
        "--max-batch",
        "--keep",
    ],
    "engine": ["repository", "--model", "--version", "--refit-from", "--serve", "--hardware"],
    "verify": ["repository", "--against", "--student", "--url", "--json", "--sheet"],
    "inspect": ["path"],
    "configure": ["repository", "model", "--runtime", "--instances", "--max-queue"],
    "rollback": ["repository", "model", "version"],
    "serve": ["--repository", "--model", "--threads", "--host", "--port", "--triton"],
    "key": ["name"],
    "generate": [
        "prompt",
        "--class-label",
        "--out",
        "--seed",
        "--size",
        "--quality",
        "--repository",
    ],
}
PROMPTS = ("a small red circle", "blue", "an astronaut")

# A judge that needs no world: a picture is dark or light.
JUDGE = """
import numpy as np

def captions(count, seed): return [f"{['dark', 'light'][i % 2]} {i}" for i in range(count)]
def vague_captions(): return ["any", "some"]
def right(caption, picture): return mode(caption, picture) == caption.split()[0]
def modes(caption): return ["dark", "light"]
def mode(caption, picture): return "dark" if picture.mean() < 128 else "light"
def attributes(picture): return picture.mean((0, 1)).tolist()
def reference(texts, seed):
    rng = np.random.default_rng(seed)
    for _ in texts: yield rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
"""


class Said(NamedTuple):
    """What one command came to."""

    status: int
    out: str
    err: str


class Project(NamedTuple):
    """A folder with a recipe, and what running it said the first time."""

    folder: Path
    recipe: Path
    first: Said


def distill(capsys: pytest.CaptureFixture[str], *arguments: object) -> Said:
    """One command in this process."""
    capsys.readouterr()
    status = singlepass.main([str(argument) for argument in arguments])
    return Said(status, *capsys.readouterr())


def write_recipe(folder: Path, teacher: Path, **changes: object) -> Path:
    """A recipe of three steps on a bank of six pictures a prompt."""
    (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    (folder / "judge.py").write_text(JUDGE)
    drift = {"layers": ["down_blocks.1", "mid_block"], "pool": 2}
    drift |= {"groups": 2, "samples": 2, "positives": 3, "anchors": 2}
    recipe = {
        "run": "run",
        "teacher": {"model": str(teacher), "steps": 2},
        "positives": {"source": "teacher", "prompts": "prompts.txt", "per_prompt": 7},
        "drift": drift,
        "train": {"steps": 3, "learning_rate": 1e-4, "precision": "fp32", "warmup_steps": 0},
        "evaluate": {"judge": "judge.py", "captions": 4, "vague_seeds": 2},
        "export": {"model": "tiny", "repository": "repository", "max_batch": 2},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe | changes))
    return path


@pytest.fixture
def recipe(tiny_sdxl: Path, tmp_path: Path) -> Path:
    """A recipe that nothing was run of yet."""
    return write_recipe(tmp_path, tiny_sdxl)


@pytest.fixture(scope="module")
def project(tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """`distill run`, once, from a teacher to a served student."""
    from contextlib import redirect_stderr, redirect_stdout
    from io import StringIO

    folder = tmp_path_factory.mktemp("project")
    path = write_recipe(folder, tiny_sdxl)
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = singlepass.main(["run", str(path)])
    return Project(folder, path, Said(status, out.getvalue(), err.getvalue()))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(capsys, command) -> None:
    with pytest.raises(SystemExit) as left:
        singlepass.main([command, "--help"])
    text = capsys.readouterr().out
    assert left.value.code == 0
    assert f"usage: distill {command}" in text
    assert all(option in text for option in COMMANDS[command])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["paint"], "invalid choice: 'paint'"),
        (["run"], "the following arguments are required: recipe"),
        (["train", "a.yaml", "--dry-run"], "unrecognized arguments: --dry-run"),
        (["generate", "a"], "the following arguments are required: -o/--out"),
        (
            ["generate", "a", "-o", "a.png", "--seed", "x"],
            "argument --seed: invalid int value: 'x'",
        ),
        (["export", "a", "--max-batch", "many"], "--max-batch: invalid int value: 'many'"),
    ],
)
def test_wrong_usage_is_status_2_and_one_sentence(capsys, arguments, sentence) -> None:
    with pytest.raises(SystemExit) as left:
        singlepass.main(arguments)
    assert left.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("drift.radii=[0.1, 0]", "drift.radii.1 is 0: input should be greater than 0"),
        ("drift.groups=0", "drift.groups is 0: input should be greater than or equal to 1"),
        ("positives.batch=0", "positives.batch is 0: input should be greater than or equal to 1"),
        ("drift.radius=0.1", "drift.radius: unknown key; allowed here: layers, pool, sigma"),
        ("train.steps=many", "train.steps is 'many': input should be a valid integer"),
        ("steps", "--set steps: must be section.key=value"),
        ("train.steps=[1", "--set train.steps=[1: the value is not valid YAML"),
        ("run.steps=1", "--set run.steps=1: run is a value, not a section"),
        ("teacher.model=nowhere", "nowhere does not exist; it must be a diffusers directory"),
        ("drift.layers=[attic]", "attic"),
        ("positives.prompts=none.txt", "none.txt does not exist"),
        ("train.device=abacus", "train.device is 'abacus', which is not to be had"),
        ("drift.positives=99", "prompt 'a small red circle' has 7 samples"),
        ("evaluate.judge=none.py", "none.py does not exist"),
        ("export.max_batch=64", "export.max_batch is 64: input should be less than or equal to 63"),
        ("export.model=A b", "export.model is 'A b': string should match pattern"),
    ],
)
def test_a_bad_value_is_status_1_and_a_sentence_that_names_it(
    capsys, recipe, override, sentence
) -> None:
    command = "evaluate" if override.startswith("evaluate") else "train"
    said = distill(capsys, command, recipe, "--set", override)
    assert said.status == 1
    assert said.err.startswith("distill: ")
    assert sentence in said.err
    assert "Traceback" not in said.err
    assert not (recipe.parent / "run" / "student").exists()


def test_run_looks_for_the_judge_before_it_trains(capsys, recipe) -> None:
    (recipe.parent / "judge.py").write_text("def right(caption, picture): return True\n")
    said = distill(capsys, "run", recipe)
    assert said.status == 1
    assert "judge.py does not define captions, vague_captions, modes" in said.err
    assert not (recipe.parent / "run").exists()


@pytest.mark.parametrize("command", ["run", "evaluate"])
def test_a_stage_for_one_process_says_so_to_several(capsys, recipe, monkeypatch, command) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = distill(capsys, command, recipe)
    assert (said.status, said.out) == (1, "")
    assert f"`{command}` is for one process, but a launcher began several; launch" in said.err
    assert not (recipe.parent / "run").exists()


def test_a_layer_that_does_not_exist_lists_those_that_do(capsys, recipe) -> None:
    said = distill(capsys, "train", recipe, "--set", "drift.layers=[attic]")
    assert all(layer in said.err for layer in ("down_blocks.0", "mid_block", "up_blocks.1"))


def test_an_empty_prompt_bank_is_said(capsys, recipe) -> None:
    (recipe.parent / "prompts.txt").write_text("\n \n")
    said = distill(capsys, "run", recipe)
    assert said.status == 1
    assert "prompts.txt is empty, so the prompt bank would be too" in said.err


@pytest.mark.parametrize("command", ["run", "train", "evaluate", "export"])
def test_a_recipe_that_does_not_exist_is_named(capsys, tmp_path, command) -> None:
    said = distill(capsys, command, tmp_path / "none.yaml")
    assert (said.status, said.out) == (1, "")
    assert said.err == f"distill: recipe {tmp_path / 'none.yaml'}: No such file or directory\n"


def test_a_dry_run_prints_a_recipe_that_reads_back_as_itself(capsys, recipe, tmp_path) -> None:
    said = distill(capsys, "run", recipe, "--dry-run", "--set", "train.steps=7")
    resolved = yaml.safe_load(said.out)
    assert said.status == 0
    assert resolved["train"]["steps"] == 7
    assert resolved["drift"]["radii"] == [0.02, 0.05, 0.1, 0.2]  # a default, written out
    assert resolved["run"] == str(recipe.parent / "run")
    assert not (recipe.parent / "run").exists()
    again = tmp_path / "resolved.yaml"
    again.write_text(said.out)
    assert distill(capsys, "run", again, "--dry-run").out == said.out


def test_an_override_beats_the_file_and_the_last_beats_the_first(capsys, recipe) -> None:
    options = ["--set", "train.steps=5", "--set", "train.steps=6", "--set", "evaluate=null"]
    resolved = yaml.safe_load(distill(capsys, "run", recipe, "--dry-run", *options).out)
    assert resolved["train"]["steps"] == 6
    assert resolved["evaluate"] is None


def test_an_interrupt_is_status_130_and_says_how_to_go_on(capsys, recipe, monkeypatch) -> None:
    def interrupted(args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("singlepass.open_recipe", interrupted)
    said = distill(capsys, "train", recipe)
    assert (said.status, said.err) == (130, "distill: stopped; the same command resumes\n")


def test_run_goes_from_a_teacher_to_a_served_student(project) -> None:
    status, out, _ = project.first
    assert status == 0
    for words in (
        "prompts, 7 teacher samples each",
        "the gate: passed",
        f"published {project.folder / 'repository' / 'tiny' / '1'}",
        "teacher, 2 steps",
        "teacher, 1 step",
        "student, 1 step",
        "served by ONNX Runtime, text to PNG: ",
        f"contact sheet: {project.folder / 'run' / 'contact-sheet.png'}",
        f"serve it: distill serve --repository {project.folder / 'repository'} --model tiny",
    ):
        assert words in out
    run = project.folder / "run"
    lines = (run / "stats.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2]
    with Image.open(run / "contact-sheet.png") as sheet:
        assert sheet.width > 3 * 4 * 64
    assert yaml.safe_load((run / "recipe.yaml").read_text())["train"]["steps"] == 3


def test_every_key_of_evaluate_json_is_documented(project) -> None:
    page = (Path(singlepass.__file__).parent / "docs" / "evaluation.md").read_text("utf-8")
    result = json.loads((project.folder / "run" / "evaluate.json").read_text())
    keys = {*result, *result["protocol"]}
    for figures in result["generators"].values():
        keys |= figures.keys()
    assert len(keys) > 10
    assert [key for key in keys if key not in page.split("## evaluate.json")[1]] == []


def test_the_run_moved_the_student_away_from_its_teacher(project, tiny_sdxl) -> None:
    from safetensors.numpy import load_file

    name = Path("unet") / "diffusion_pytorch_model.safetensors"
    before, after = load_file(tiny_sdxl / name), load_file(project.folder / "run/student" / name)
    moved = [np.abs(before[key] - after[key]).max() for key in before]
    assert before.keys() == after.keys()
    assert min(moved) >= 0
    assert 1e-5 < max(moved) < 1e-2


def test_run_again_does_nothing_and_says_so(capsys, project) -> None:
    files = {p: p.stat().st_mtime_ns for p in project.folder.rglob("*.safetensors")}
    said = distill(capsys, "run", project.recipe)
    assert said.status == 0
    assert f"{project.folder / 'run' / 'student'} is trained already" in said.out
    assert said.out.count("measured before") == 3
    assert f"{project.folder / 'repository' / 'tiny' / '1'} holds this student already" in said.out
    assert {p: p.stat().st_mtime_ns for p in project.folder.rglob("*.safetensors")} == files
    assert [p.name for p in (project.folder / "repository").iterdir()] == ["tiny"]
    assert table_of(said.out) == table_of(project.first.out)


def table_of(out: str) -> list[str]:
    """The lines of the table of figures."""
    lines = out.splitlines()
    head = next(i for i, line in enumerate(lines) if "caption accuracy" in line)
    return lines[head : head + 4]


def test_the_stages_alone_find_their_work_done(capsys, project) -> None:
    student = project.folder / "run" / "student"
    train = distill(capsys, "train", project.recipe)
    assert train.out.splitlines()[-1] == f"student: {student}"
    evaluate = distill(capsys, "evaluate", project.recipe)
    assert table_of(evaluate.out) == table_of(project.first.out)
    export = distill(capsys, "export", project.recipe)
    assert export.out.strip().endswith("tiny/1 holds this student already")
    assert (train.status, evaluate.status, export.status) == (0, 0, 0)


def test_another_recipe_does_not_go_on_in_the_same_run_folder(capsys, project) -> None:
    said = distill(capsys, "run", project.recipe, "--set", "drift.groups=1")
    assert said.status == 1
    assert "was begun with another drift.groups" in said.err


def test_a_run_without_evaluation_only_trains_and_exports(capsys, project) -> None:
    said = distill(capsys, "run", project.recipe, "--set", "evaluate=null")
    assert said.status == 0
    assert "caption accuracy" not in said.out
    said = distill(capsys, "evaluate", project.recipe, "--set", "evaluate=null")
    assert (said.status, "no evaluate section" in said.err) == (1, True)


def test_export_publishes_a_students_directory_under_the_given_name(
    capsys, project, tmp_path
) -> None:
    student = project.folder / "run" / "student"
    options = ["--name", "mine", "--repository", tmp_path, "--max-batch", "1"]
    said = distill(capsys, "export", student, *options)
    assert said.status == 0
    manifest = json.loads((tmp_path / "mine" / "1" / "manifest.json").read_text())
    assert (manifest["model"], manifest["max_batch"]) == ("mine", 1)
    first = json.loads((project.folder / "repository/tiny/1/manifest.json").read_text())
    assert manifest["digest"] == first["digest"]  # the same graph under another name
    again = distill(capsys, "export", student, *options)
    assert again.out == f"{tmp_path / 'mine' / '1'} holds this student already\n"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "a model needs --name"),
        (["--name", "A b"], "the model name is 'A b'; allowed are small letters"),
        (["--name", "a", "--max-batch", "99"], "max_batch is 99; it must lie between 1 and 63"),
        (["--name", "a", "--max-batch", "0"], "max_batch is 0; it must lie between 1 and 63"),
        (["--name", "a", "--dtype", "fp8"], "dtype is 'fp8'"),
        (["--name", "a", "--sizes", "large"], "sizes has 'large'"),
        (["--name", "a", "--one-step", "magic"], "magic"),
        (["--name", "a", "--keep", "0"], "keep is 0"),
        (["--name", "a", "--quantize", "int8", "--no-gate"], "kept only where it is measured"),
        (["--name", "a", "--model", "b"], "name one thing to export"),
        (["--name", "a"], "scheduler"),
    ],
)
def test_export_says_what_is_wrong(capsys, tiny_sdxl, tmp_path, options, sentence) -> None:
    said = distill(capsys, "export", tiny_sdxl, "--repository", tmp_path / "r", *options)
    assert said.status == 1
    assert sentence in said.err
    assert not (tmp_path / "r").exists()


def test_an_operator_verifies_inspects_configures_and_rolls_back(
    capsys, tiny_export, tmp_path
) -> None:
    repository = shutil.copytree(tiny_export.repository, tmp_path / "repository")
    shutil.copytree(repository / "tiny" / "1", repository / "tiny" / "2")
    figures = tmp_path / "gate.json"
    said = distill(capsys, "verify", repository, "--version", "1", "--rows", "2", "--json", figures)
    assert (said.status, "batch invariance: bitwise" in said.out) == (0, True)
    assert json.loads(figures.read_text())["level"] == "bitwise"
    assert "tiny" in distill(capsys, "inspect", repository).out
    said = distill(capsys, "configure", repository, "tiny", "--runtime", "python")
    assert said.out == f"{repository / 'tiny'}: python serves version 2\n"
    said = distill(capsys, "rollback", repository, "tiny")
    assert said.out == f"{repository / 'tiny'}: version 1 is served\n"


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["verify", "none"], "none"),
        (["verify", "none", "--against", "faith"], "--against is 'faith'"),
        (["inspect", "none"], "none"),
        (["configure", "none", "tiny"], "none"),
        (["rollback", "none", "tiny"], "none"),
        (["engine", "none"], "TensorRT"),
    ],
)
def test_an_operators_mistakes_are_named(capsys, command, sentence) -> None:
    said = distill(capsys, *command)
    assert (said.status, sentence in said.err) == (1, True)
    assert "Traceback" not in said.err


def test_generate_draws_a_picture_of_the_repository(capsys, project, tmp_path) -> None:
    out = tmp_path / "a.png"
    options = ["-o", out, "--repository", project.folder / "repository", "--threads", "1"]
    said = distill(capsys, "generate", "a small red circle", *options, "--seed", "5")
    assert said == (0, f"{out}: seed 5, model tiny/1\n", "")
    with Image.open(out) as picture:
        assert picture.size == (64, 64)
        assert picture.text["prompt"] == "a small red circle"
    drawn = distill(capsys, "generate", "a", *options)
    seed = drawn.out.split("seed ")[1].split(",")[0]
    random = out.read_bytes()
    assert distill(capsys, "generate", "a", *options, "--seed", seed).status == 0
    assert out.read_bytes() == random


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--size", "65x64"], "size: is 65x64, tiny/1 has sizes: 64x64"),
        (["--seed", "-1"], "seed: is -1"),
        (["--quality", "50"], "quality: applies to jpeg and webp, the format is png"),
        (["--model", "none"], "there is no model 'none'"),
        (["--threads", "-1"], "--threads is '-1'"),
        (["--repository", "nowhere"], "the model repository nowhere is not a folder"),
        (["-o", "a.bmp"], "a.bmp ends in '.bmp', allowed are: .png, .jpg, .jpeg, .webp"),
    ],
)
def test_generate_says_what_is_wrong(capsys, tiny_export, tmp_path, options, sentence) -> None:
    base = ["--repository", tiny_export.repository, "-o", tmp_path / "a.png"]
    said = distill(capsys, "generate", "a", *base, *options)
    assert (said.status, said.out) == (1, "")
    assert sentence in said.err
    assert not (tmp_path / "a.png").exists()


def test_a_prompt_over_the_limit_is_refused_not_cut(capsys, tiny_export, tmp_path) -> None:
    base = ["--repository", tiny_export.repository, "-o", tmp_path / "a.png"]
    said = distill(capsys, "generate", "astronaut " * 40, *base)
    assert said.status == 1
    assert "tokens long with start and end, allowed are 77" in said.err


def test_a_new_key_is_shown_once_beside_the_lines_that_let_it_in(capsys, tmp_path) -> None:
    said = distill(capsys, "key", "alice")
    (tmp_path / "keys.toml").write_text(said.out)
    made = said.err.split()[-1]
    (found,) = read_keys(tmp_path / "keys.toml")
    assert (said.status, found.name) == (0, "alice")
    assert found.digest == hashlib.sha256(made.encode()).digest()
    assert made not in said.out
    refused = distill(capsys, "key", "a b")
    assert (refused.status, refused.out) == (1, "")
    assert "'a b'" in refused.err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--repository", "nowhere"], "the model repository nowhere is not a folder"),
        (["--port", "70000"], "--port is '70000': input should be less than or equal to 65535"),
        (["--max-queue", "1"], "max_images is 8, allowed is at most max_queue (1)"),
        (["--host", "no.such.host.invalid"], "cannot listen on host no.such.host.invalid"),
    ],
)
def test_serve_says_what_is_wrong(capsys, tiny_export, options, sentence) -> None:
    said = distill(capsys, "serve", "--repository", tiny_export.repository, *options)
    assert (said.status, said.out) == (1, "")
    assert sentence in said.err


def test_a_half_written_repository_is_named(capsys, tiny_export, tmp_path) -> None:
    repository = shutil.copytree(tiny_export.repository, tmp_path / "repository")
    graph = repository / "tiny" / "1" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    said = distill(capsys, "generate", "a", "--repository", repository, "-o", tmp_path / "a.png")
    assert said.status == 1
    assert f"{graph} has " in said.err
    assert "it is half written" in said.err
