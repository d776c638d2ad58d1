"""The conditions of prompts, encoded once by the teacher and kept in shards."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from distill.data import ConditionRows, DataError, Report
from distill.shards import (
    StoredConditions,
    StoredRows,
    begin,
    open_shard,
    shard_path,
    write_shard,
)
from distill.teachers.teacher import Teacher
from distill.turns import EVERY, Turns

WIDTH = 256  # prompts of a shard: 160 MB of SDXL's


def stored_conditions(
    teacher: Teacher,
    digest: str,
    prompts: Sequence[str],
    folder: Path,
    report: Report,
) -> ConditionRows:
    """The conditions of prompts, a row each, made as far as they are not yet.

    `digest` is the teacher's `sampling_digest`. TeacherError: a prompt is too long, or no class.
    """
    facts = {"prompts_sha256": prompts_digest(prompts), "teacher_sha256": digest}
    if "teacher_sha256" in begin(folder, facts):
        report(f"{folder} was made with another teacher; it is made again")
    make_conditions(teacher, prompts, folder, WIDTH)
    return open_conditions(folder, len(prompts), WIDTH)


def make_conditions(
    teacher: Teacher, prompts: Sequence[str], folder: Path, width: int, turns: Turns = EVERY
) -> None:
    """Writes the missing shards of `width` prompts whose turn it is."""
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(prompts), width)
    missing = [n for n in turns.of(len(starts)) if not shard_path(folder, n).is_file()]
    bar = tqdm(missing, desc="conditions", unit="shard", disable=None, leave=False)
    for number in bar:
        start = starts[number]
        encoded = teacher.encode(prompts[start : start + width])
        write_shard(shard_path(folder, number), encoded.parts)


def open_conditions(folder: Path, count: int, width: int) -> ConditionRows:
    """The conditions of `count` prompts. DataError: a shard is missing or broken."""
    shards = [open_shard(shard_path(folder, n)) for n in range(-(-count // width))]
    rows = {name: StoredRows([shard[name] for shard in shards]) for name in shards[0]}
    conditions = StoredConditions(rows)
    if len(conditions) != count:
        raise DataError(f"{folder} holds {len(conditions)} conditions, not {count}; delete it")
    return conditions


def prompts_digest(prompts: Sequence[str]) -> str:
    """SHA-256 over the prompts in their order."""
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest()
