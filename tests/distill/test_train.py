"""The training loop: what a run leaves behind, what stops it, and that it helps."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_training import CPU, LAYERS, Trained, draw, silent, tiny_recipe, tiny_samples
from torch import Tensor, nn

from distill import step as training_step
from distill.data import DataError, Samples
from distill.features import FeatureExtractor
from distill.metrics import frechet_distance
from distill.recipe import Recipe
from distill.stats import whole_lines
from distill.step import Randomness, micro_batch
from distill.student import load_student, make_student
from distill.teachers.opening import load_teacher
from distill.teachers.sdxl import SdxlTeacher
from distill.train import TrainingError, learning_rate, run_training


def test_a_steps_gradient_is_the_mean_of_its_micro_batches(
    teacher: SdxlTeacher, samples: Samples, tiny_sdxl: Path, tmp_path: Path
) -> None:
    recipe = tiny_recipe(tmp_path, tiny_sdxl, "train.steps=1", "train.accumulate=3")
    run_training(teacher, samples, recipe, silent)
    (line,) = whole_lines(recipe.run / "stats.jsonl")
    student, losses = make_student(teacher), list[float]()
    extractor = FeatureExtractor(teacher.denoiser, LAYERS, recipe.drift.pool)
    for micro in range(3):
        randomness = Randomness.of(0, 0, micro)
        loss, _ = micro_batch(teacher, student, extractor, samples, recipe, randomness)
        losses.append(loss.item())
        (loss / 3).backward()  # type: ignore[no-untyped-call]
    gradient = torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])
    assert line["loss"] == pytest.approx(sum(losses) / 3, rel=1e-5)
    assert line["grad_norm"] == pytest.approx(gradient.norm().item(), rel=1e-4)
    assert len(set(losses)) == 3


def test_the_learning_rate_warms_up_and_falls_along_a_cosine(trained: Trained) -> None:
    settings = trained.recipe.train.model_copy(update={"steps": 100, "warmup_steps": 10})
    rates = [learning_rate(s, settings) / 1e-3 for s in range(101)]
    assert rates[0] == pytest.approx(0.1, rel=1e-3)
    assert rates[4] == pytest.approx(0.5 * (0.55 + 0.45 * math.cos(math.pi * 0.04)))
    assert rates[50] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)
    constant = settings.model_copy(update={"final_learning_rate": 1.0, "warmup_steps": 0})
    assert {learning_rate(s, constant) for s in (0, 50, 100)} == {1e-3}
    lines = list(whole_lines(trained.recipe.run / "stats.jsonl"))
    assert [line["lr"] for line in lines] == [
        learning_rate(s, trained.recipe.train) for s in range(6)
    ]


def test_a_run_folder_holds_recipe_statistics_grids_and_checkpoints(trained: Trained) -> None:
    run = trained.recipe.run
    assert sorted(path.name for path in run.iterdir()) == [
        "bank",
        "checkpoints",
        "grids",
        "recipe.yaml",
        "stats.jsonl",
        "student",
    ]
    assert sorted(path.name for path in (run / "grids").iterdir()) == [
        "step-00000004.png",
        "step-00000006.png",
    ]
    with Image.open(run / "grids" / "step-00000006.png") as grid:
        assert grid.size == (8 * 66 + 2, 3 * 66 + 2)  # eight seeds of each of three prompts
        assert np.asarray(grid)[2:66, 2:66].std() > 10
    assert (run / "recipe.yaml").read_text("utf-8") == trained.recipe.resolved()
    assert trained.student == run / "student"


def test_diagnostics_stand_in_every_third_line(trained: Trained) -> None:
    lines = list(whole_lines(trained.recipe.run / "stats.jsonl"))
    assert [line["step"] for line in lines] == list(range(6))
    assert ["floor/mid_block/r0.1" in line for line in lines] == [True, False, False] * 2
    for line in lines:
        assert all(math.isfinite(value) for value in line.values())
        assert {"loss", "grad_norm", "lr", "force/mid_block/r0.3", "covered/up_blocks.0"} <= set(
            line
        )


def test_diagnostics_need_real_samples_of_their_own(
    teacher: SdxlTeacher, samples: Samples, recipe: Recipe
) -> None:
    extractor, student = FeatureExtractor(teacher.denoiser, LAYERS, 2), make_student(teacher)
    few = Samples(
        *(samples.prompts, samples.conditions, samples.latents),
        tuple(members[:8] for members in samples.members),
    )
    enough = training_step.diagnostics(teacher, student, extractor, samples, recipe, 0)
    assert training_step.diagnostics(teacher, student, extractor, few, recipe, 0) == {}
    assert "reach/mid_block/r0.3" in enough


def test_too_few_samples_stop_a_run_before_it_begins(
    teacher: SdxlTeacher, samples: Samples, tiny_sdxl: Path, tmp_path: Path
) -> None:
    recipe = tiny_recipe(tmp_path, tiny_sdxl, "drift.positives=9")
    with pytest.raises(DataError, match=r"has 10 samples; drift\.positives .* asks for 11 of each"):
        run_training(teacher, samples, recipe, silent)
    assert not recipe.run.exists()


def test_a_layer_that_does_not_exist_stops_a_run_and_those_that_do_are_listed(
    teacher: SdxlTeacher, samples: Samples, tiny_sdxl: Path, tmp_path: Path
) -> None:
    recipe = tiny_recipe(tmp_path, tiny_sdxl, "drift.layers=[mid_block, up_blocks.7]")
    with pytest.raises(ValueError, match=r"'up_blocks\.7' does not exist; there are .*up_blocks.1"):
        run_training(teacher, samples, recipe, silent)
    assert not recipe.run.exists()


class Explosion(torch.autograd.Function):
    """The identity, whose gradient is infinite."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return torch.full_like(gradients[0], torch.inf)


class Explosive(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        exploded: Tensor = Explosion.apply(x)  # type: ignore[no-untyped-call]
        return exploded


def test_a_gradient_that_is_not_finite_stops_the_run(
    tiny_sdxl: Path, samples: Samples, recipe: Recipe
) -> None:
    teacher = load_teacher(tiny_sdxl, CPU)
    teacher.pipe.unet.conv_out = nn.Sequential(teacher.pipe.unet.conv_out, Explosive())
    with pytest.raises(TrainingError, match=r"the gradient is (nan|inf) at step 0; training stop"):
        run_training(teacher, samples, recipe, silent)
    assert (recipe.run / "stats.jsonl").read_text() == ""


def distances(teacher: SdxlTeacher, unet: nn.Module, samples: Samples) -> list[list[float]]:
    """Fréchet distance of mean colours: of each prompt's pictures to each prompt's samples."""

    def colours(latents: Tensor) -> Any:
        return latents.mean(dim=(2, 3)).double().numpy()

    rows = []
    for prompt in range(len(samples.prompts)):
        condition = samples.conditions[prompt : prompt + 1].repeated(64)
        with torch.no_grad():
            made = colours(teacher.one_step(unet, draw(64, 4, 8, 8, seed=9), 399, condition))
        rows.append([frechet_distance(made, colours(samples.latents[m])) for m in samples.members])
    return rows


def test_training_moves_every_prompts_pictures_to_its_own_samples(
    teacher: SdxlTeacher, tiny_sdxl: Path, tmp_path: Path
) -> None:
    base = tiny_samples(teacher, per_prompt=64, scale=0.5)
    means = 1.5 * draw(3, 4, 1, 1, seed=3).repeat_interleave(64, 0)
    samples = Samples(base.prompts, base.conditions, base.latents + means, base.members)
    recipe = tiny_recipe(
        tmp_path,
        tiny_sdxl,
        "train={steps: 25, learning_rate: 4e-3, warmup_steps: 2, precision: fp32,"
        " diagnose_steps: 24}",
        "drift={layers: [down_blocks.1, mid_block, up_blocks.0], pool: 2, groups: 3, samples: 6,"
        " positives: 12, anchors: 4, radii: [0.1, 0.3, 1.0]}",
    )
    before = np.array(distances(teacher, teacher.denoiser, samples))
    folder = run_training(teacher, samples, recipe, silent)
    after = np.array(distances(teacher, load_student(teacher, folder), samples))
    assert np.trace(after) < np.trace(before) / 5
    assert (after.argmin(axis=1) == [0, 1, 2]).all()
    first, *_, last = whole_lines(recipe.run / "stats.jsonl")
    for layer in LAYERS:  # the force that is no noise is less than half of what it was
        begun, ended = (
            line[f"force/{layer}/r1"] ** 2 - line[f"floor/{layer}/r1"] ** 2
            for line in (first, last)
        )
        assert ended < begun / 2
