"""Number types by part: what is cast where, and that an overflow of a float16 VAE is refused."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from export.errors import ExportError, PrecisionError
from export.gate.session import open_session
from export.gate.widen import widen
from export.graph.module import OneStepGraph
from export.graph.precision import (
    FLOAT16_MAX,
    Largest,
    Precision,
    apply_precision,
    check_range,
    draw_latents,
    read_precision,
    watch_decoder,
)
from export.graph.to_onnx import write_onnx
from export.model.student import Student, load_student
from export.signature import Signature, Tensor

HALF = Precision(torch.float16, torch.float16, torch.float32)


@pytest.fixture
def own(tiny_student: Path) -> Student:
    """A student that a test may change."""
    return load_student(tiny_student)


@pytest.fixture(scope="module")
def half(tiny_student: Path, signature: Signature, tmp_path_factory) -> tuple[OneStepGraph, Path]:
    """The tiny student with text encoders and UNet in float16, in torch and in ONNX."""
    student = load_student(tiny_student)
    apply_precision(student, HALF)
    graph, file = OneStepGraph(student), tmp_path_factory.mktemp("half") / "model.onnx"
    write_onnx(graph, signature, file)
    return graph, file


class Small(nn.Module):
    """noise [B, 4, 8, 8] float32 -> [B, 4, 8, 8] uint8, computed in the type of the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.out = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.conv(noise.to(self.conv.weight.dtype)))
        return (self.out(hidden).float() * 40 + 128).clamp(0, 255).round().to(torch.uint8)


SMALL = Signature((Tensor("noise", "float32", (4, 8, 8)),), Tensor("image", "uint8", (4, 8, 8)))


def feeds(signature: Signature, batch: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, 400, (batch, 77), generator=generator)
    noise = torch.randn(batch, *signature.noise_shape((64, 64)), generator=generator)
    return {"input_ids": ids, "input_ids_2": ids, "noise": noise}


def test_names_are_read_and_text_follows_the_unet() -> None:
    assert read_precision("fp16", "bf16").to_json() == {
        "text": "float16",
        "unet": "float16",
        "vae": "bfloat16",
    }
    assert read_precision("bf16", "fp32", "fp32").text is torch.float32
    with pytest.raises(PrecisionError, match="vae-dtype is 'int8'; allowed are fp32, float32, fp1"):
        read_precision("fp16", "int8")


@torch.no_grad()
def test_every_part_computes_in_its_type_and_the_picture_is_float32(
    own: Student, signature: Signature
) -> None:
    inputs = feeds(signature, 1).values()
    before = OneStepGraph(own).picture(*inputs)
    apply_precision(own, Precision(torch.float16, torch.bfloat16, torch.bfloat16))
    pipeline = own.pipeline
    assert {p.dtype for p in pipeline.text_encoder_2.parameters()} == {torch.float16}
    assert {p.dtype for p in pipeline.unet.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in pipeline.vae.parameters()} == {torch.bfloat16}
    graph = OneStepGraph(own)
    latent, after = graph.latent(*inputs), graph.picture(*inputs)
    assert latent.dtype == after.dtype == torch.float32
    assert 0 < (after - before).abs().max() < 0.1


def test_a_16_bit_graph_normalises_and_takes_softmax_in_float32(half) -> None:
    model = onnx.load(half[1])
    weights = {w.name: w.data_type for w in model.graph.initializer}
    attributes = {
        (node.op_type, a.name): set() for node in model.graph.node for a in node.attribute
    }
    for node in model.graph.node:
        for a in node.attribute:
            attributes[node.op_type, a.name].add(a.i)
    assert attributes["GroupNormalization", "stash_type"] == {onnx.TensorProto.FLOAT}
    assert attributes["LayerNormalization", "stash_type"] == {onnx.TensorProto.FLOAT}
    wide = [n for n in model.graph.node if n.op_type == "Attention"]
    marked = [n for n in wide if any(a.name == "softmax_precision" for a in n.attribute)]
    assert len(wide) > len(marked) == len(wide) - 1  # all but the VAE's, which is float32
    assert attributes["Attention", "softmax_precision"] == {onnx.TensorProto.FLOAT}
    assert onnx.TensorProto.FLOAT16 in weights.values()


@torch.no_grad()
def test_a_float16_graph_draws_what_torch_draws_in_every_batch(half, signature: Signature) -> None:
    graph, file = half
    inputs = feeds(signature, 3)
    infer = open_session(file, 1)
    together = infer({name: value.numpy() for name, value in inputs.items()})
    wanted = graph(*inputs.values()).numpy()
    gap = np.abs(together.astype(int) - wanted)
    assert gap.max() <= 3
    assert gap.mean() < 0.2
    for row in range(3):
        alone = infer({name: value[row : row + 1].numpy() for name, value in inputs.items()})
        np.testing.assert_array_equal(alone[0], together[row])


@torch.no_grad()
def test_a_bfloat16_graph_runs_on_a_cpu_only_once_it_is_widened(tmp_path: Path) -> None:
    small, narrow, wide = Small().eval(), tmp_path / "model.onnx", tmp_path / "wide.onnx"
    write_onnx(small.to(torch.bfloat16), SMALL, narrow)
    with pytest.raises(ExportError, match="NOT_IMPLEMENTED"):
        open_session(narrow, 1)
    assert widen(narrow, wide) == len(list(small.parameters()))
    noise = torch.randn(2, 4, 8, 8)
    got = open_session(wide, 1)({"noise": noise.numpy()})
    gap = np.abs(got.astype(int) - small.to(torch.float32)(noise).numpy())
    assert gap.max() <= 1
    assert (gap > 0).mean() < 0.01


def test_the_largest_activation_of_the_decoder_is_found_by_name(own: Student) -> None:
    conv_out = own.pipeline.vae.decoder.conv_out
    with torch.no_grad():
        conv_out.weight.zero_()
        conv_out.bias.fill_(-4e4)
    largest = watch_decoder(own, draw_latents(own))
    assert (largest.module, largest.value, largest.samples) == ("decoder.conv_out", 4e4, 4)


def test_a_float16_vae_that_would_overflow_is_refused(own: Student) -> None:
    with torch.no_grad():
        own.pipeline.vae.decoder.conv_in.bias.fill_(4e4)
    with pytest.raises(PrecisionError, match=r"samples decoder\.\S+ of the VAE reaches 4"):
        apply_precision(own, Precision(vae=torch.float16))
    assert own.pipeline.vae.dtype == torch.float32


def test_values_that_are_not_finite_are_refused() -> None:
    for value in (torch.inf, FLOAT16_MAX):
        with pytest.raises(PrecisionError, match="allowed is 32752"):
            check_range(Largest("decoder", value, 1))
    check_range(Largest("decoder", 32752.0, 1))


@torch.no_grad()
def test_a_float16_vae_within_the_range_is_taken(own: Student, signature: Signature) -> None:
    inputs = feeds(signature, 1).values()
    before = OneStepGraph(own).picture(*inputs)
    largest = apply_precision(own, Precision(vae=torch.float16))
    assert largest is not None
    assert 0 < largest.value < 1000
    assert own.pipeline.vae.dtype == torch.float16
    assert 0 < (OneStepGraph(own).picture(*inputs) - before).abs().max() < 0.05
