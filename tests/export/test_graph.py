"""The module draws what stock diffusers draws, and rounds and clamps as diffusers does."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import one_step_scheduler

from export.gate.verify import Cases, draw_cases
from export.graph.module import OneStepGraph, to_levels
from export.model.one_step import PREDICTION_TYPES
from export.model.student import load_student
from export.signature import Signature
from export.tasks.text_task import TextTask


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_one_stock_step_gives_the_same_pictures(
    tiny_student: Path, tmp_path: Path, signature: Signature, prediction_type: str
) -> None:
    pipeline = load_student(tiny_student).pipeline
    pipeline.scheduler = one_step_scheduler(399, prediction_type)
    pipeline.save_pretrained(tmp_path)
    student = load_student(tmp_path)
    cases = draw_cases(TextTask(student, OneStepGraph(student)), signature, rows=2)
    np.testing.assert_array_equal(cases.torch_pictures, cases.stock_pictures)


def test_the_statistics_of_the_latents_are_applied_as_stock_diffusers_does(
    tiny_student: Path, tmp_path: Path, signature: Signature, cases: Cases
) -> None:
    pipeline = load_student(tiny_student).pipeline
    mean, std = [-1.6, 0.5, 2.0, -0.4], [8.4, 0.2, 1.0, 3.0]
    pipeline.vae.register_to_config(latents_mean=mean, latents_std=std)
    pipeline.save_pretrained(tmp_path)
    student = load_student(tmp_path)
    moved = draw_cases(TextTask(student, OneStepGraph(student)), signature, rows=1)
    np.testing.assert_array_equal(moved.torch_pictures, moved.stock_pictures)
    assert (moved.torch_pictures[0] != cases.torch_pictures[0]).any()


def test_the_size_conditioning_is_the_picture_in_pixels(graph: OneStepGraph) -> None:
    ids = graph._time_ids(torch.zeros(2, 4, 8, 16))
    assert ids.tolist() == [[64, 128, 0, 0, 64, 128]] * 2


def test_levels_are_rounded_half_to_even_clamped_and_channels_come_last() -> None:
    wanted = torch.tensor([0.5, 1.5, 2.5, 254.5, -3.0, 300.0], dtype=torch.float64) / 255
    picture = (wanted * 2 - 1).float().reshape(1, 3, 1, 2)
    levels = to_levels(picture)
    assert levels.dtype == torch.uint8
    assert levels.shape == (1, 1, 2, 3)
    stock = ((picture * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy() * 255).round()
    np.testing.assert_array_equal(levels.numpy(), stock.astype("uint8"))
    assert to_levels(torch.full((1, 3, 1, 1), 2.0)).unique().tolist() == [255]
    assert to_levels(torch.full((1, 3, 1, 1), -2.0)).unique().tolist() == [0]
