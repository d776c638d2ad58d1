"""What the tests of this folder share: an open teacher and a student trained without a break."""

from pathlib import Path

import pytest
from tiny_training import CPU, Trained, tiny_recipe, tiny_samples

from distill.data import Samples
from distill.recipe import Recipe
from distill.run import distil
from distill.teachers.opening import load_teacher
from distill.teachers.sdxl import SdxlTeacher


@pytest.fixture(scope="session")
def teacher(tiny_sdxl: Path) -> SdxlTeacher:
    """The tiny pipeline, open on the CPU; read only."""
    return load_teacher(tiny_sdxl, CPU)


@pytest.fixture(scope="session")
def samples(teacher: SdxlTeacher) -> Samples:
    return tiny_samples(teacher)


@pytest.fixture
def recipe(tiny_sdxl: Path, tmp_path: Path) -> Recipe:
    return tiny_recipe(tmp_path, tiny_sdxl)


@pytest.fixture(scope="session")
def trained(tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The tiny recipe from teacher to student, uninterrupted, with a bank; read only."""
    recipe, lines = tiny_recipe(tmp_path_factory.mktemp("trained"), tiny_sdxl), list[str]()
    student = distil(recipe, lines.append)
    return Trained(recipe, student, lines)
