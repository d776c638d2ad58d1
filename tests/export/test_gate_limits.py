"""The limits follow the arithmetic of the graph, and the contact sheet shows what went wrong."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from export.gate.limits import DECODER, DENOISER, FLOAT32, Arithmetic, arithmetic_of, limits_for
from export.gate.parity import Worst
from export.gate.worst import SIDE_PX, gain_of, label, magnified, write_sheet


def saved(file: Path, **kinds: int) -> Path:
    """A graph that only has weights: name (with `__` for a dot) -> ONNX type."""
    weights = [
        onnx.helper.make_tensor(name.replace("__", "."), kind, [2], [1, 2])
        for name, kind in kinds.items()
    ]
    weights.append(numpy_helper.from_array(np.array(3, np.int8), "scalar"))
    graph = onnx.helper.make_graph([], "weights", [], [], weights)
    onnx.save(onnx.helper.make_model(graph), file)
    return file


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ({"unet__a": onnx.TensorProto.FLOAT}, Arithmetic("float32", "float32")),
        (
            {"unet__a": onnx.TensorProto.FLOAT16, "vae__b": onnx.TensorProto.BFLOAT16},
            Arithmetic("float16", "bfloat16"),
        ),
        (
            {"text_encoder__a": onnx.TensorProto.BFLOAT16, "val_1": onnx.TensorProto.FLOAT16},
            Arithmetic("bfloat16", "float32"),
        ),
        (
            {"transformer__a": onnx.TensorProto.FLOAT16, "val_1": onnx.TensorProto.BFLOAT16},
            Arithmetic("float16", "float32"),
        ),
        ({"val_1_quantized": onnx.TensorProto.INT8}, Arithmetic("int8", "float32")),
    ],
)
def test_the_arithmetic_is_read_from_the_weights(
    tmp_path: Path, kinds: dict[str, int], expected: Arithmetic
) -> None:
    assert arithmetic_of(saved(tmp_path / "model.onnx", **kinds)) == expected


def test_the_exported_graph_is_float32(run) -> None:
    assert arithmetic_of(run.exported.folder / "model.onnx") == Arithmetic("float32", "float32")


def test_float32_has_the_strict_limits_and_coarser_parts_add_up() -> None:
    assert limits_for(Arithmetic("float32", "float32")) == FLOAT32
    assert (FLOAT32.max_levels, FLOAT32.differing, FLOAT32.invariance_levels) == (1, 0.001, 0)
    both = limits_for(Arithmetic("float16", "bfloat16"))
    assert both.max_levels == DENOISER["float16"].max_levels + DECODER["bfloat16"].max_levels
    assert both.invariance_levels == 0
    assert limits_for(Arithmetic("int8", "bfloat16")).differing == 1.0


def test_elsewhere_float32_is_allowed_tf32_and_a_batch_its_own_rounding() -> None:
    there = limits_for(Arithmetic("float32", "float32"), here=False)
    half = limits_for(Arithmetic("float16", "float16"))
    assert (there.max_levels, there.differing) == (half.max_levels, half.differing)
    assert there.invariance_levels == there.max_levels


def case(expected: np.ndarray, got: np.ndarray, prompt: str = "x") -> Worst:
    size = (expected.shape[1], expected.shape[0])
    levels = int(np.abs(expected.astype(int) - got).max())
    return Worst(size, 3, 1, (0, 1, 2), prompt, 7, "alone", levels, 0.5, expected, got)


def test_the_sheet_shows_expected_got_and_difference_side_by_side(tmp_path: Path) -> None:
    expected, got = np.zeros((32, 64, 3), np.uint8), np.full((32, 64, 3), 100, np.uint8)
    write_sheet([case(expected, got), case(got, got)], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    row = pixels[8 + 34 + 10]
    middles = [row[8 + column * (SIDE_PX + 8) + SIDE_PX // 2].tolist() for column in range(3)]
    assert middles == [[0, 0, 0], [100, 100, 100], [200, 200, 200]]
    assert len(pixels) == 2 * (SIDE_PX + 34 + 8) + 8


def test_a_difference_is_magnified_until_it_shows() -> None:
    assert [gain_of(levels) for levels in (0, 1, 2, 100, 255)] == [255, 255, 127, 2, 1]
    left, right = np.array([[[3, 0, 9]]], np.uint8), np.array([[[1, 1, 9]]], np.uint8)
    assert magnified(left, right, 100).tolist() == [[[200, 100, 0]]]


def test_a_label_has_the_case_in_two_lines_that_every_font_can_draw() -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    first, second = label(case(picture, picture, "красный " * 20), 5).split("\n")
    assert first == "the picture alone | got | difference x5: 0 levels, row 1 of batch 3, 8x8"
    assert second.isascii()
    assert second.startswith("seed 7, prompt '\\u043a")
    assert second.endswith("...")
