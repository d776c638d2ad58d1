"""Several sizes: how they are named and checked, and one graph that draws each of them."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.errors import SizeError
from export.gate.session import open_session
from export.graph.module import OneStepGraph
from export.graph.sizes import NAMED, check_sizes, multiple_px, parse_sizes
from export.graph.to_onnx import latent_step, write_onnx
from export.model.stock import stock_call
from export.model.student import Student
from export.signature import Signature, text_to_image

SIZES = ((64, 64), (96, 64), (64, 128), (16, 32))


@pytest.fixture(scope="module")
def several(student: Student) -> Signature:
    return text_to_image(4, 8, 64, SIZES)


@pytest.fixture(scope="module")
def file(student: Student, several: Signature, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny student with open heights and widths."""
    file = tmp_path_factory.mktemp("open") / "model.onnx"
    write_onnx(OneStepGraph(student), several, file)
    return file


def test_sizes_are_read_from_text_or_by_name() -> None:
    assert parse_sizes("1024x1024, 1152x896") == ((1024, 1024), (1152, 896))
    assert parse_sizes("sdxl") is NAMED["sdxl"]
    for text in ("1024", "0x64", "64x64,", "64X64", "sd15"):
        with pytest.raises(SizeError, match=r"allowed is WIDTHxHEIGHT in pixels.*: sdxl"):
            parse_sizes(text)


def test_the_sizes_of_sdxl_are_about_a_megapixel_in_multiples_of_64() -> None:
    sizes = NAMED["sdxl"]
    assert sizes[0] == (1024, 1024)
    assert len(set(sizes)) == len(sizes) == 41
    assert {(height, width) for width, height in sizes} == set(sizes)
    for width, height in sizes:
        assert width % 64 == height % 64 == 0
        assert 0.9 < width * height / 1024**2 <= 1.0
        assert 1 / 4 <= width / height <= 4


def test_a_student_without_sizes_draws_its_own(student: Student) -> None:
    assert multiple_px(student) == 16
    assert check_sizes(student, ()) == ((64, 64),)
    assert check_sizes(student, SIZES) == SIZES


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        (((64, 72),), "size 64x72 does not suit .* must be multiples of 16"),
        (((64, 64), (8192, 64)), "size 8192x64 is too large; a side is at most 4096"),
        (((64, 64), (64, 64)), "size 64x64 is named twice"),
    ],
)
def test_sizes_that_a_student_cannot_draw_are_refused(student, sizes, sentence: str) -> None:
    with pytest.raises(SizeError, match=sentence):
        check_sizes(student, sizes)


def test_a_signature_of_several_sizes_leaves_them_open_and_knows_each(several: Signature) -> None:
    assert [tensor.shape for tensor in several.inputs] == [(77,), (77,), (4, None, None)]
    assert several.output.shape == (None, None, 3)
    assert several.noise_shape((96, 64)) == (4, 8, 12)
    wide = several.at((96, 64))
    assert (wide.inputs[-1].shape, wide.output.shape) == ((4, 8, 12), (64, 96, 3))
    assert wide.sizes == ((96, 64),)
    assert wide.at((96, 64)) == wide
    assert latent_step(several) == 2


def test_open_sides_have_the_same_names_in_noise_and_image(file: Path) -> None:
    graph = onnx.load(file).graph
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert shapes["noise"] == ["batch", 4, "2*height", "2*width"]
    assert shapes["image"] == ["batch", "16*height", "16*width", 3]


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
def test_one_graph_draws_every_size_alone_and_in_batches(
    student: Student, several: Signature, file: Path, size: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(3, *several.noise_shape(size), generator=generator)
    prompts = ["a red an", "blue", ""]
    ids = [
        tokenizer(prompts, padding="max_length", max_length=77, return_tensors="pt").input_ids
        for tokenizer in (student.pipeline.tokenizer, student.pipeline.tokenizer_2)
    ]
    feeds = {"input_ids": ids[0], "input_ids_2": ids[1], "noise": noise}
    infer = open_session(file, 1)
    got = infer({name: value.numpy() for name, value in feeds.items()})
    assert got.shape == (3, size[1], size[0], 3)
    for row, prompt in enumerate(prompts):
        alone = {name: value[row : row + 1] for name, value in feeds.items()}
        ours = OneStepGraph(student)(*alone.values()).numpy()
        stock = stock_call(student, prompt, noise[row : row + 1])
        for reference in (ours, stock):
            assert np.abs(got[row].astype(int) - reference[0]).max() <= 1
        only = infer({name: value.numpy() for name, value in alone.items()})
        np.testing.assert_array_equal(only[0], got[row])
