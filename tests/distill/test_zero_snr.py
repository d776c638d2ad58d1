"""Teachers whose schedule ends in noise alone (zero terminal SNR, arXiv 2305.08891)."""

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionXLPipeline
from tiny import SCHEDULE
from tiny_training import CPU, PROMPTS

from distill.teachers.opening import load_teacher
from distill.teachers.teacher import TeacherError

RESCALED = {**SCHEDULE, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}


def with_scheduler(tiny_sdxl: Path, folder: Path, scheduler: object) -> Path:
    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl, scheduler=scheduler)
    pipe.save_pretrained(folder)
    return folder


def test_a_schedule_that_ends_without_a_signal_is_refused_with_a_way_out(
    tiny_sdxl: Path, tmp_path: Path
) -> None:
    scheduler = DDIMScheduler(**RESCALED)
    assert scheduler.alphas_cumprod[-1] == 0
    folder = with_scheduler(tiny_sdxl, tmp_path / "ddim", scheduler)
    with pytest.raises(TeacherError) as error:
        load_teacher(folder, CPU)
    assert str(error.value) == (
        f"teacher.model: {folder} cannot be opened: its scheduler DDIMScheduler has a zero terminal"
        " SNR (rescale_betas_zero_snr), so its last timestep has no noise level; save it with"
        " EulerDiscreteScheduler in its place, which leaves a signal of 2^-12 there"
    )


def test_the_way_out_is_one(tiny_sdxl: Path, tmp_path: Path) -> None:
    scheduler = EulerDiscreteScheduler.from_config(DDIMScheduler(**RESCALED).config)
    teacher = load_teacher(with_scheduler(tiny_sdxl, tmp_path / "euler", scheduler), CPU)
    assert teacher.schedule.signal[-1] == 2**-12
    conditions = teacher.encode(PROMPTS)
    with torch.no_grad():
        made = teacher.one_step(teacher.denoiser, teacher.noise([1, 2, 3]), 999.0, conditions)
    assert made.isfinite().all()
    assert teacher.sample(conditions, [1, 2, 3], 2, 2.0).isfinite().all()
