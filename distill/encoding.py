"""Real pictures as samples: encoded once by the teacher, kept in shards, read in place.

    FOLDER/index.json               fingerprint of source, teacher and settings;
           shard-00000.safetensors  latents [n, c, h, w], or pictures [n, 3, H, W] uint8 where the
                                    teacher works on pixels; texts and unreadable ones in its note
           conditions/              of the texts, likewise

A shard stands for the same entries of the source whenever it is made, so a making that was killed
goes on without repeating or skipping one. A picture that cannot be read is skipped; more than 1 %
of them are an error.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from distill.conditions import stored_conditions
from distill.data import DataError, Report, Samples
from distill.dataset_source import DatasetSource
from distill.pictures import read_picture, unit_range
from distill.prompts import fitting
from distill.recipe import Positives, Recipe
from distill.shards import StoredRows, begin, open_shard, read_note, shard_path, write_shard
from distill.sources import Entry, Source, captioned_files, class_files, grouped
from distill.stats import write_whole
from distill.teachers.teacher import Teacher

BATCHES = 16  # of a shard
READERS = 16  # threads that decode pictures, at most
MOST_UNREADABLE = 0.01
NAMED = 10  # unreadable pictures that are reported one by one
UNREADABLE = "unreadable-pictures.txt"
WHOLE = "whole.json"
Note = dict[str, Any]  # rows: the texts of each row; skipped: sentences; entries: of the source
Read = tuple[Entry, Tensor | DataError]


def picture_samples(teacher: Teacher, recipe: Recipe, report: Report) -> Samples:
    """The pictures of a recipe as samples, encoded as far as they are not yet.

    Raises:
        DataError: nothing there, more than 1 % unreadable, texts that are no texts or too long.
        TeacherError: a text that is no class of this teacher.
    """
    positives = recipe.positives
    source = open_source(teacher, positives)
    used = None
    if (known := source.texts()) is not None:  # so that they are refused before any work
        used = fitting(teacher, known, positives.long_prompts, report)
    folder = positives.cache or recipe.run / "pictures"
    notes = encode(teacher, source, recipe, folder, report)
    rows = [texts for note in notes for texts in note["rows"]]
    if used is None:
        texts = [text for row in rows for _, text in row]
        used = fitting(teacher, texts, positives.long_prompts, report)
    groups = grouped([[(n, used[text]) for n, text in row if text in used] for row in rows])
    prompts = tuple(groups)
    digest = teacher.sampling_digest()
    conditions = stored_conditions(teacher, digest, prompts, folder / "conditions", report)
    latents = open_latents(teacher, folder, len(notes))
    members = tuple(map(torch.tensor, groups.values()))
    return Samples(prompts, conditions, latents, members, names_of(source, teacher, report))


def names_of(source: Source, teacher: Teacher, report: Report) -> tuple[str, ...]:
    """The names of the teacher's classes by the source, if it has one for each."""
    names = source.class_names
    if teacher.prompted or teacher.class_names or not names:
        return ()
    if len(names) != teacher.classes or not all(names):
        report(
            f"{source.name} names {len(names)} classes and the teacher has {teacher.classes}, so"
            " the student's are without names"
        )
        return ()
    return names


def open_source(teacher: Teacher, positives: Positives) -> Source:
    """Where a recipe's pictures come from. DataError: it is not what it must be."""
    if positives.dataset is not None:
        source = DatasetSource(positives.dataset)
        if teacher.prompted and source.class_names:
            raise DataError(
                f"positives.dataset.text: {positives.dataset.text} of {source.name} holds numbers"
                " of classes, but this teacher is told prompts"
            )
        return source
    assert positives.folder is not None, "the recipe's validation asks for it"
    if positives.source == "images":
        return captioned_files(positives.folder)
    if teacher.prompted:
        raise DataError("positives.source is classes, but this teacher is told prompts")
    return class_files(positives.folder, teacher.classes, teacher.class_names)


def encode(
    teacher: Teacher, source: Source, recipe: Recipe, folder: Path, report: Report
) -> list[Note]:
    """Writes the missing shards; returns the notes of all. DataError: see `picture_samples`."""
    positives = recipe.positives
    facts = {
        "source_sha256": source.fingerprint(),
        "teacher_sha256": teacher.picture_digest(),
        "size_px": teacher.size_px,
        "resize": positives.resize,
        "batch": positives.batch,
    }
    begin(folder, facts)
    notes = kept_notes(folder, report)
    unreadable = Unreadable(source, recipe.run / UNREADABLE)
    if not is_whole(folder, notes):
        done = sum(note["entries"] for note in notes)
        left = "the" if source.count is None else str(source.count - done)
        report(f"encoding {left} pictures of {source.name}")
        bar = tqdm(total=source.count, initial=done, desc="encoding", unit="img", disable=None)
        with bar, ThreadPoolExecutor(min(READERS, os.cpu_count() or 1)) as pool:
            pictures = read_ahead(pool, source.entries(done), teacher, positives)
            while made := encode_shard(teacher, pictures, positives.batch, bar):
                tensors, note = made
                unreadable.check([*notes, note], source.count)
                write_shard(shard_path(folder, len(notes)), tensors, note)
                notes.append(note)
        unreadable.check(notes, sum(note["entries"] for note in notes))
        write_whole(folder / WHOLE, json.dumps({"shards": len(notes)}) + "\n")
    unreadable.tell(notes, report)
    return notes


def encode_shard(
    teacher: Teacher, pictures: Iterator[Read], batch: int, bar: Any
) -> tuple[dict[str, Tensor], Note] | None:
    """The next shard's tensors and note; None: there is no further picture."""
    note: Note = {"rows": [], "skipped": [], "entries": 0}
    parts = []
    for _ in range(BATCHES):
        if not (chunk := list(islice(pictures, batch))):
            break
        if not teacher.prompted:  # a class that is none is named before it costs anything
            teacher.encode([text for entry, _ in chunk for _, text in entry.texts])
        good = [(entry, found) for entry, found in chunk if isinstance(found, Tensor)]
        note["rows"] += [entry.texts for entry, _ in good]
        note["skipped"] += [str(found) for _, found in chunk if isinstance(found, DataError)]
        note["entries"] += len(chunk)
        if good:
            parts.append(encoded(teacher, torch.stack([picture for _, picture in good])))
        bar.update(len(chunk))
    if not note["entries"]:
        return None
    nothing = torch.empty((0, *teacher.latent_shape))
    return {"latents": torch.cat(parts) if parts else nothing}, note


def encoded(teacher: Teacher, pictures: Tensor) -> Tensor:
    """What is kept of uint8 pictures: latents, or themselves where they are as large."""
    if in_pixels(teacher):
        return pictures
    return teacher.encode_pictures(unit_range(pictures)).cpu()


def in_pixels(teacher: Teacher) -> bool:
    """Whether a latent has the picture's own shape: then uint8 takes a quarter of the room."""
    return teacher.latent_shape == (3, teacher.size_px, teacher.size_px)


def open_latents(teacher: Teacher, folder: Path, shards: int) -> StoredRows:
    """The latents [M, c, h, w] of all shards."""
    parts = [open_shard(shard_path(folder, number))["latents"] for number in range(shards)]
    if not in_pixels(teacher):
        return StoredRows(parts)
    return StoredRows(parts, lambda pictures: teacher.encode_pictures(unit_range(pictures)).cpu())


def read_ahead(
    pool: ThreadPoolExecutor, entries: Iterable[Entry], teacher: Teacher, positives: Positives
) -> Iterator[Read]:
    """Every entry with its picture, in order, while the next ones are being decoded."""
    waiting: deque[Future[Read]] = deque()
    for entry in entries:
        waiting.append(pool.submit(read_entry, entry, teacher, positives))
        if len(waiting) > 2 * positives.batch:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def read_entry(entry: Entry, teacher: Teacher, positives: Positives) -> Read:
    """An entry with its picture, or with what is wrong with it.

    Captioned ones are turned upright; classes are read as EDM and ADM read ImageNet, as stored.
    """
    way = (teacher.size_px, positives.resize, entry.name, teacher.prompted)
    try:
        return entry, read_picture(entry.content, *way)
    except DataError as error:
        return entry, error


def kept_notes(folder: Path, report: Report) -> list[Note]:
    """The notes of the first shards that are whole; a broken one is named."""
    notes: list[Note] = []
    while (path := shard_path(folder, len(notes))).is_file():
        try:
            notes.append(read_note(path))
        except DataError as error:
            report(f"{error}; it is made again")
            break
    return notes


def is_whole(folder: Path, notes: Sequence[Note]) -> bool:
    """Whether these are the notes of all shards."""
    path = folder / WHOLE
    return path.is_file() and json.loads(path.read_text("utf-8"))["shards"] == len(notes)


class Unreadable:
    """The pictures of a source that cannot be read: few are told, more are an error."""

    def __init__(self, source: Source, path: Path) -> None:
        self.source, self.path = source, path

    def check(self, notes: Sequence[Note], count: int | None) -> None:
        """DataError: they are more than 1 % of `count`, or all so far where that is not known."""
        skipped, met = self._listed(notes), sum(note["entries"] for note in notes)
        most = met - 1 if count is None else MOST_UNREADABLE * count
        if len(skipped) > most:
            raise DataError(
                f"{len(skipped)} of {count or met} pictures of {self.source.name} cannot be read,"
                f" more than {MOST_UNREADABLE:.0%}; all that were met are named in {self.path}, the"
                f" first: {skipped[0]}"
            )

    def tell(self, notes: Sequence[Note], report: Report) -> None:
        """Reports their number and the first ones."""
        if skipped := self._listed(notes):
            count = sum(note["entries"] for note in notes)
            report(
                f"{len(skipped)} of {count} pictures of {self.source.name} cannot be read and are"
                f" left out; all are named in {self.path}"
            )
            for sentence in skipped[:NAMED]:
                report(sentence)

    def _listed(self, notes: Sequence[Note]) -> list[str]:
        """All of them, written to the file as well."""
        skipped: list[str] = [sentence for note in notes for sentence in note["skipped"]]
        if skipped:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, "".join(f"{sentence}\n" for sentence in skipped))
        return skipped
