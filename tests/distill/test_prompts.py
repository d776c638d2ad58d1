"""Prompts from text, JSONL and Parquet, and what becomes of those that are too long."""

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_training import silent

from distill.data import DataError
from distill.prompts import every_prompt, fitting, load_library, read_prompts, truncated
from distill.teachers.sdxl import SdxlTeacher

LONG = "q" * 90
WORDS = " ".join(["blue"] * 100)


def written(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines), "utf-8")
    return path


def test_prompts_are_lines_without_blanks_and_repetitions(tmp_path: Path) -> None:
    path = written(tmp_path / "prompts.txt", "  a red circle ", "", "blue", "a red circle")
    assert read_prompts(path) == ("a red circle", "blue")
    assert every_prompt(path) == ["a red circle", "blue", "a red circle"]


def test_prompts_are_those_of_any_editor_and_end_where_lines_do(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa red circle \r\n\r\none\u2028two\x85three\r\nblue\r\n".encode())
    assert read_prompts(path) == ("a red circle", "one two three", "blue")
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "one\xe2\x80\xa8two"}\n{"Prompt": "blue"}\n')
    assert read_prompts(path) == ("one two", "blue")


def test_prompts_of_objects_may_have_any_of_the_names(tmp_path: Path) -> None:
    lines = [{"prompt": "red"}, {"text": "two\nlines"}, {"caption": 3, "id": 7}, "", {"text": " "}]
    assert read_prompts(written(tmp_path / "p.jsonl", *lines)) == ("red", "two lines", "3")


@pytest.mark.parametrize("line", ['{"prompt": "red"', '{"id": 1}', "[1]", '"red"', "3", "null"])
def test_a_line_that_is_no_object_with_a_prompt_is_named(tmp_path: Path, line: str) -> None:
    path = written(tmp_path / "p.jsonl", {"prompt": "red"}, line)
    with pytest.raises(DataError) as error:
        read_prompts(path)
    wanted = "not an object with prompt, text or caption"
    assert str(error.value) == f"{path}, line 2: {wanted}: {line}"


@pytest.mark.parametrize("value", [None, True, 1.5, ["red"]])
def test_a_prompt_that_is_no_text_is_named(tmp_path: Path, value: object) -> None:
    path = written(tmp_path / "p.jsonl", {"prompt": value})
    with pytest.raises(DataError) as error:
        read_prompts(path)
    assert str(error.value) == f"{path}, line 1: the prompt is {str(value)!r}, which is no text"


@pytest.mark.parametrize("column", ["prompt", "text", "caption", "Prompt", "TEXT"])
def test_prompts_of_a_table_are_one_column(tmp_path: Path, column: str) -> None:
    table = pa.table({"id": [1, 2, 3], column: ["red", "blue", "red"]})
    pq.write_table(table, tmp_path / "p.parquet", row_group_size=2)
    assert read_prompts(tmp_path / "p.parquet") == ("red", "blue")


def test_a_table_without_a_column_of_prompts_or_with_a_hole_is_named(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"id": [1], "title": ["red"]}), path)
    with pytest.raises(DataError, match=r"has the columns id, title; one of prompt, text, caption"):
        read_prompts(path)
    pq.write_table(pa.table({"text": ["red", None]}), path)
    with pytest.raises(DataError, match=r"p\.parquet, row 2: the prompt is 'None'"):
        read_prompts(path)
    path.write_bytes(b"no table")
    with pytest.raises(DataError, match=r"p\.parquet cannot be read as Parquet: "):
        read_prompts(path)


def test_prompts_that_are_missing_empty_or_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    with pytest.raises(DataError, match=r"positives\.prompts: .*prompts\.txt does not exist"):
        read_prompts(path)
    with pytest.raises(DataError, match=r"prompts\.txt is empty, so the prompt bank would be too"):
        read_prompts(written(path, "", "  "))
    path.write_bytes(b"red\nblue\ncaf\xe9\n")
    with pytest.raises(DataError, match=r"prompts\.txt is not UTF-8, line 3: .* byte 0xe9"):
        read_prompts(path)
    with pytest.raises(DataError, match=r"ends in \.csv; allowed are \.txt, \.jsonl and \.parquet"):
        read_prompts(written(tmp_path / "prompts.csv", "red"))


def test_a_library_that_is_not_installed_is_named_with_its_extra() -> None:
    with pytest.raises(DataError, match=r"it needs the package nowhere: pip install 'singlepass\["):
        load_library("nowhere.inner", "it")


def test_short_prompts_stay_as_they_are(teacher: SdxlTeacher) -> None:
    def fail(text: str) -> None:
        raise AssertionError(text)

    assert fitting(teacher, ["red", "", "red"], "skip", fail) == {"red": "red", "": ""}


def test_one_long_prompt_is_refused_with_what_may_be_done(teacher: SdxlTeacher) -> None:
    with pytest.raises(DataError, match=r"^prompt 'q{60}'… has 92 tokens; .* 77; positives\.long_"):
        fitting(teacher, ["red", LONG], "refuse", silent)


def test_many_long_prompts_are_refused_with_their_number(teacher: SdxlTeacher) -> None:
    with pytest.raises(
        DataError, match=r"^2 of 3 prompts are too long, the first: prompt 'qq.* 77;"
    ):
        fitting(teacher, ["red", LONG, WORDS], "refuse", silent)


def test_long_prompts_are_skipped_and_told_once(teacher: SdxlTeacher) -> None:
    lines: list[str] = []
    assert fitting(teacher, [LONG, "red", WORDS], "skip", lines.append) == {"red": "red"}
    assert lines == ["2 of 3 prompts are too long for the teacher and are left out"]
    with pytest.raises(DataError, match="all 2 prompts are too long, so none is left"):
        fitting(teacher, [LONG, WORDS], "skip", silent)


def test_long_prompts_are_cut_after_the_last_word_that_fits(teacher: SdxlTeacher) -> None:
    lines: list[str] = []
    cut = fitting(teacher, [WORDS, LONG, "red"], "truncate", lines.append)
    assert cut == {WORDS: " ".join(["blue"] * 75), LONG: "q" * 75, "red": "red"}
    assert lines == [
        "2 of 3 prompts are too long for the teacher and are cut after the last word that fits"
    ]
    assert truncated(teacher, "blue " + LONG) == "blue"
    teacher.encode(list(cut.values()))


class Wordless:
    """A teacher that is told classes: no text of it is too long."""

    def encode(self, texts: Sequence[str], batch: int = 64) -> None: ...


def test_a_teacher_of_classes_takes_all(tmp_path: Path) -> None:
    assert fitting(Wordless(), ["1", LONG], "refuse", silent) == {"1": "1", LONG: LONG}  # type: ignore[arg-type]
