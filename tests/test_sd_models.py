"""Stable Diffusion 1.x and 2.x from end to end: saved by distill, exported, served."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from stock_step import stock_picture
from tiny import SCHEDULE
from tiny_sd import save_tiny_sd_student

from distill.student import save_student
from distill.teachers.opening import load_teacher
from export.export import export_student
from export.options import Options
from serve.generate import generate_file
from serve.settings import Settings

PROMPT, SEED = "a red circle", 5


def teacher_and_student(folder: Path, prediction_type: str):
    """A tiny teacher with a many-step scheduler, and its own weights saved as a student."""
    save_tiny_sd_student(folder / "teacher", 999, prediction_type)
    many = DDIMScheduler(
        **SCHEDULE, prediction_type=prediction_type, clip_sample=False, steps_offset=1
    )
    many.save_pretrained(folder / "teacher" / "scheduler")
    teacher = load_teacher(folder / "teacher", torch.device("cpu"))
    level = teacher.level(None, None)
    save_student(teacher, teacher.denoiser.state_dict(), level, folder / "student")
    return teacher, level


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_gateway_gives_what_the_student_is_trained_as(tmp_path: Path, prediction_type) -> None:
    teacher, level = teacher_and_student(tmp_path, prediction_type)
    with torch.no_grad():
        latent = teacher.one_step(
            teacher.denoiser, teacher.noise([SEED]), level, teacher.encode([PROMPT])
        )
        trained = teacher.decode(latent)[0].numpy()
    options = Options(max_batch=1)
    export_student(tmp_path / "student", tmp_path / "r", "sd", options, report=lambda line: None)
    settings = Settings(repository=tmp_path / "r", threads=1)
    served = np.asarray(
        Image.open(io.BytesIO(generate_file(settings, PROMPT, SEED, tmp_path / "a.png").data))
    )
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "student")
    for other in (trained, stock_picture(pipeline, PROMPT, SEED)):
        assert np.abs(served.astype(int) - other).max() <= 1
