"""The gate lets the real graph through and catches each planted fault."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from export.errors import ParityError
from export.graph import OneStepGraph
from export.one_step import read_one_step
from export.parity import Limits
from export.session import open_session
from export.verify import Cases, Feeds, Infer, compositions, scan, verify

from tiny import one_step_scheduler  # isort: skip


@pytest.fixture(scope="session")
def infer(run) -> Infer:
    return open_session(run.exported.folder / "model.onnx", threads=1)


def test_the_exported_graph_passes_and_does_not_depend_on_its_batch(
    infer: Infer, cases: Cases
) -> None:
    parity = verify(infer, cases, max_batch=8)
    assert [b.batch for b in parity.batches] == [1, 2, 3, 4, 8]
    assert parity.batch_invariance == "bitwise"
    assert max(b.max_levels for b in parity.batches) <= 1


@pytest.mark.parametrize("batch", range(1, 9))
def test_every_batch_size_gives_each_row_its_own_picture(
    infer: Infer, cases: Cases, batch: int
) -> None:
    pictures = infer({name: array[:batch] for name, array in cases.feeds.items()})
    gap = np.abs(pictures.astype(int) - cases.torch_pictures[:batch])
    assert pictures.shape == (batch, 64, 64, 3)
    assert gap.max() <= 1


def test_every_row_meets_every_batch_size_also_permuted_and_equal() -> None:
    for size in (2, 3, 8):
        batches = list(compositions(8, size))
        assert all(len(batch) == size for batch in batches)
        assert {row for batch in batches for row in batch} == set(range(8))
        assert [0] * size in batches
        assert list(range(size))[::-1] in batches


def swapped(feeds: Feeds, infer: Infer) -> np.ndarray:
    pictures = infer(feeds).copy()
    pictures[[0, -1]] = pictures[[-1, 0]]
    return pictures


def worse_in_company(feeds: Feeds, infer: Infer) -> np.ndarray:
    pictures = infer(feeds).copy()
    if len(pictures) > 1:
        pictures[-1, 0, 0, 0] ^= 1
    return pictures


def last_of_equal_rows_differs(feeds: Feeds, infer: Infer) -> np.ndarray:
    pictures = infer(feeds).copy()
    if len(pictures) > 1 and (feeds["noise"] == feeds["noise"][:1]).all():
        pictures[-1] = 255 - pictures[-1]
    return pictures


def transposed_noise(feeds: Feeds, infer: Infer) -> np.ndarray:
    return infer({**feeds, "noise": np.ascontiguousarray(feeds["noise"].swapaxes(2, 3))})


def second_ids_ignored(feeds: Feeds, infer: Infer) -> np.ndarray:
    return infer({**feeds, "input_ids_2": np.zeros_like(feeds["input_ids_2"])})


def off_by_one_everywhere(feeds: Feeds, infer: Infer) -> np.ndarray:
    pictures = infer(feeds)
    return np.where(pictures < 255, pictures + 1, pictures).astype(np.uint8)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (swapped, "at batch 2 the difference from the picture alone"),
        (worse_in_company, r"at batch 2 the difference from the picture alone is 1 levels"),
        (last_of_equal_rows_differs, "at batch 3 the max difference from torch"),
        (transposed_noise, "at batch 1 the max difference from torch"),
        (second_ids_ignored, "at batch 1 the max difference from stock diffusers"),
        (off_by_one_everywhere, "at batch 1 the mean difference from torch"),
    ],
)
def test_a_planted_fault_is_caught(
    infer: Infer, cases: Cases, fault: Callable[[Feeds, Infer], np.ndarray], sentence: str
) -> None:
    with pytest.raises(ParityError, match=sentence):
        verify(lambda feeds: fault(feeds, infer), cases, max_batch=4)


def test_a_graph_at_another_timestep_is_caught(student, cases: Cases) -> None:
    late = OneStepGraph(replace(student, step=read_one_step(one_step_scheduler(990))))

    @torch.no_grad()
    def infer(feeds: Feeds) -> np.ndarray:
        return late(*(torch.from_numpy(array) for array in feeds.values())).numpy()

    with pytest.raises(ParityError, match="at batch 1 the max difference from torch"):
        verify(infer, cases, max_batch=1)


def test_one_changed_weight_in_the_file_is_caught(run, cases: Cases, tmp_path) -> None:
    model = onnx.load(run.exported.folder / "model.onnx")
    weight = next(w for w in model.graph.initializer if w.name == "unet.conv_out.weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.5, weight.name))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ParityError, match="does not draw the student's pictures"):
        verify(open_session(tmp_path / "model.onnx", 1), cases, max_batch=1)


def test_a_fault_of_the_torch_graph_itself_is_caught_by_stock_diffusers(cases: Cases) -> None:
    table = {noise.tobytes(): row for row, noise in enumerate(cases.feeds["noise"])}
    wrong = replace(cases, torch_pictures=255 - cases.torch_pictures)

    def infer(feeds: Feeds) -> np.ndarray:
        return wrong.torch_pictures[[table[noise.tobytes()] for noise in feeds["noise"]]]

    with pytest.raises(ParityError, match="stock diffusers") as caught:
        verify(infer, wrong, max_batch=2)
    assert "from torch" not in str(caught.value)


@pytest.mark.parametrize("change", [lambda p: p.astype(np.float32), lambda p: p[:, :, :, :1]])
def test_another_type_or_shape_is_caught(infer: Infer, cases: Cases, change) -> None:
    with pytest.raises(ParityError, match=r"it must give uint8 \[1, 64, 64, 3\]"):
        verify(lambda feeds: change(infer(feeds)), cases, max_batch=1)


def test_wider_limits_let_a_small_difference_through_and_report_it(
    infer: Infer, cases: Cases
) -> None:
    parity = verify(
        lambda feeds: worse_in_company(feeds, infer), cases, 3, Limits(2, 0.01, invariance_levels=1)
    )
    assert parity.batch_invariance == "within 1 levels"
    assert [b["batch"] for b in parity.to_json()["batches"]] == [1, 2, 3]
    assert "batch invariance: within 1 levels" in parity.table()


def test_pictures_that_are_not_finite_or_all_flat_are_refused() -> None:
    flat, noisy = torch.zeros(1, 3, 8, 8), torch.randn(1, 3, 8, 8)
    scan(["a", "b"], [flat, noisy])
    with pytest.raises(ParityError, match="all 2 pictures of the student are one flat colour"):
        scan(["a", "b"], [flat, flat + 0.5])
    with pytest.raises(ParityError, match="'b' holds values that are not finite"):
        scan(["a", "b"], [noisy, noisy / 0])
