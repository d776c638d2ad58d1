"""Data sets of every local form become entries; one that is not what it must be is named."""

import io
import json
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from picture_folders import write_pictures
from PIL import Image
from tiny_training import silent, tiny_recipe

from distill.data import DataError
from distill.dataset_source import DatasetSource
from distill.encoding import picture_samples
from distill.recipe import Dataset
from distill.teachers.sdxl import SdxlTeacher

TEXTS = ("red", "blue", "red", "a picture", "blue")


@pytest.fixture(autouse=True)
def quiet_bars() -> None:
    datasets.disable_progress_bars()


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 40 * number, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(folder: Path, plain: bool = False, texts: object = TEXTS) -> Path:
    folder.mkdir(parents=True)
    images = [png(n) if plain else {"bytes": png(n), "path": f"{n}.png"} for n in range(5)]
    table = pa.table({"image": images, "text": list(texts)})  # type: ignore[call-overload]
    pq.write_table(table, folder / "train-00000.parquet", row_group_size=2)
    return folder


def write_tars(folder: Path) -> Path:
    """Two tars of three samples: a picture, a text and a JSON each."""
    folder.mkdir(parents=True)
    for number in range(6):
        files = {"png": png(number), "txt": TEXTS[number % 5].encode()}
        files["json"] = json.dumps({"caption": f"number {number}"}).encode()
        with tarfile.open(folder / f"{number // 3:03d}.tar", "a") as tar:
            for suffix, content in files.items():
                info = tarfile.TarInfo(f"{number:04d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return folder


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache of `datasets` lies in the test's own folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("streaming", [True, False])
def test_parquet_rows_are_entries(
    tmp_path: Path, cached: None, streaming: bool, plain: bool
) -> None:
    folder = write_parquet(tmp_path / "data", plain)
    source = DatasetSource(Dataset(path=str(folder), streaming=streaming))
    entries = list(source.entries(0))
    assert [entry.content for entry in entries] == [png(n) for n in range(5)]
    assert [entry.texts for entry in entries] == [((n, text),) for n, text in enumerate(TEXTS)]
    assert entries[3].name == f"{folder}, row 3"
    assert list(source.entries(3)) == entries[3:]
    assert source.count == (None if streaming else 5)


def test_a_single_file_and_a_limit(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "data")
    path = str(folder / "train-00000.parquet")
    assert len(list(DatasetSource(Dataset(path=path, limit=3)).entries(1))) == 2


@pytest.mark.parametrize("streaming", [True, False])
def test_tars_are_entries(tmp_path: Path, cached: None, streaming: bool) -> None:
    folder = write_tars(tmp_path / "data")
    plain = Dataset(path=str(folder), image="png", text="txt", streaming=streaming)
    assert [e.texts[0][1] for e in DatasetSource(plain).entries(0)] == [*TEXTS, "red"]
    settings = plain.model_copy(update={"text": "json.caption"})
    entries = list(DatasetSource(settings).entries(2))
    assert [entry.texts for entry in entries] == [((n, f"number {n}"),) for n in range(2, 6)]
    assert [entry.content for entry in entries] == [png(n) for n in range(2, 6)]


def test_a_folder_of_pictures_is_a_data_set_too(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "pictures", 3)
    source = DatasetSource(Dataset(path=str(folder)))
    (folder / "1.png").write_bytes(b"no picture")
    entries = list(source.entries(0))
    assert [Path(str(entry.content)).name for entry in entries[:3]] == ["0.png", "1.png", "2.png"]


def test_what_save_to_disk_wrote_is_opened(tmp_path: Path) -> None:
    columns = {"image": [png(n) for n in range(3)], "text": [0, 1, 0]}
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "one")
    source = DatasetSource(Dataset(path=str(tmp_path / "one")))
    assert [entry.texts[0][1] for entry in source.entries(0)] == ["0", "1", "0"]
    whole = datasets.DatasetDict({"test": datasets.Dataset.from_dict(columns)})
    whole.save_to_disk(tmp_path / "several")
    source = DatasetSource(Dataset(path=str(tmp_path / "several"), split="test"))
    assert source.count == 3


@pytest.mark.parametrize("streaming", [True, False])
def test_what_img2dataset_wrote_is_read_from_its_tars(
    tmp_path: Path, cached: None, streaming: bool
) -> None:
    folder = write_tars(tmp_path / "laion [1]")
    for number in range(2):
        pq.write_table(pa.table({"url": ["a"], "caption": ["b"]}), folder / f"{number:03d}.parquet")
        (folder / f"{number:03d}_stats.json").write_text('{"count": 3}')
    settings = Dataset(path=str(folder), image="png", text="txt", streaming=streaming)
    assert [e.texts[0][1] for e in DatasetSource(settings).entries(0)] == [*TEXTS, "red"]
    settings = settings.model_copy(update={"path": str(folder / "001.tar")})
    assert [e.content for e in DatasetSource(settings).entries(0)] == [png(n) for n in (3, 4, 5)]


def test_a_split_that_was_not_saved_is_named(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"image": [png(0)], "text": ["red"]})
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match=r"saved cannot be read: it has no split test; it has t"):
        DatasetSource(Dataset(path=str(tmp_path / "saved"), split="test"))


def test_captions_are_on_one_line_without_space_around_them(tmp_path: Path) -> None:
    texts = ["red\n", " red", "\ufeffred", "a red\r\ncircle", ""]
    folder = write_parquet(tmp_path / "data", texts=texts)
    entries = DatasetSource(Dataset(path=str(folder))).entries(0)
    assert [e.texts[0][1] for e in entries] == ["red", "red", "red", "a red circle", ""]


def test_a_table_of_files_has_them_beside_it(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(png(0))
    pq.write_table(pa.table({"image": ["0.png"], "text": ["red"]}), tmp_path / "p.parquet")
    for path in (tmp_path, tmp_path / "p.parquet"):
        entry = next(DatasetSource(Dataset(path=str(path / "."))).entries(0))
        assert entry.content == tmp_path / "0.png"


def test_a_csv_is_read_as_a_whole(tmp_path: Path, cached: None) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "rows.csv").write_text("image,text\n0.png,red\n1.png,blue\n")
    with pytest.raises(DataError, match=r"dataset\.streaming: the columns of .*; set it to false"):
        DatasetSource(Dataset(path=str(folder)))
    source = DatasetSource(Dataset(path=str(folder), streaming=False))
    assert [e.content for e in source.entries(0)] == [folder / "0.png", folder / "1.png"]


def test_numbers_of_pixels_are_refused_with_their_row(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [[0, 255]], "text": ["red"]}), tmp_path / "p.parquet")
    source = DatasetSource(Dataset(path=str(tmp_path / "p.parquet")))
    with pytest.raises(DataError, match=r"row 0: image is a list, neither the bytes of a picture"):
        list(source.entries(0))


def test_a_stream_of_which_nothing_can_be_read_ends_with_its_first_shard(
    teacher: SdxlTeacher, tiny_sdxl: Path, tmp_path: Path
) -> None:
    table = pa.table({"image": ["no.png"] * 40, "text": ["red"] * 40})
    pq.write_table(table, tmp_path / "p.parquet")
    settings = "positives={source: images, dataset: {path: p.parquet}, batch: 1}"
    with pytest.raises(DataError, match=r"^16 of 16 pictures of .*p\.parquet cannot be read, more"):
        picture_samples(teacher, tiny_recipe(tmp_path, tiny_sdxl, settings), silent)


def test_why_a_copy_cannot_be_made_is_told(tmp_path: Path, cached: None) -> None:
    folder = write_parquet(tmp_path / "data")
    pq.write_table(pa.table({"image": [png(0)], "text": [3.5]}), folder / "train-00001.parquet")
    with pytest.raises(DataError, match=r"data cannot be read: .*[Cc]ast"):
        DatasetSource(Dataset(path=str(folder), streaming=False))


def test_numbers_of_classes_are_no_prompts(
    teacher: SdxlTeacher, tiny_sdxl: Path, tmp_path: Path
) -> None:
    features = datasets.Features(
        {"image": datasets.Value("binary"), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    rows = datasets.Dataset.from_dict({"image": [png(0)], "label": [1]}, features=features)
    rows.save_to_disk(tmp_path / "data")
    settings = "positives={source: images, dataset: {path: data, text: label}}"
    with pytest.raises(DataError, match=r"label of .*data holds numbers of classes, but this te"):
        picture_samples(teacher, tiny_recipe(tmp_path, tiny_sdxl, settings), silent)


def test_several_captions_of_a_picture_are_texts_of_it(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "data", texts=[["red", "blue"]] + [["red"]] * 4)
    first = next(DatasetSource(Dataset(path=str(folder))).entries(0))
    assert first.texts == ((0, "red"), (0, "blue"))


@pytest.mark.parametrize("text", [None, 1.5, True, []])
def test_a_text_that_is_none_is_named_with_its_row(tmp_path: Path, text: object) -> None:
    folder = write_parquet(tmp_path / "data", texts=[text] * 5)
    source = DatasetSource(Dataset(path=str(folder)))
    with pytest.raises(DataError, match=r"data, row 0: text is .*, neither a text nor a number"):
        list(source.entries(0))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"path": "nowhere"}, r"positives\.dataset: nowhere cannot be read: it does not exist"),
        ({"split": "test"}, r"data cannot be read: Bad split: test. Available splits: \['train'\]"),
        ({"image": "photo"}, r"dataset\.image: .* has no column 'photo'; it has image, text"),
        ({"text": "json.caption"}, r"dataset\.text: .* has no column 'json'; it has image, text"),
        ({"path": __file__}, r"cannot be read: a file must end in \.parquet, \.tar, \.arrow"),
        ({"path": "hub:no/no"}, r"hub:no/no cannot be read: Couldn't reach 'no/no' on the Hub"),
    ],
)
def test_a_data_set_that_is_not_there_is_named(
    tmp_path: Path, settings: dict[str, str], sentence: str
) -> None:
    folder = write_parquet(tmp_path / "data")
    with pytest.raises(DataError, match=sentence):
        DatasetSource(Dataset(**{"path": str(folder), **settings}))  # type: ignore[arg-type]


def test_a_torn_file_is_named(tmp_path: Path) -> None:
    folder = write_tars(tmp_path / "data")
    source = DatasetSource(Dataset(path=str(folder), image="png", text="txt"))
    tar = folder / "001.tar"
    tar.write_bytes(tar.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"positives\.dataset: .*data cannot be read: "):
        list(source.entries(0))


def test_a_fingerprint_sees_files_and_settings_but_not_the_way_of_reading(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "data")
    before = DatasetSource(Dataset(path=str(folder))).fingerprint()
    assert DatasetSource(Dataset(path=str(folder), limit=2)).fingerprint() != before
    write_parquet(folder / "more")
    assert DatasetSource(Dataset(path=str(folder))).fingerprint() != before


def test_rows_become_samples(teacher: SdxlTeacher, tiny_sdxl: Path, tmp_path: Path) -> None:
    write_parquet(tmp_path / "data")
    recipe = tiny_recipe(
        tmp_path, tiny_sdxl, "positives={source: images, dataset: {path: data}, batch: 2}"
    )
    lines: list[str] = []
    samples = picture_samples(teacher, recipe, lines.append)
    assert lines == [f"encoding the pictures of {tmp_path / 'data'}"]
    assert samples.prompts == ("red", "blue", "a picture")
    assert [members.tolist() for members in samples.members] == [[0, 2], [1, 4], [3]]
    again = picture_samples(teacher, recipe, silent)
    assert again.latents[:].equal(samples.latents[:])
