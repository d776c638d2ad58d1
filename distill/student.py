"""The student: born from the teacher's denoiser, saved as a stock diffusers pipeline.

One step of the saved pipeline in stock diffusers gives the student's picture: its scheduler is a
`DDIMScheduler` whose only timestep is the student's, and whose single step (DDIM, arXiv 2010.02502,
eq. 12 with the signal of the next step set to 1) is x0 = (x − √(1 − ᾱ) ε) / √ᾱ.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from diffusers import DDIMScheduler, StableDiffusionXLPipeline
from torch import Tensor, nn

from distill.teachers.sdxl import SdxlTeacher


def make_student(teacher: SdxlTeacher) -> nn.Module:
    """A trainable float32 copy of the teacher's denoiser."""
    return copy.deepcopy(teacher.unet).requires_grad_(True).train()


def one_step_scheduler(teacher: SdxlTeacher, timestep: int) -> DDIMScheduler:
    """The scheduler whose single step is the student's formula at `timestep`."""
    config = teacher.pipe.scheduler.config
    return DDIMScheduler(
        num_train_timesteps=config.num_train_timesteps,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        beta_schedule=config.beta_schedule,
        trained_betas=config.trained_betas,
        rescale_betas_zero_snr=config.get("rescale_betas_zero_snr", False),
        prediction_type=teacher.prediction_type,
        timestep_spacing="leading",
        steps_offset=timestep,
        set_alpha_to_one=True,
        clip_sample=False,
    )


def save_student(
    teacher: SdxlTeacher, weights: Mapping[str, Tensor], timestep: int, folder: Path
) -> None:
    """Writes the whole pipeline to `folder`, replacing what was there only once it is complete."""
    unet = copy.deepcopy(teacher.unet)
    unet.load_state_dict(weights)
    pipe = StableDiffusionXLPipeline(
        vae=teacher.pipe.vae,
        text_encoder=teacher.pipe.text_encoder,
        text_encoder_2=teacher.pipe.text_encoder_2,
        tokenizer=teacher.pipe.tokenizer,
        tokenizer_2=teacher.pipe.tokenizer_2,
        unet=unet,
        scheduler=one_step_scheduler(teacher, timestep),
        force_zeros_for_empty_prompt=teacher.pipe.config.force_zeros_for_empty_prompt,
        add_watermarker=False,
    )
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    pipe.save_pretrained(partial)
    for config in partial.glob("*/config.json"):
        forget_origin(config)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def forget_origin(config: Path) -> None:
    """Takes out of a saved config where on this machine it was loaded from."""
    plain = json.loads(config.read_text("utf-8"))
    plain.pop("_name_or_path", None)
    config.write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n", "utf-8")
