"""Another decoder: the graph equals stock diffusers after `pipe.vae = ...`, or says why not."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from export.errors import DecoderError
from export.graph.decoder import decoder_facts, load_decoder
from export.graph.module import OneStepGraph
from export.model.stock import stock_call
from export.model.student import Student, load_student

FOUR = (8, 8, 8, 8)


@pytest.fixture
def own(tiny_student: Path) -> Student:
    """A student that a test may change."""
    return load_student(tiny_student)


def tiny_vae(folder: Path, channels: int = 4, **changes: object) -> Path:
    """An `AutoencoderTiny` with random weights, as TAESDXL is laid out; 8 pixels to a latent."""
    torch.manual_seed(3)
    config = {"latent_channels": channels, "act_fn": "relu"} | changes
    vae = AutoencoderTiny(
        encoder_block_out_channels=FOUR, decoder_block_out_channels=FOUR, **config
    )
    vae.save_pretrained(folder)
    return folder


def other_vae(folder: Path, blocks: int = 4, **changes: object) -> Path:
    """An `AutoencoderKL` with random weights and a scaling factor of its own."""
    torch.manual_seed(4)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16, 16)[:blocks],
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        norm_num_groups=4,
        **{"latent_channels": 4, "scaling_factor": 0.5} | changes,
    )
    vae.save_pretrained(folder)
    return folder


@torch.no_grad()
def pictures(student: Student, prompt: str = "blue") -> tuple[np.ndarray, np.ndarray]:
    """Ours and stock diffusers', each [1, H, W, 3]."""
    ids = [
        tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt").input_ids
        for tokenizer in (student.pipeline.tokenizer, student.pipeline.tokenizer_2)
    ]
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    return OneStepGraph(student)(*ids, noise).numpy(), stock_call(student, prompt, noise)


@pytest.mark.parametrize(("make", "factor"), [(tiny_vae, 1.0), (other_vae, 0.5)])
def test_another_decoder_draws_what_stock_diffusers_draws_with_it(
    own: Student, tmp_path: Path, make, factor: float
) -> None:
    before, _ = pictures(own)
    student = load_decoder(own, make(tmp_path))
    ours, stock = pictures(student)
    assert np.abs(ours.astype(int) - stock).max() <= 1
    assert np.abs(ours.astype(int) - before).mean() > 1
    assert ours.std() > 1
    facts = decoder_facts(student)
    assert facts["kind"] == type(student.pipeline.vae).__name__
    assert facts["scaling_factor"] == factor
    assert facts["parameters"] > 1000


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda f: tiny_vae(f, channels=16), "takes latents of 16 channels; the student's have 4"),
        (lambda f: other_vae(f, blocks=3), "makes 4 pixels of a latent's side; the student needs"),
        (lambda f: other_vae(f, shift_factor=0.1), "shift_factor in the config of vae .* is 0.1"),
        (lambda f: f, "has no config.json; it must be a directory"),
        (lambda f: (f / "config.json").write_text("{") and f, "config.json is not valid JSON"),
        (lambda f: (f / "config.json").write_text("[]") and f, "holds a None; allowed are Auto"),
        (
            lambda f: (f / "config.json").write_text(json.dumps({"_class_name": "VQModel"})) and f,
            "holds a VQModel; allowed are AutoencoderKL, AutoencoderTiny",
        ),
    ],
)
def test_a_decoder_that_does_not_fit_is_refused(
    own: Student, tmp_path: Path, make, sentence: str
) -> None:
    folder = make(tmp_path)
    with pytest.raises(DecoderError, match=sentence):
        load_decoder(own, folder)


def test_a_decoder_without_its_weights_is_refused(own: Student, tmp_path: Path) -> None:
    folder = tiny_vae(tmp_path)
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(b"cut short")
    with pytest.raises(DecoderError, match=r"the VAE .* cannot be loaded: "):
        load_decoder(own, folder)
