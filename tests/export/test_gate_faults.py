"""Each known kind of fault, planted in the exported file itself, is refused; good files are not."""

import copy
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from export.errors import ParityError
from export.gate.parity import Parity
from export.gate.session import open_probe, open_session
from export.gate.verify import Cases, draw_cases, verify
from export.graph.module import OneStepGraph
from export.model.student import Student
from export.tasks.text_task import TextTask

import faults  # isort: skip


@pytest.fixture(scope="session")
def file(run) -> Path:
    return run.exported.folder / "model.onnx"


@pytest.fixture(scope="session")
def some(cases: Cases) -> Cases:
    """Four rows are enough for a batch of three."""
    feeds = {name: array[:4] for name, array in cases.feeds.items()}
    pictures = {name: array[:4] for name, array in cases.pictures.items()}
    return replace(cases, seeds=cases.seeds[:4], feeds=feeds, pictures=pictures)


def planted(file: Path, folder: Path, fault: faults.Fault) -> Path:
    """The file with the fault, which is still a valid ONNX file."""
    model = onnx.load(file)
    fault(model)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize(
    ("fault", "batch"),
    [
        (faults.rows_swapped, 2),
        (faults.wrong_beyond_one, 2),
        (faults.row_stale, 3),
        (faults.nan_in_a_row, 2),
        (faults.timestep_wrong, 1),
        (faults.noise_transposed, 1),
        (faults.noise_channels_reversed, 1),
        (faults.float16_overflow, 1),
    ],
)
def test_a_planted_fault_is_refused_from_its_first_batch_size_on(
    file: Path, tmp_path: Path, some: Cases, fault: faults.Fault, batch: int
) -> None:
    infer = open_session(planted(file, tmp_path, fault), 1)
    if batch > 1:
        assert verify(infer, some, max_batch=batch - 1).level == "bitwise"
    with pytest.raises(ParityError) as caught:
        verify(infer, some, max_batch=batch)
    assert f"at batch {batch} of 64x64 the max difference from torch" in str(caught.value)
    reference = "levels from the picture alone" if batch > 1 else "levels from (torch|stock)"
    assert re.search(rf"the worst is row \d of batch {batch} .* {reference}", str(caught.value))


def test_what_overflows_in_float16_is_harmless_in_float32(
    file: Path, tmp_path: Path, some: Cases
) -> None:
    infer = open_session(planted(file, tmp_path, faults.decoder_scaled), 1)
    assert verify(infer, some, max_batch=2).level == "bitwise"


def test_the_probe_sees_what_uint8_hides(file: Path, tmp_path: Path, cases: Cases) -> None:
    probe = open_probe(planted(file, tmp_path, faults.nan_by_content), 1)
    assert probe is not None
    spoilt = [not np.isfinite(probe(_row(cases, row))).all() for row in range(8)]
    assert spoilt == [noise[0, 0, 0] > -1.1 for noise in cases.feeds["noise"]]
    assert any(spoilt)
    assert not all(spoilt)


def test_the_probe_gives_the_floats_of_the_picture(
    file: Path, cases: Cases, graph: OneStepGraph
) -> None:
    probe = open_probe(file, 1)
    assert probe is not None
    inputs = {name: torch.from_numpy(array) for name, array in _row(cases, 1).items()}
    with torch.no_grad():
        expected = graph.picture(**inputs) * 0.5 + 0.5
    np.testing.assert_allclose(probe(_row(cases, 1)), expected.numpy(), atol=1e-4)


def _row(cases: Cases, row: int) -> dict[str, np.ndarray]:
    return {name: array[row : row + 1] for name, array in cases.feeds.items()}


@pytest.mark.parametrize("seed", range(3))
def test_other_weights_in_the_same_graph_are_not_refused(
    file: Path, tmp_path: Path, student: Student, signature, seed: int
) -> None:
    """The convolutions are drawn anew, in the file and in torch alike."""
    rng = np.random.default_rng(seed)
    model, other = onnx.load(file), replace(student, pipeline=copy.deepcopy(student.pipeline))
    graph = OneStepGraph(other)
    weights = dict(graph.named_parameters())
    changed = 0
    for tensor in model.graph.initializer:
        if tensor.name in weights and len(tensor.dims) == 4:
            old = numpy_helper.to_array(tensor)
            new = rng.permutation(old.reshape(-1)).reshape(old.shape)
            tensor.CopyFrom(numpy_helper.from_array(new, tensor.name))
            weights[tensor.name].copy_(torch.from_numpy(new))
            changed += 1
    onnx.save(model, tmp_path / "model.onnx")
    parity = _gate(other, graph, signature, tmp_path / "model.onnx")
    assert changed > 40
    assert parity.level == "bitwise"


def _gate(student: Student, graph: OneStepGraph, signature, file: Path) -> Parity:
    cases = draw_cases(TextTask(student, graph), signature, 4)
    return verify(open_session(file, 1), cases, max_batch=3)
