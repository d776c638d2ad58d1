"""The export of the tiny student, which the tests of this folder look at from all sides."""

from pathlib import Path

import pytest

from export.gate.verify import Cases, draw_cases
from export.graph.module import OneStepGraph
from export.model.student import Student, load_student
from export.signature import Signature, text_to_image
from export.tasks.text_task import TextTask


@pytest.fixture(scope="session")
def run(tiny_export):
    """What the export gave, and what it said meanwhile."""
    return tiny_export


@pytest.fixture(scope="session")
def student(tiny_student: Path) -> Student:
    return load_student(tiny_student)


@pytest.fixture(scope="session")
def signature(student: Student) -> Signature:
    return text_to_image(student.latent_channels, student.latent_size, student.size_px)


@pytest.fixture(scope="session")
def graph(student: Student) -> OneStepGraph:
    return OneStepGraph(student)


@pytest.fixture(scope="session")
def cases(student: Student, graph: OneStepGraph, signature: Signature) -> Cases:
    return draw_cases(TextTask(student, graph), signature, rows=8)
