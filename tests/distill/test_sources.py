"""Captioned files and class folders become entries in a fixed order."""

import json
from pathlib import Path

import pytest
from picture_folders import write_classes, write_pictures

from distill.data import DataError
from distill.sources import Files, captioned_files, class_files, grouped


def groups_of(folder: Path) -> dict[str, list[str]]:
    """File names by text."""
    entries = list(captioned_files(folder).entries(0))
    groups = grouped([entry.texts for entry in entries])
    return {t: [Path(entries[row].name).name for row in rows] for t, rows in groups.items()}


def test_captions_group_files_by_text_in_the_files_order(tmp_path: Path) -> None:
    assert groups_of(write_pictures(tmp_path / "pictures")) == {
        "red": ["0.png", "2.png", "4.png"],
        "blue": ["1.png", "3.png"],
        "a picture": ["0.png"],
    }


def test_entries_begin_anywhere(tmp_path: Path) -> None:
    files = captioned_files(write_pictures(tmp_path / "pictures"))
    assert list(files.entries(3)) == list(files.entries(0))[3:]
    assert list(files.entries(5)) == []
    assert files.count == 5
    assert files.texts() == ["red", "a picture", "blue"]


def test_a_line_that_is_there_twice_counts_once(tmp_path: Path) -> None:
    line = json.dumps({"file_name": "a.png", "text": "red"}) + "\n"
    (tmp_path / "metadata.jsonl").write_text(2 * line, "utf-8")
    assert groups_of(tmp_path) == {"red": ["a.png"]}


def test_captions_are_lines_of_json_whatever_else_ends_a_line(tmp_path: Path) -> None:
    lines = [
        {"file_name": "a.png", "text": " red\n"},
        {"file_name": "b.png", "text": "red"},
        {"file_name": "c.png", "text": "one\u2028two\x85three"},
    ]
    content = "\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (tmp_path / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + content.encode() + b"\r\n\r\n")
    assert groups_of(tmp_path) == {"red": ["a.png", "b.png"], "one two three": ["c.png"]}


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        ({"file_name": "a.png", "text": None}, "the text is 'None'"),
        ({"file_name": "a.png", "text": ["red"]}, r"the text is \"\['red'\]\""),
        ({"file_name": None, "text": "red"}, "the file_name is 'None'"),
    ],
)
def test_what_is_no_text_is_not_made_one(tmp_path: Path, entry: object, what: str) -> None:
    (tmp_path / "metadata.jsonl").write_text(json.dumps(entry), "utf-8")
    with pytest.raises(DataError, match=f"line 1: {what}, which is no text"):
        captioned_files(tmp_path)


@pytest.mark.parametrize(
    "line", ['{"text": "red"', '{"text": "red"}', '{"file_name": "a.png"}', "[1]", '"red"', "3"]
)
def test_a_broken_line_is_named_with_its_number(tmp_path: Path, line: str) -> None:
    good = json.dumps({"file_name": "a.png", "text": "red"})
    (tmp_path / "metadata.jsonl").write_text(f"{good}\n{line}\n", "utf-8")
    with pytest.raises(DataError) as error:
        captioned_files(tmp_path)
    sentence = f"line 2: not an object with file_name and text: {line}"
    assert str(error.value) == f"{tmp_path / 'metadata.jsonl'}, {sentence}"


def test_metadata_that_is_missing_empty_or_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metadata.jsonl"
    with pytest.raises(DataError, match=r"positives.folder: .*metadata.jsonl does not exist"):
        captioned_files(tmp_path)
    path.write_text("\n\n", "utf-8")
    with pytest.raises(DataError, match=r"metadata.jsonl is empty: there is no prompt to learn"):
        captioned_files(tmp_path)
    path.write_bytes(b'{"text": "\xff"}')
    with pytest.raises(DataError, match=r"metadata.jsonl is not UTF-8, line 1: "):
        captioned_files(tmp_path)


def test_class_folders_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    files = class_files(write_classes(tmp_path / "c", ("10", "2"), 2, 4), 11)
    assert (files.texts(), files.class_names) == (["2", "10"], ())
    assert [entry.texts for entry in files.entries(0)] == [((2, "2"),)] * 2 + [((10, "10"),)] * 2
    assert grouped([entry.texts for entry in files.entries(0)]) == {"2": [0, 1], "10": [2, 3]}


def numbered(files: Files) -> list[tuple[str, str]]:
    """The folder of every picture, and the class that it is of."""
    return [(Path(entry.name).parent.name, entry.texts[0][1]) for entry in files.entries(0)]


def test_class_folders_may_be_named_by_a_list(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "c", ("cat", "ant"), 1, 4)
    (folder / "classes.txt").write_text("cat\ndog\nant\n")
    (folder / "cat" / "notes.txt").write_text("no picture")
    files = class_files(folder, 3, ("ant", "cat", "dog"))
    assert numbered(files) == [("cat", "0"), ("ant", "2")]
    assert files.class_names == ("cat", "dog", "ant")


def test_a_list_may_be_written_by_another_editor(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "c", ("cat", "ant"), 1, 4)
    (folder / "classes.txt").write_bytes(b"\xef\xbb\xbfcat\r\nant \r\n\r\n\r\n")
    assert class_files(folder, 2).class_names == ("cat", "ant")


def test_what_systems_leave_in_class_folders_is_no_picture_and_no_class(tmp_path: Path) -> None:
    write_classes(tmp_path / "elsewhere", ("n02",), 2, 4)
    folder = write_classes(tmp_path / "c", ("n01", ".cache"), 1, 4)
    write_classes(folder / "n01", (".ipynb_checkpoints",), 1, 4)
    (folder / "n02").symlink_to(tmp_path / "elsewhere" / "n02")
    (folder / "n01" / "0.png").rename(folder / "n01" / "n01_0.JPEG")
    for name in (".DS_Store", "n01/.DS_Store", "n01/Thumbs.db", "n01/._n01_0.JPEG"):
        (folder / name).write_bytes(b"no picture")
    files = class_files(folder, 2)
    assert files.names == ["n01/n01_0.JPEG", "n02/0.png", "n02/1.png"]
    assert numbered(files) == [("n01", "0"), ("n02", "1"), ("n02", "1")]


def test_folders_that_are_no_classes_have_them_in_a_list_of_pictures(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "c", ("00000", "00001"), 2, 4)
    labels = [["00000/0.png", 6], ["00000/1.png", 9], ["00001/0.png", 6], ["00001/1.png", 0]]
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    files = class_files(folder, 10)
    assert files.texts() == ["0", "6", "9"]
    assert files.names == ["00001/1.png", "00000/0.png", "00001/0.png", "00000/1.png"]


@pytest.mark.parametrize(
    "text", ["", "[]", '{"labels": null}', '{"labels": [["0/0.png", [0, 1]]]}']
)
def test_a_list_of_pictures_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=r"dataset\.json must hold the classes of pictures"):
        class_files(tmp_path, 10)


def test_without_a_list_the_teachers_names_count_or_the_order_of_all_folders(
    tmp_path: Path,
) -> None:
    folder = write_classes(tmp_path / "c", ("n02", "n01", "n03"), 1, 4)
    files = class_files(folder, 3)
    assert numbered(files) == [("n01", "0"), ("n02", "1"), ("n03", "2")]
    assert files.class_names == ("n01", "n02", "n03")
    named = class_files(folder, 4, ("n03", "n02", "n00", "n01"))
    assert numbered(named) == [("n03", "0"), ("n02", "1"), ("n01", "3")]
    with pytest.raises(DataError, match=r"each of the teacher's 4 classes, and there are 3$"):
        class_files(folder, 4)


def test_class_folders_that_are_not_what_they_must_be_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    with pytest.raises(DataError, match=r"positives\.folder: .*c does not exist"):
        class_files(folder, 2)
    with pytest.raises(DataError, match=r"positives\.folder: .*\.py is a file; unpack it"):
        class_files(Path(__file__), 2)
    folder.mkdir()
    with pytest.raises(DataError, match="holds no folder of a class"):
        class_files(folder, 2)
    (folder / "cat").mkdir()
    with pytest.raises(DataError, match=r"class folder .*cat holds no picture"):
        class_files(folder, 2)
    write_classes(folder, ("dog",), 1, 4)
    (folder / "cat" / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"c/cat is named neither by a number nor in .*classes\.tx"):
        class_files(folder, 3)
    (folder / "classes.txt").write_text("dog\n")
    with pytest.raises(DataError, match=r"class folder .*cat is not named in .*classes\.txt"):
        class_files(folder, 2)
    (folder / "classes.txt").write_text("cat\ncrane\ncrane\n")
    with pytest.raises(DataError, match=r"classes\.txt, line 3: crane is there twice"):
        class_files(folder, 2)


def test_a_fingerprint_sees_files_and_texts(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "pictures", suffix="bmp")
    before = captioned_files(folder).fingerprint()
    assert captioned_files(folder).fingerprint() == before
    (folder / "1.bmp").write_bytes((folder / "2.bmp").read_bytes())
    changed = captioned_files(folder).fingerprint()
    (folder / "1.bmp").unlink()
    assert len({before, changed, captioned_files(folder).fingerprint()}) == 3
