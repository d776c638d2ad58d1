"""Shards are whole or not there, belong to what they were made of, and are read row by row."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_training import draw

from distill.data import DataError
from distill.shards import (
    StoredRows,
    begin,
    claim,
    open_shard,
    read_note,
    shard_path,
    write_shard,
)
from distill.turns import EVERY, Turns, read_turns


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=5).filter(any),
    picks=st.lists(st.integers(0, 10**6), max_size=12),
)
def test_rows_are_those_of_the_parts_one_after_the_other(
    lengths: list[int], picks: list[int]
) -> None:
    whole = draw(sum(lengths), 2, 3)
    rows = StoredRows(torch.split(whole, lengths))
    index = torch.tensor(picks, dtype=torch.int64) % len(whole)
    assert len(rows) == len(whole)
    assert torch.equal(rows[index], whole[index])
    assert torch.equal(rows[index.view(-1, 1)], whole[index.view(-1, 1)])
    assert torch.equal(rows[:], whole)
    assert torch.equal(rows[1:3], whole[1:3])


def test_rows_are_converted_as_they_are_read() -> None:
    rows = StoredRows([torch.tensor([[0], [1]]), torch.tensor([[2]])], lambda x: x.float() / 2)
    assert rows[torch.tensor([[2, 0]])].tolist() == [[[1.0], [0.0]]]


@pytest.mark.parametrize("row", [-1, 3])
def test_a_row_that_is_not_there_is_an_error(row: int) -> None:
    with pytest.raises(IndexError, match=f"rows {row} to {row} of 3"):
        StoredRows([torch.zeros(3, 1)])[torch.tensor(row)]


def test_a_shard_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = shard_path(tmp_path / "new", 7)
    write_shard(path, {"a": draw(2, 3).t(), "b": torch.arange(4)}, {"texts": ["é"]})
    assert [p.name for p in path.parent.iterdir()] == ["shard-00007.safetensors"]
    found = open_shard(path)
    assert torch.equal(found["a"], draw(2, 3).t())
    assert found["b"].dtype == torch.int64
    assert read_note(path) == {"texts": ["é"]}


def resident_bytes(file: Path) -> int:
    """What this process has in memory of a file that it maps."""
    _, *parts = Path("/proc/self/smaps").read_text().split(f" {file}\n")
    return sum(1024 * int(part.split("Rss:")[1].split()[0]) for part in parts)


def test_a_shard_is_not_read_until_its_rows_are(tmp_path: Path) -> None:
    path = shard_path(tmp_path, 0)
    write_shard(path, {"a": torch.zeros(64, 2**20, dtype=torch.uint8)})
    rows = StoredRows([open_shard(path)["a"]] * 1)
    assert rows[torch.tensor([5, 60])].sum() == 0
    assert 0 < resident_bytes(path) < 16 * 2**20


def test_a_shard_that_is_missing_torn_or_foreign_is_named(tmp_path: Path) -> None:
    path = shard_path(tmp_path, 0)
    for read in (open_shard, read_note):
        with pytest.raises(DataError, match=r"shard .*shard-00000\.safetensors is broken .*delete"):
            read(path)
    write_shard(path, {"a": draw(9)})
    path.write_bytes(path.read_bytes()[:-4])
    for read in (open_shard, read_note):
        with pytest.raises(DataError, match=r"shard-00000\.safetensors is broken"):
            read(path)


def test_a_folder_is_claimed_once(tmp_path: Path) -> None:
    folder = tmp_path / "bank"
    assert claim(folder, {"a": 1, "b": 2}) == []
    assert claim(folder, {"a": 1, "b": 2}) == []
    assert claim(folder, {"a": 3, "b": 2, "c": 4}) == ["a", "c"]
    assert [path.name for path in folder.iterdir()] == ["index.json"]
    (folder / "index.json").write_text("[]")
    with pytest.raises(DataError, match=r"index\.json is broken .*; delete .*bank"):
        claim(folder, {"a": 1})


def test_rows_of_something_else_are_deleted(tmp_path: Path) -> None:
    assert begin(tmp_path / "f", {"a": 1}) == []
    write_shard(shard_path(tmp_path / "f", 0), {"a": draw(1)})
    assert begin(tmp_path / "f", {"a": 1}) == []
    assert shard_path(tmp_path / "f", 0).is_file()
    assert begin(tmp_path / "f", {"a": 2}) == ["a"]
    assert not shard_path(tmp_path / "f", 0).is_file()
    (tmp_path / "f" / "index.json").write_text('{"a"')
    assert begin(tmp_path / "f", {"a": 2}) == ["index.json"]
    assert json.loads((tmp_path / "f" / "index.json").read_text()) == {"a": 2}


@given(count=st.integers(1, 9), pieces=st.integers(0, 40))
def test_turns_never_overlap_and_leave_nothing(count: int, pieces: int) -> None:
    taken = [piece for index in range(count) for piece in Turns(index, count).of(pieces)]
    assert sorted(taken) == list(range(pieces))


def test_turns_are_an_option_or_torchruns() -> None:
    assert read_turns(None, {}) == EVERY
    assert read_turns(None, {"RANK": "2", "WORLD_SIZE": "4"}) == Turns(2, 4)
    assert read_turns("1/3", {"RANK": "2", "WORLD_SIZE": "4"}) == Turns(1, 3)
    for bad in ("3/3", "1", "a/2", "1/", "-1/2", ""):
        with pytest.raises(DataError, match=r"--shard is '.*'; allowed is I/N with I from 0 to N"):
            read_turns(bad, {})
