"""Pages, pins and the Makefile say what the code does."""

import inspect
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from distill.judge import FUNCTIONS, Judge
from distill.recipe import Recipe, read_recipe
from export.graph.to_onnx import LARGEST_BATCH

ROOT = Path(__file__).parents[1]
TARGETS = ("help", "test", "check", "demo", "model", "clean")


def fields(section: type[BaseModel], prefix: str = "") -> dict[str, str]:
    """Every key of the recipe, dotted, with its default as YAML, or `required`."""
    found = {}
    for name, field in section.model_fields.items():
        kinds = getattr(field.annotation, "__args__", (field.annotation,))  # Evaluate | None
        inner = [k for k in kinds if inspect.isclass(k) and issubclass(k, BaseModel)]
        if inner:
            found |= fields(inner[0], f"{prefix}{name}.")
            continue
        found[prefix + name] = "required" if field.is_required() else field.default
    return found


def rows(page: str) -> dict[str, list[str]]:
    """The table rows of a page whose first cell is code, by that code."""
    text = (ROOT / "docs" / page).read_text("utf-8")
    cells = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return {row[0].strip(" `"): [cell.strip() for cell in row[1:]] for row in cells}


def as_value(cell: str) -> object:
    """A default as the page writes it."""
    plain = yaml.safe_load(cell.strip("`"))
    if isinstance(plain, str) and re.fullmatch(r"\d+e-\d+", plain):
        return float(plain)  # YAML 1.1 wants a dot, people do not
    return {"none": None}.get(plain, plain) if isinstance(plain, str) else plain


def test_the_page_of_the_recipe_names_every_key_and_its_default() -> None:
    page, model = rows("recipe.md"), fields(Recipe)
    assert len(model) > 40
    assert page.keys() == model.keys()
    for key, default in model.items():
        expected = list(default) if isinstance(default, tuple) else default
        assert as_value(page[key][1]) == expected, key


def test_the_recipe_on_the_page_is_valid(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "recipe.md").read_text("utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "recipe.yaml").write_text(block)
    recipe = read_recipe(tmp_path / "recipe.yaml")
    assert recipe.teacher.model == tmp_path / "teacher"


def test_a_recipe_allows_as_large_a_batch_as_the_exporter() -> None:
    (limit,) = (
        part.le
        for part in Recipe.model_fields["export"].annotation.model_fields["max_batch"].metadata
        if hasattr(part, "le")
    )
    assert limit == LARGEST_BATCH


def test_the_page_of_the_judge_names_every_function_with_its_parameters() -> None:
    page = rows("evaluation.md")
    for name in FUNCTIONS:
        parameters = list(inspect.signature(getattr(Judge, name)).parameters)[1:]
        assert f"{name}({', '.join(parameters)})" in page


def test_constraints_pin_every_requirement_and_nothing_else() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()[1:]
    pins = dict(
        re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9.]+(?:b\d+)?)", line).groups() for line in lines
    )
    known = {name.lower().replace("_", "-") for name in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {re.match(r"[A-Za-z0-9._-]+", one)[0].lower() for some in wanted for one in some}
    assert names <= known
    assert pins["torch"] == "2.13.0"


def test_help_names_every_target() -> None:
    command = ["make", "--no-print-directory", "help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert [line.split()[1] for line in done.stdout.splitlines()] == list(TARGETS)


@pytest.mark.parametrize("options", [["PYTHON=./old"], ["PYTHON="], []])
def test_make_says_when_python_is_too_old_or_missing(tmp_path: Path, options) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "old").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "old").chmod(0o755)
    (tmp_path / "make").symlink_to(shutil.which("make"))
    (tmp_path / "sh").symlink_to("/bin/sh")
    done = subprocess.run(
        [tmp_path / "make", "SHELL=/bin/sh", *options, "test"],
        cwd=tmp_path,
        env={"PATH": str(tmp_path)},  # nothing but these: no python at all
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "Python 3.11 or newer is needed" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_ci_runs_the_targets_that_people_run() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    text = script.read_text("utf-8")
    assert "set -euo pipefail" in text
    assert re.findall(r"^make (\w+)$", text, re.MULTILINE) == ["test", "check"]
    subprocess.run(["bash", "-n", script], check=True)
