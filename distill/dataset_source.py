"""Captioned pictures in a data set that Hugging Face `datasets` opens (`positives.dataset`).

Local Parquet, WebDataset tars, picture folders and what `save_to_disk` wrote; something is
downloaded only for a path that begins with hub:. Pictures are taken as bytes and decoded by us.
"""

from __future__ import annotations

import glob
import hashlib
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distill.data import DataError
from distill.prompts import load_library, one_line
from distill.recipe import Dataset
from distill.sources import Entry

HUB = "hub:"
BUILDERS = {".parquet": "parquet", ".tar": "webdataset", ".arrow": "arrow"}
SAVED = ("state.json", "dataset_dict.json")  # what `save_to_disk` leaves


class DatasetSource:
    """The rows of one split in their order.

    DataError: `datasets` is not installed, there is no such data set, split or column.
    """

    def __init__(self, settings: Dataset) -> None:
        self.settings = settings
        self.name = settings.path
        self._library = load_library("datasets", "positives.dataset")
        self._causes = (
            OSError,
            ValueError,
            tarfile.TarError,
            self._library.exceptions.DatasetsError,
        )
        try:
            rows = self._open()
        except self._causes as error:
            raise self._broken(error) from error
        label = (rows.features or {}).get(settings.text)
        self.class_names = tuple(getattr(label, "names", None) or ())  # a ClassLabel's
        self._rows = self._undecoded(rows)
        self.count: int | None = len(self._rows) if hasattr(self._rows, "__len__") else None

    def _open(self) -> Any:
        settings, library = self.settings, self._library
        path = Path(settings.path)
        options: dict[str, Any] = {"split": settings.split}
        if settings.path.startswith(HUB):
            name, _, revision = settings.path.removeprefix(HUB).partition("@")
            options["revision"] = revision or None
            return library.load_dataset(
                name, settings.name, streaming=settings.streaming, **options
            )
        if any((path / name).is_file() for name in SAVED):
            saved = library.load_from_disk(path)
            if not hasattr(saved, "keys"):
                return saved
            if settings.split not in saved:
                raise ValueError(f"it has no split {settings.split}; it has {', '.join(saved)}")
            return saved[settings.split]
        if tars := img2dataset_tars(path):
            files = {settings.split: tars}
            return library.load_dataset(
                "webdataset", data_files=files, streaming=settings.streaming, **options
            )
        if path.is_dir():
            return library.load_dataset(
                str(path), settings.name, streaming=settings.streaming, **options
            )
        if not path.is_file():
            raise FileNotFoundError("it does not exist")
        if path.suffix not in BUILDERS:
            raise ValueError(f"a file must end in {', '.join(BUILDERS)}")
        files = {settings.split: [glob.escape(str(path))]}
        kind = BUILDERS[path.suffix]
        return library.load_dataset(kind, data_files=files, streaming=settings.streaming, **options)

    def _undecoded(self, rows: Any) -> Any:
        """The columns wanted, pictures as bytes, and as many rows as are asked for."""
        if rows.features is None:  # of a CSV
            raise DataError(
                f"positives.dataset.streaming: the columns of {self.name} are not known before it"
                " is read as a whole; set it to false"
            )
        features: Mapping[str, Any] = rows.features
        wanted = (self.settings.image, self.settings.text.partition(".")[0])
        for key, column in zip(("image", "text"), wanted, strict=True):
            if column not in features:
                raise DataError(
                    f"positives.dataset.{key}: {self.name} has no column {column!r}; it has"
                    f" {', '.join(features)}"
                )
        rows = rows.select_columns(list(dict.fromkeys(wanted)))
        if isinstance(features[self.settings.image], self._library.Image):
            rows = rows.cast_column(self.settings.image, self._library.Image(decode=False))
        limit = self.settings.limit
        return rows if limit is None else rows.take(limit)

    def entries(self, start: int) -> Iterator[Entry]:
        """All rows from number `start` on. DataError: the files are broken, or a text is none."""
        try:
            for number, row in enumerate(self._rows.skip(start), start):
                name = f"{self.name}, row {number}"
                texts = self._texts(row, name)
                content = self._content(row[self.settings.image], name)
                yield Entry(name, content, tuple((number, text) for text in texts))
        except self._causes as error:
            if isinstance(error, DataError):
                raise
            raise self._broken(error) from error

    def texts(self) -> None:
        """They are known only row by row."""

    def _texts(self, row: Mapping[str, Any], name: str) -> list[str]:
        """The captions or the label of a row."""
        value: Any = row
        for key in self.settings.text.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        texts = value if isinstance(value, list) and value else [value]
        wrong = [one for one in texts if isinstance(one, bool) or not isinstance(one, str | int)]
        if wrong:
            raise DataError(
                f"{name}: {self.settings.text} is {str(value)[:60]!r}, neither a text nor a number"
            )
        return [one_line(str(text)) for text in texts]

    def _content(self, value: Any, name: str) -> Path | bytes:
        """A picture's bytes or its file; nothing at all is empty bytes, which cannot be read.

        DataError: it is neither, as the numbers of its pixels are.
        """
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str):
            place = Path(self.settings.path)
            return (place.parent if place.is_file() else place) / value
        if not isinstance(value, bytes | None):
            raise DataError(
                f"{name}: {self.settings.image} is a {type(value).__name__}, neither the bytes of a"
                " picture nor the name of a file"
            )
        return value or b""

    def _broken(self, error: BaseException) -> DataError:
        if isinstance(error, self._library.exceptions.DatasetGenerationError):
            error = error.__cause__ or error  # which says what it is
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return DataError(f"positives.dataset: {self.name} cannot be read: {reason}")

    def fingerprint(self) -> str:
        """Of the settings, and of every local file's name, size and time of change."""
        digest = hashlib.sha256(self.settings.model_dump_json(exclude={"streaming"}).encode())
        if not self.settings.path.startswith(HUB):
            top = Path(self.settings.path)
            for path in [top, *sorted(top.rglob("*"))]:
                if path.is_file():
                    stat = path.stat()
                    facts = (path.relative_to(top), stat.st_size, stat.st_mtime_ns)
                    digest.update(f"{facts}\n".encode())
        return digest.hexdigest()


def img2dataset_tars(folder: Path) -> list[str]:
    """The tars of a folder that img2dataset wrote; none: it is another.

    Each has a Parquet table of its captions beside it, which `datasets` would open instead.
    """
    if not any(folder.glob("*_stats.json")):
        return []
    return [glob.escape(str(path)) for path in sorted(folder.glob("*.tar"))]
