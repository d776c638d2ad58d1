"""The shared fixture is a pipeline that stock diffusers runs, and its pictures are not flat."""

from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline


def test_the_tiny_student_draws_pictures_that_depend_on_prompt_and_noise(
    tiny_student: Path,
) -> None:
    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_student)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1)
    noise = torch.cat([noise, noise[:1].flip(-1)])
    prompts = ["a red circle", "blue", "a red circle"]
    pictures = pipe(
        prompts, latents=noise, num_inference_steps=1, guidance_scale=0.0, output_type="pt"
    ).images
    assert pictures.shape == (3, 3, 64, 64)
    assert pictures.std(dim=(1, 2, 3)).min() > 0.05
    assert (pictures[0] - pictures[1]).abs().mean() > 0.005
    assert (pictures[0] - pictures[2]).abs().mean() > 0.005
    assert ((pictures == 0) | (pictures == 1)).float().mean() < 0.3
