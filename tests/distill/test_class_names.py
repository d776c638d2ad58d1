"""Names of classes come from the teacher or the pictures, and go on in the student's directory."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from picture_folders import write_classes
from tiny_classes import save_tiny_edm
from tiny_training import CPU, silent, tiny_recipe

from distill.dataset_source import DatasetSource
from distill.recipe import Dataset, Recipe
from distill.run import distil
from distill.teachers.opening import load_teacher
from distill.teachers.teacher import TeacherError

BEASTS = ("ant", "bee", "cat", "dog")


@pytest.fixture
def edm(tmp_path: Path, plain_edm: Path) -> Path:
    """A teacher's directory, to be changed: four classes."""
    return Path(shutil.copytree(plain_edm, tmp_path / "edm"))


@pytest.fixture(scope="module")
def plain_edm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_edm(tmp_path_factory.mktemp("edm") / "edm")


def recipe_of(folder: Path, edm: Path, positives: str) -> Recipe:
    drift = "drift={layers: [mid_block], pool: 2, groups: 1, samples: 2, positives: 2, anchors: 2}"
    steps = ("train.steps=1", "train.accumulate=1", "teacher.guidance_scale=1")
    return tiny_recipe(folder, edm, f"positives={positives}", drift, *steps)


def test_a_student_of_class_folders_has_their_names(edm: Path, tmp_path: Path) -> None:
    write_classes(tmp_path / "beasts", BEASTS, 4, 16)
    student = distil(recipe_of(tmp_path, edm, "{source: classes, folder: beasts}"), silent)
    assert (student / "classes.txt").read_text("utf-8") == "ant\nbee\ncat\ndog\n"
    assert load_teacher(student, CPU).class_names == BEASTS  # a student may teach in its turn


def test_names_that_are_not_one_for_each_class_are_told_and_left_out(
    edm: Path, tmp_path: Path
) -> None:
    folder = write_classes(tmp_path / "beasts", ("cat", "dog"), 4, 16)
    (folder / "classes.txt").write_text("dog\ncat\n")
    lines: list[str] = []
    recipe = recipe_of(tmp_path, edm, "{source: classes, folder: beasts}")
    student = distil(recipe, lines.append)
    assert f"{folder} names 2 classes and the teacher has 4, so the student's are without" in (
        "\n".join(lines)
    )
    assert not (student / "classes.txt").exists()


def test_the_teachers_own_names_come_first(edm: Path, tmp_path: Path) -> None:
    names = {str(n): f"beast {n},\nnumber {n}" for n in range(4)}
    (edm / "id2label.json").write_text(json.dumps(names), "utf-8")
    folder = write_classes(tmp_path / "beasts", BEASTS, 4, 16)
    (folder / "classes.txt").write_text("\n".join(BEASTS))
    student = distil(recipe_of(tmp_path, edm, "{source: classes, folder: beasts}"), silent)
    assert (student / "classes.txt").read_text("utf-8").splitlines()[3] == "beast 3, number 3"
    (edm / "classes.txt").write_text("\n".join(BEASTS))
    assert load_teacher(edm, CPU).class_names == BEASTS


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("classes.txt", b"ant\nbee\n", r"classes\.txt has 2 names; the teacher has 4 classes"),
        ("classes.txt", b"ant\n\ncat\ndog\n", r"4 names, some of them blank; the teacher has 4"),
        ("classes.txt", b"\xff", r"classes\.txt is not UTF-8"),
        ("id2label.json", b'{"ant": 0}', r"id2label\.json must be an object of names by number"),
        ("id2label.json", b"no JSON", r"id2label\.json must be an object of names by number"),
        ("id2label.json", b"7", r"id2label\.json must be an object of names by number"),
    ],
)
def test_a_teachers_names_that_are_broken_are_refused(
    edm: Path, name: str, content: bytes, sentence: str
) -> None:
    (edm / name).write_bytes(content)
    with pytest.raises(TeacherError, match=sentence):
        load_teacher(edm, CPU)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("classes.txt", "\r\n".join(BEASTS)),
        ("id2label.json", json.dumps(dict(enumerate(BEASTS)))),
    ],
)
def test_a_mark_of_byte_order_is_no_part_of_a_teachers_names(
    edm: Path, name: str, content: str
) -> None:
    (edm / name).write_bytes(b"\xef\xbb\xbf" + content.encode())
    assert load_teacher(edm, CPU).class_names == BEASTS


def test_a_data_set_names_the_classes_of_its_labels(tmp_path: Path) -> None:
    label = {"names": ["ant", "bee"], "_type": "ClassLabel"}
    info = {"info": {"features": {"image": {"dtype": "binary", "_type": "Value"}, "label": label}}}
    table = pa.table({"image": [b"", b""], "label": pa.array([1, 0], pa.int64())})
    (tmp_path / "set").mkdir()
    pq.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps(info)}),
        tmp_path / "set" / "train.parquet",
    )
    source = DatasetSource(Dataset(path=str(tmp_path / "set"), text="label"))
    assert source.class_names == ("ant", "bee")
    assert [entry.texts for entry in source.entries(0)] == [((0, "1"),), ((1, "0"),)]
