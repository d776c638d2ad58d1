"""SD 1.x and 2.x as teachers, against stock diffusers; the student runs in it with one step."""

from pathlib import Path

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tiny import HIDDEN, SCHEDULE, tiny_parts
from tiny_training import CPU, PROMPTS, silent, tiny_recipe, tiny_samples

from distill.student import save_student
from distill.teachers.opening import load_teacher
from distill.teachers.sd import SdTeacher
from distill.train import run_training


def save_tiny_sd(folder: Path, prediction_type: str) -> Path:
    """A `StableDiffusionPipeline` of random weights; 2.x has v prediction."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        tokenizer, text_encoder, vae = tiny_parts()
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=8,
            attention_head_dim=4,
            cross_attention_dim=HIDDEN,
        )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(
            **SCHEDULE, prediction_type=prediction_type, clip_sample=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_sd(tmp_path_factory.mktemp("sd"), request.param)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_samples_are_those_of_the_stock_pipeline(folder: Path, guidance: float) -> None:
    teacher = load_teacher(folder, CPU)
    assert isinstance(teacher, SdTeacher)
    made = teacher.sample(teacher.encode(PROMPTS), [7, 8, 9], 3, guidance)
    for row, (prompt, seed) in enumerate(zip(PROMPTS, (7, 8, 9), strict=True)):
        stock = teacher.pipe(
            prompt,
            num_inference_steps=3,
            guidance_scale=guidance,
            generator=torch.Generator("cpu").manual_seed(seed),
            output_type="latent",
        ).images
        assert torch.allclose(made[row], stock[0], atol=1e-4)


def test_one_step_is_the_step_of_the_saved_pipeline(folder: Path, tmp_path: Path) -> None:
    teacher = load_teacher(folder, CPU)
    save_student(teacher, teacher.denoiser.state_dict(), 700.0, tmp_path / "student")
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "student")
    pipe.set_progress_bar_config(disable=True)
    stock = pipe(
        PROMPTS[0],
        num_inference_steps=1,
        guidance_scale=1.0,
        generator=torch.Generator("cpu").manual_seed(3),
        output_type="latent",
    ).images
    own = teacher.one_step(teacher.denoiser, teacher.noise([3]), 700.0, teacher.encode(PROMPTS[:1]))
    assert torch.allclose(own, stock, atol=1e-5)


def test_it_is_distilled_like_any_other(folder: Path, tmp_path: Path) -> None:
    teacher = load_teacher(folder, CPU)
    recipe = tiny_recipe(tmp_path, folder, "train.steps=2")
    student = run_training(teacher, tiny_samples(teacher), recipe, silent)
    moved = UNet2DConditionModel.from_pretrained(student / "unet").conv_in.weight
    assert not torch.equal(moved, teacher.denoiser.conv_in.weight)
    assert moved.isfinite().all()
