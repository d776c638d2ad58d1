"""The exporter's gate: a good graph passes; what a runtime does wrong is told in a sentence."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from export.errors import ParityError
from export.gate.cases import noise_of
from export.gate.measure import compositions, is_flat, pictures_drawn
from export.gate.parity import Limits
from export.gate.session import open_session
from export.gate.verify import Cases, Feeds, Infer, draw_every_size, rows_by_size, scan, verify
from export.graph.module import OneStepGraph
from export.repository.manifest import check_version
from export.signature import TOKENS, text_to_image
from export.tasks.subjects import PROMPTS, file_encoder, pipeline_encoder
from export.tasks.text_task import TextTask

REFUSAL = "the graph does not draw the student's pictures: "


@pytest.fixture(scope="session")
def infer(run) -> Infer:
    return open_session(run.exported.folder / "model.onnx", threads=1)


@pytest.fixture(scope="session")
def perfect(cases: Cases) -> Infer:
    """A runtime that draws torch's pictures, whatever the batch: it knows them by their noise."""
    table = {noise.tobytes(): row for row, noise in enumerate(cases.feeds["noise"])}
    return lambda feeds: cases.torch_pictures[[table[noise.tobytes()] for noise in feeds["noise"]]]


def test_the_exported_graph_passes_at_every_batch_size_and_is_bitwise(
    infer: Infer, cases: Cases
) -> None:
    parity = verify(infer, cases, max_batch=8)
    assert [b.batch for b in parity.batches] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert (parity.level, parity.faults()) == ("bitwise", [])
    assert all(found.max_levels <= 1 for b in parity.batches for found in b.against.values())
    assert all(list(b.against) == ["torch", "stock"] for b in parity.batches)
    assert sum(b.pictures for b in parity.batches) + 8 == pictures_drawn(8, 8)


@pytest.mark.parametrize("rows", [2, 5, 8])
def test_every_row_stands_in_every_batch_size_and_every_slot_is_used(rows: int) -> None:
    for size in range(1, 9):
        batches = list(compositions(rows, size))
        assert all(len(batch) == size for batch in batches)
        assert {row for batch in batches for row in batch} == set(range(rows))
        assert size == 1 or [0] * size in batches
    assert list(compositions(rows, 1)) == [[row] for row in range(rows)]


def test_rows_also_meet_in_another_order_than_their_own() -> None:
    batches = list(compositions(8, 4))
    assert [0, 1, 2, 3] in batches
    shuffled = batches[2] + batches[3]
    assert sorted(shuffled) == list(range(8))
    assert shuffled != list(range(8))


def test_the_prompts_hold_the_extremes_and_fill_exactly_77_ids(student, run) -> None:
    pipeline = student.pipeline
    lengths = [len(pipeline.tokenizer(prompt).input_ids) for prompt in PROMPTS]
    assert TOKENS in lengths
    assert max(lengths) > TOKENS
    assert min(lengths) == 2  # the empty prompt: start and end
    assert any("\x1b" in prompt for prompt in PROMPTS)
    assert not any("\0" in prompt for prompt in PROMPTS)
    entries = check_version(run.exported.folder)["tokenizers"]
    ours, files = pipeline_encoder(pipeline), file_encoder(run.exported.folder, entries)
    for name, ids in ours(PROMPTS).items():
        assert ids.shape == (len(PROMPTS), TOKENS)
        np.testing.assert_array_equal(ids, files(PROMPTS)[name])


def test_noise_is_that_of_torchs_generator() -> None:
    expected = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    np.testing.assert_array_equal(noise_of(5, (4, 8, 8)), expected.numpy())


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


def a_level_in_one_value_of_500(feeds: Feeds, infer: Infer) -> np.ndarray:
    pictures = infer(feeds).copy()
    values = pictures.reshape(len(pictures), -1)
    values[:, ::500] ^= 1
    return pictures


def off_by_one_everywhere(feeds: Feeds, infer: Infer) -> np.ndarray:
    pictures = infer(feeds)
    return np.where(pictures < 255, pictures + 1, pictures).astype(np.uint8)


def black_in_company(feeds: Feeds, infer: Infer) -> np.ndarray:
    pictures = infer(feeds).copy()
    pictures[1:2] = 0
    return pictures


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (swapped, "at batch 2 of 64x64 the max difference from torch"),
        (worse_in_company, "at batch 2 of 64x64 the difference from the picture alone is 1 levels"),
        (last_of_equal_rows_differs, "at batch 2 of 64x64 the max difference from torch"),
        (a_level_in_one_value_of_500, r"at batch 1 of 64x64 0.20\d% of the values differ"),
        (off_by_one_everywhere, "at batch 1 of 64x64 the mean difference of one picture from tor"),
        (black_in_company, "at batch 2 of 64x64 the max difference from torch is 2"),
    ],
)
def test_what_a_runtime_does_wrong_is_caught(
    perfect: Infer, cases: Cases, fault: Callable[[Feeds, Infer], np.ndarray], sentence: str
) -> None:
    with pytest.raises(ParityError, match=sentence) as caught:
        verify(lambda feeds: fault(feeds, perfect), cases, max_batch=2)
    assert str(caught.value).startswith(REFUSAL)
    assert "\n" not in str(caught.value)


def test_the_refusal_names_batch_row_prompt_seed_and_levels(perfect: Infer, cases: Cases) -> None:
    marked = cases.feeds["noise"][5]

    def spoils_row_5(feeds: Feeds) -> np.ndarray:
        pictures = perfect(feeds).copy()
        for slot, noise in enumerate(feeds["noise"]):
            if len(pictures) == 3 and slot == 2 and (noise == marked).all():
                pictures[slot] = 255 - pictures[slot]
        return pictures

    worst = r"the worst is row 2 of batch 3 \(prompt .*, seed 5\), \d+ levels from"
    with pytest.raises(ParityError, match=worst):
        verify(spoils_row_5, cases, max_batch=3)


def test_a_graph_at_another_timestep_is_caught(student, cases: Cases) -> None:
    late = OneStepGraph(student)
    late.timestep = late.timestep - 10

    @torch.no_grad()
    def infer(feeds: Feeds) -> np.ndarray:
        return late(**{name: torch.from_numpy(array) for name, array in feeds.items()}).numpy()

    with pytest.raises(ParityError, match="at batch 1 of 64x64 the max difference from torch"):
        verify(infer, cases, max_batch=1)


def test_one_changed_weight_in_the_file_is_caught(run, cases: Cases, tmp_path) -> None:
    model = onnx.load(run.exported.folder / "model.onnx")
    weight = next(w for w in model.graph.initializer if w.name == "unet.conv_out.weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.5, weight.name))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ParityError, match=REFUSAL):
        verify(open_session(tmp_path / "model.onnx", 1), cases, max_batch=1)


def test_a_fault_of_the_torch_graph_itself_is_caught_by_stock_diffusers(
    perfect: Infer, cases: Cases
) -> None:
    wrong = replace(cases, pictures={**cases.pictures, "torch": 255 - cases.torch_pictures})
    with pytest.raises(ParityError, match="stock diffusers") as caught:
        verify(lambda feeds: 255 - perfect(feeds), wrong, max_batch=2)
    assert "from torch" not in str(caught.value)


@pytest.mark.parametrize("change", [lambda p: p.astype(np.float32), lambda p: p[:, :, :, :1]])
def test_another_type_or_shape_is_caught(infer: Infer, cases: Cases, change) -> None:
    with pytest.raises(ParityError, match=r"it must give uint8 \[1, 64, 64, 3\]"):
        verify(lambda feeds: change(infer(feeds)), cases, max_batch=1)


def test_wider_limits_let_a_small_difference_through_and_report_it(
    perfect: Infer, cases: Cases
) -> None:
    limits = Limits(2, invariance_levels=1)
    parity = verify(lambda feeds: worse_in_company(feeds, perfect), cases, 3, limits)
    assert parity.level == "within 1 levels"
    assert parity.to_json()["level"] == "within 1 levels"
    assert "batch invariance: within 1 levels" in parity.table()
    assert max(len(line) for line in parity.table().splitlines()) <= 100


def test_a_picture_that_is_flat_where_its_reference_is_not_is_counted(cases: Cases) -> None:
    limits = Limits(255, 255, 1, 255)

    def black(feeds: Feeds) -> np.ndarray:
        return np.zeros((len(feeds["noise"]), 64, 64, 3), np.uint8)

    with pytest.raises(ParityError, match="8 of 8 pictures are one flat colour"):
        verify(black, cases, 1, limits)
    assert is_flat(black(cases.feeds)).all()
    assert not is_flat(cases.torch_pictures).any()


def test_each_further_size_has_rows_of_its_own(student, graph: OneStepGraph) -> None:
    sizes = ((64, 64), (96, 64), (64, 96))
    signature = text_to_image(student.latent_channels, 8, 64, sizes)
    assert list(rows_by_size(signature, 8).values()) == [8, 4, 4]
    one = replace(signature, sizes=((64, 64),))
    every = draw_every_size(TextTask(student, graph), one, 2)
    assert [(of.size, len(of.torch_pictures)) for of in every] == [((64, 64), 2)]


def test_pictures_that_are_not_finite_or_all_flat_are_refused() -> None:
    flat, noisy = torch.zeros(1, 3, 8, 8), torch.randn(1, 3, 8, 8)
    scan(["a", "b"], [flat, noisy])
    with pytest.raises(ParityError, match="all 2 pictures of the student are one flat colour"):
        scan(["a", "b"], [flat, flat + 0.5])
    with pytest.raises(ParityError, match="'b' holds values that are not finite"):
        scan(["a", "b"], [noisy, noisy / 0])
