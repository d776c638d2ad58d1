"""int8 is kept where it is measured to pay, and else the float graph is left as it was."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnxruntime.quantization import quantize_dynamic
from torch import nn

from export.errors import ExportError
from export.gate.quantize import Int8Limits, Quantized, Trial, quantize_int8
from export.gate.session import open_session
from export.graph.to_onnx import write_onnx
from export.signature import Signature, Tensor

ALWAYS, NEVER = Int8Limits(0.0, 300.0), Int8Limits(1e9)


class Small(nn.Module):
    """noise [B, 4, 8, 8] -> [B, 4, 8, 8] uint8, by a convolution and a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.linear = nn.Linear(8, 8, bias=False)

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        hidden = self.linear(torch.tanh(self.conv(noise)))
        return (hidden * 100 + 128).clamp(0, 255).round().to(torch.uint8)


SMALL = Signature((Tensor("noise", "float32", (4, 8, 8)),), Tensor("image", "uint8", (4, 8, 8)))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    write_onnx(Small().eval(), SMALL, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def feeds() -> dict[str, np.ndarray]:
    return {"noise": np.random.RandomState(0).standard_normal((6, 4, 8, 8)).astype(np.float32)}


def test_int8_takes_the_place_of_float_where_it_is_allowed(file: Path, feeds) -> None:
    before = open_session(file, 1)(feeds)
    done = quantize_int8(file, feeds, 1, ALWAYS)
    assert done.kept in done.trials
    assert [path.name for path in file.parent.iterdir()] == ["model.onnx"]
    model = onnx.load(file)
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in model.graph.node}
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.metadata_props
    gap = np.abs(open_session(file, 1)(feeds).astype(int) - before)
    assert 0 < gap.mean() < 3
    assert done.sentence().startswith("int8 is kept for MatMul+Gemm")


def test_float_is_left_alone_where_int8_does_not_pay_and_the_sentence_has_figures(
    file: Path, feeds
) -> None:
    before = file.read_bytes()
    done = quantize_int8(file, feeds, 1, NEVER)
    assert done.kept is None
    assert file.read_bytes() == before
    assert len(done.trials) == 2
    assert done.sentence().startswith("float32 is kept: MatMul+Gemm ")
    assert " ms against " in done.sentence()
    assert done.to_json()["limits"]["speedup"] == 1e9


def test_fixed_ranges_leave_a_picture_what_it_is_alone(file: Path, feeds) -> None:
    done = quantize_int8(file, feeds, 1, ALWAYS)
    assert [trial.invariance_levels for trial in done.trials] == [0, 0]


def test_dynamic_ranges_would_make_a_picture_depend_on_its_neighbours(
    file: Path, feeds, tmp_path: Path
) -> None:
    """The reason why they are not on offer."""
    out = tmp_path / "dynamic.onnx"
    model = onnx.load(file)
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    quantize_dynamic(model, str(out), op_types_to_quantize=["MatMul"])
    infer = open_session(out, 1)
    loud = {"noise": feeds["noise"] * np.linspace(0.1, 3, 6, dtype=np.float32)[:, None, None, None]}
    together = infer(loud)
    alone = np.concatenate([infer({"noise": loud["noise"][i : i + 1]}) for i in range(6)])
    assert (together != alone).any()


@pytest.mark.parametrize(
    ("trial", "good"),
    [
        (Trial(("MatMul",), 11.0, 10.0, 1.0, 40, 0), True),
        (Trial(("MatMul",), 10.9, 10.0, 1.0, 40, 0), False),
        (Trial(("MatMul",), 30.0, 10.0, 1.1, 40, 0), False),
        (Trial(("MatMul",), 30.0, 10.0, 0.0, 40, 1), False),
    ],
)
def test_the_limits_hold_time_levels_and_batches(trial: Trial, good: bool) -> None:
    assert trial.within(Int8Limits()) == good
    assert Quantized((trial,), None, Int8Limits()).sentence().endswith("in the mean at most")


def test_what_cannot_be_quantized_is_refused(file: Path, feeds) -> None:
    with pytest.raises(ExportError, match="int8 needs 2 rows to calibrate and to measure with"):
        quantize_int8(file, {"noise": feeds["noise"][:1]}, 1)
    file.with_name("model.onnx.data").write_bytes(b"")
    with pytest.raises(ExportError, match=r"the weights of model\.onnx lie beside it"):
        quantize_int8(file, feeds, 1)
