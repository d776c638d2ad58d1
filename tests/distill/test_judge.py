"""A judge is a Python file with seven functions; what is missing is named."""

import sys
from pathlib import Path

import pytest

from distill.judge import FUNCTIONS, JudgeError, load_judge

WHOLE = "\n".join(f"def {name}(*args): return []" for name in FUNCTIONS)


def test_a_judge_may_import_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "world_of_this_judge.py").write_text("NAMES = ['a red circle']")
    path = tmp_path / "judge.py"
    path.write_text(
        f"{WHOLE}\nimport world_of_this_judge\n"
        "def captions(count, seed): return world_of_this_judge.NAMES * count"
    )
    before = list(sys.path)
    assert load_judge(path).captions(2, seed=0) == ["a red circle"] * 2
    assert sys.path == before


def test_a_judge_that_fails_leaves_the_path_as_it_was(tmp_path: Path) -> None:
    path, before = tmp_path / "judge.py", list(sys.path)
    path.write_text("1 / 0")
    with pytest.raises(ZeroDivisionError):
        load_judge(path)
    assert sys.path == before


def test_a_judge_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match=r"evaluate\.judge: .*judge\.py does not exist"):
        load_judge(tmp_path / "judge.py")


def test_functions_that_are_missing_are_named(tmp_path: Path) -> None:
    path = tmp_path / "judge.py"
    path.write_text(WHOLE.replace("def modes", "def mods") + "\nright = 3")
    with pytest.raises(JudgeError) as error:
        load_judge(path)
    assert str(error.value) == f"evaluate.judge: {path} does not define right, modes"
