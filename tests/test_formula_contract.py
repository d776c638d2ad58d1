"""What is written twice on purpose must say the same: formula, noise, which files are read."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.utils.torch_utils import randn_tensor
from tiny import one_step_scheduler

from distill.noise import PREDICTION_TYPES, NoiseSchedule
from distill.teachers import variant as teachers
from export.model import one_step as exported
from export.model import weights as students
from export.model.scheduler import read_one_step
from serve import noise as served

TIMESTEPS = (0, 10, 399, 999)
SEEDS = (0, 1, 77, 2**32 - 1, 2**32 + 5, 2**63 + 11)


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
@pytest.mark.parametrize("timestep", TIMESTEPS)
def test_distill_trains_with_the_formula_that_export_folds_into_the_graph(kind, timestep) -> None:
    generator = torch.Generator().manual_seed(timestep)
    x = torch.randn(3, 4, 8, 8, generator=generator)
    prediction = torch.randn(3, 4, 8, 8, generator=generator)
    scheduler = one_step_scheduler(timestep, kind)
    schedule = NoiseSchedule(scheduler.alphas_cumprod)
    t = torch.full((3,), timestep)
    trained = schedule.x0_from_prediction(x, prediction, t, kind)
    folded = exported.clean_latent(x, prediction, read_one_step(scheduler))
    scheduler.set_timesteps(1)
    stock = scheduler.step(prediction, scheduler.timesteps[0], x).prev_sample
    assert scheduler.timesteps.tolist() == [timestep]
    # Relative to the terms: at t = 999 both are 14.6 times as large as what they subtract.
    scale = float(1 / schedule.signal[timestep])
    assert (trained - folded).abs().max() <= 1e-6 * scale
    assert (trained - stock).abs().max() <= 1e-6 * scale


def test_both_packages_know_the_same_prediction_types() -> None:
    assert exported.PREDICTION_TYPES == PREDICTION_TYPES


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 128, 128), (4, 7, 9), (1, 4, 5)])
def test_a_seed_is_the_same_noise_in_serve_torch_and_diffusers(seed, shape) -> None:
    torchs = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))
    stock = randn_tensor(
        (1, *shape), torch.Generator("cpu").manual_seed(seed), torch.device("cpu"), torch.float32
    )
    assert torch.equal(stock[0], torchs)
    np.testing.assert_allclose(served.draw(seed, shape), torchs.numpy(), atol=5e-7, rtol=0)


def test_the_stock_pipeline_starts_from_that_noise_unscaled(tiny_student) -> None:
    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_student)
    generator = torch.Generator("cpu").manual_seed(5)
    pipe.scheduler.set_timesteps(1)
    latents = pipe.prepare_latents(
        1, 4, 64, 64, torch.float32, torch.device("cpu"), generator, None
    )
    np.testing.assert_allclose(latents[0].numpy(), served.draw(5, (4, 8, 8)), atol=5e-7, rtol=0)


@pytest.mark.parametrize(
    ("names", "variant"),
    [
        (["model.safetensors"], None),
        (["model.safetensors", "model.fp16.safetensors"], None),
        (["model.fp16.safetensors", "config.json", "model.onnx"], "fp16"),
        (["diffusion_pytorch_model.bf16.safetensors"], "bf16"),
        (["model.bf16.safetensors", "model.fp16.safetensors"], "fp16"),
        (["diffusion_pytorch_model-00001-of-00002.safetensors"], None),
        (["model.fp16-00001-of-00002.safetensors", "model.safetensors.index.fp16.json"], "fp16"),
        (["diffusion_pytorch_model-00001-of-00002.fp16.safetensors"], "fp16"),
        (["diffusion_pytorch_model.non_ema.safetensors"], None),
        (["sdxl_vae.safetensors", "diffusion_pytorch_model.fp16.safetensors"], "fp16"),
        ([], None),
    ],
)
def test_teachers_and_students_are_read_from_the_same_files(
    tmp_path: Path, names: list[str], variant: str | None
) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert students.variant_of(tmp_path) == variant
    assert teachers.variant_of(tmp_path.parent, [tmp_path.name]) == variant
