"""Fixtures that all packages share. Nothing may be looked up on the network."""

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

ROOT = Path(__file__).parents[1]
SHAPES = ROOT / "examples" / "shapes"


class TinyExport(NamedTuple):
    """A published version of the tiny student, and what its export said."""

    exported: object  # export.export.Exported
    repository: Path
    lines: list[str]


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random SDXL pipeline directory (64x64 pictures, Euler scheduler); read only."""
    from tiny import save_tiny_sdxl  # torch is loaded only by the tests that need it

    return save_tiny_sdxl(tmp_path_factory.mktemp("tiny") / "sdxl")


@pytest.fixture(scope="session")
def tiny_student(tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights with the one-step scheduler at timestep 999; read only."""
    from tiny import save_tiny_student

    return save_tiny_student(tiny_sdxl, tmp_path_factory.mktemp("tiny") / "student")


@pytest.fixture(scope="session")
def tiny_export(tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyExport:
    """The tiny student as `tiny/1` in a repository of its own; exported once, read only."""
    from export.export import export_student

    repository, lines = tmp_path_factory.mktemp("tiny-repository"), list[str]()
    exported = export_student(tiny_student, repository, "tiny", report=lines.append)
    return TinyExport(exported, repository, lines)


@pytest.fixture(scope="session")
def class_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny class-conditional student of four named classes, 16x16 pixels; read only."""
    from tiny_classes import save_class_student

    folder = save_class_student(tmp_path_factory.mktemp("tiny") / "classes")
    (folder / "classes.txt").write_text("red\nblue\ngreen\nsmall dog\n", "utf-8")
    return folder


@pytest.fixture(scope="session")
def class_export(class_student: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyExport:
    """That student as `edm/1` in a repository of its own; exported once, read only."""
    from export.export import export_student

    repository, lines = tmp_path_factory.mktemp("class-repository"), list[str]()
    exported = export_student(class_student, repository, "edm", report=lines.append)
    return TinyExport(exported, repository, lines)


@pytest.fixture(scope="session")
def shapes() -> Iterator[SimpleNamespace]:
    """The scripts of examples/shapes as modules: world, checker, judge, draw_pictures."""
    sys.path.insert(0, str(SHAPES))
    names = ("world", "checker", "judge", "draw_pictures")
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    sys.path.remove(str(SHAPES))
