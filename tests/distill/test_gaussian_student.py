"""A teacher whose one-step map is known exactly, distilled by the public command.

Drifting compares distributions, so of a linear map x = W z it determines W Wᵀ, the covariance: any
rotation of z gives the same samples. What is held against the closed form is therefore the mean and
the deviations along every axis; W itself is near the identity only because it began as a multiple
of it, and is held more loosely.
"""

from pathlib import Path

import pytest
import torch
import yaml
from gaussian_teacher import CHANNELS, SIDE, save_gaussian_teacher
from safetensors.torch import load_file
from tiny_training import CPU
from torch import Tensor, nn

import singlepass
from distill.student import load_student
from distill.teachers.opening import load_teacher
from distill.teachers.teacher import unit_noise

SHAPE = (CHANNELS, SIDE, SIDE)
D = CHANNELS * SIDE * SIDE
TIMESTEP = 399
PER_PROMPT = 16384
LONGER = {  # of 65,536 samples alone the relative error is 0.0075 already
    "positives.per_prompt": 262144,
    "train.steps": 6000,
    "train.checkpoint_steps": 6000,
    "train.sample_steps": 6000,
    "train.ema_decay": 0.9995,
    "train.final_learning_rate": 0.05,
}


def write_recipe(folder: Path, teacher: Path) -> Path:
    (folder / "prompts.txt").write_text("one\nother\n", "utf-8")
    plain = {
        "run": "run",
        "teacher": {"model": str(teacher), "steps": 40, "guidance_scale": 1.0},
        "student": {"timestep": TIMESTEP},
        "positives": {"prompts": "prompts.txt", "per_prompt": PER_PROMPT, "batch": 4096},
        "drift": {
            "layers": ["down_blocks.0"],
            "pool": 1,
            "radii": [0.05, 0.1],
            "groups": 16,
            "samples": 8,
            "positives": 24,
            "anchors": 2,
            "coverage_weight": 0,
        },
        "train": {
            "steps": 600,
            "learning_rate": 1.5e-3,
            "final_learning_rate": 0.01,
            "warmup_steps": 10,
            "weight_decay": 0,
            "ema_decay": 0.99,
            "precision": "fp32",
            "checkpoint_steps": 600,
            "sample_steps": 600,
            "diagnose_steps": 100,
        },
        "export": {"model": "gaussian", "repository": "models"},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(plain), "utf-8")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of `distill train` on the Gaussian teacher."""
    folder = tmp_path_factory.mktemp("gaussian")
    recipe = write_recipe(folder, save_gaussian_teacher(folder / "teacher"))
    assert singlepass.main(["train", str(recipe)]) == 0
    return folder / "run"


def generated(run: Path, denoiser: nn.Module | None = None) -> tuple[Tensor, Tensor]:
    """Noise, and the student's samples of it: [20000, D] each, float64."""
    teacher = load_teacher(run.parent / "teacher", CPU)
    student = load_student(teacher, run / "student") if denoiser is None else denoiser
    z = torch.randn(20_000, *SHAPE, generator=torch.Generator().manual_seed(99))
    condition = teacher.encode(["one"])[torch.zeros(len(z), dtype=torch.int64)]
    with torch.no_grad():
        x = teacher.one_step(student, z, TIMESTEP, condition)
    return z.flatten(1).double(), x.flatten(1).double()


def test_the_teachers_own_sampler_arrives_where_the_closed_form_says(run: Path) -> None:
    shards = [load_file(path)["latents"] for path in sorted((run / "bank").glob("shard-*"))]
    latents = torch.cat([shard.view(-1, *SHAPE) for shard in shards])
    assert len(latents) == 2 * PER_PROMPT
    assert torch.allclose(latents, unit_noise(SHAPE, range(len(latents)), CPU), atol=4e-3)


def test_one_step_of_the_teacher_is_the_optimal_linear_denoiser(run: Path) -> None:
    teacher = load_teacher(run.parent / "teacher", CPU)
    z, x = generated(run, teacher.denoiser)
    signal = float(teacher.pipe.scheduler.alphas_cumprod[TIMESTEP]) ** 0.5
    assert 0.6 < signal < 0.7
    assert torch.allclose(x, signal * z, atol=1e-6)


def test_the_student_has_the_exact_maps_distribution_within_a_hundredth(run: Path) -> None:
    z, x = generated(run)
    own = (x - x.mean(0)).square().mean().sqrt() / (z - z.mean(0)).square().mean().sqrt()
    assert own.item() == pytest.approx(1.0, abs=0.01)
    axes = torch.linalg.eigvalsh(torch.cov(x.T)).sqrt()
    assert (axes - 1).abs().max() < 0.06, axes
    assert x.mean(0).norm() / D**0.5 < 0.03


def test_the_students_map_stays_near_the_one_it_began_beside(run: Path) -> None:
    z, x = generated(run)
    W = torch.linalg.lstsq(z, x).solution
    assert (W - torch.eye(D)).norm() / D**0.5 < 0.15
    assert (x - z @ W).square().mean().sqrt() < 0.08  # it is linear as the closed form is


def relative_error(z: Tensor, x: Tensor) -> float:
    """Root of the Fréchet distance of x to the exact map's samples z, relative to their size.

    It is the least relative error of a linear map over all rotations of z, which a distribution
    cannot tell apart. z's own mean and covariance are the reference, so that chance is not in it.
    """
    whiten = torch.linalg.inv(torch.linalg.cholesky(torch.cov(z.T)))
    axes = torch.linalg.eigvalsh(whiten @ torch.cov(x.T) @ whiten.T).sqrt()
    off = (x.mean(0) - z.mean(0)).square().sum() + (axes - 1).square().sum()
    return float((off / z.shape[1]).sqrt())


def test_the_relative_error_is_zero_up_to_a_rotation_and_grows_with_a_scale() -> None:
    z = torch.randn(20_000, D, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    whiten = torch.linalg.inv(torch.linalg.cholesky(torch.cov(z.T)))
    z = (z - z.mean(0)) @ whiten.T
    turned = z @ torch.linalg.qr(torch.randn(D, D, dtype=torch.float64)).Q
    assert relative_error(z, turned) < 1e-6
    assert relative_error(z, 1.03 * turned) == pytest.approx(0.03)
    assert relative_error(z, turned + 0.02) == pytest.approx(0.02)


@pytest.mark.slow  # a quarter of an hour
def test_ten_times_the_steps_bring_the_relative_error_below_a_hundredth(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, save_gaussian_teacher(tmp_path / "teacher"))
    changes = [part for key, value in LONGER.items() for part in ("--set", f"{key}={value}")]
    assert singlepass.main(["train", str(recipe), *changes]) == 0
    z, x = generated(tmp_path / "run")
    assert relative_error(z, x) < 0.01
