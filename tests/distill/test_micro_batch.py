"""One micro-batch: who gets a gradient, who sees which condition and noise, in what precision."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import BLOCKS, CPU, LAYERS, draw, tiny_recipe, watched
from torch import Tensor, nn

from distill import step as training_step
from distill.data import Samples
from distill.features import FeatureExtractor
from distill.recipe import Recipe
from distill.step import Randomness, micro_batch
from distill.student import make_student
from distill.teachers.opening import load_teacher
from distill.teachers.sdxl import SdxlTeacher
from distill.teachers.teacher import Condition

Figures = dict[str, float | Tensor]


def step(
    teacher: SdxlTeacher, student: nn.Module, samples: Samples, recipe: Recipe, micro: int = 0
) -> tuple[Tensor, Figures]:
    extractor = FeatureExtractor(teacher.denoiser, recipe.drift.layers, recipe.drift.pool)
    return micro_batch(teacher, student, extractor, samples, recipe, Randomness.of(0, 0, micro))


def test_the_gradient_reaches_all_of_the_student_and_none_of_the_teacher(
    teacher: SdxlTeacher, samples: Samples, recipe: Recipe
) -> None:
    student = make_student(teacher)
    loss, _ = step(teacher, student, samples, recipe)
    loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name
    for part in (teacher.denoiser, teacher.pipe.vae, teacher.pipe.text_encoder):
        assert all(parameter.grad is None for parameter in part.parameters())


def test_a_groups_features_depend_on_its_own_condition_alone(
    teacher: SdxlTeacher, samples: Samples
) -> None:
    extractor, x = FeatureExtractor(teacher.denoiser, LAYERS, 2), draw(3, 4, 4, 8, 8)
    sigma = torch.tensor([0.05, 0.1, 0.07])

    def features_of(condition: Condition) -> dict[str, Tensor]:
        randomness = Randomness.of(1, 2, 3)
        return training_step.features(teacher, extractor, x, condition, sigma, randomness)

    before = features_of(samples.conditions)
    after = features_of(samples.conditions[torch.tensor([0, 2, 2])])
    for layer in LAYERS:
        assert before[layer].shape[:2] == (3, 4)
        assert torch.equal(before[layer][[0, 2]], after[layer][[0, 2]])
        assert (before[layer][1] - after[layer][1]).abs().amax(dim=1).min() > 1e-3


def test_every_window_of_a_layer_makes_groups_of_its_own(
    teacher: SdxlTeacher, samples: Samples
) -> None:
    extractor, x = FeatureExtractor(teacher.denoiser, ["sample/4"]), draw(3, 5, 4, 8, 8)
    randomness, sigma = Randomness.of(1, 2, 3), torch.full((3,), 0.1)
    phi = training_step.features(teacher, extractor, x, samples.conditions, sigma, randomness)[
        "sample/4"
    ]
    assert phi.shape == (3 * 4, 5, 4 * 16)  # three conditions, four windows of each
    lower_left_of_second = x[1, :, :, 4:, :4].flatten(1)
    assert torch.equal(phi[1 * 4 + 2], lower_left_of_second)


def test_a_groups_samples_depend_on_its_own_condition_alone(
    teacher: SdxlTeacher, samples: Samples, recipe: Recipe
) -> None:
    student = make_student(teacher)
    before, after = (
        training_step.generate(
            teacher, student, samples.conditions[torch.tensor(c)], recipe, Randomness.of(1, 2, 3)
        )
        for c in ([0, 1], [0, 2])
    )
    assert before.shape == (2, 3, 4, 8, 8)
    assert torch.equal(before[0], after[0])
    assert not torch.allclose(before[1], after[1], atol=1e-3)
    assert torch.pdist(before.flatten(0, 1).flatten(1)).min() > 1  # each from a noise of its own


Pass = tuple[Tensor, Tensor, Tensor, Condition]


def passes_of(tiny_sdxl: Path, samples: Samples, recipe: Recipe) -> list[Pass]:
    """The feature passes of a micro-batch, each in rows by group: [B, K, ...]."""
    seen: list[Pass] = []

    def by_group(x: Tensor) -> Tensor:
        return x.detach().view(recipe.drift.groups, -1, *x.shape[1:])

    def watch(x0: Tensor, noise: Tensor, sigma: Tensor, condition: Condition) -> None:
        rows = Condition({name: by_group(part) for name, part in condition.parts.items()})
        seen.append((by_group(x0), by_group(noise), by_group(sigma), rows))

    teacher = watched(tiny_sdxl, watch)
    step(teacher, make_student(teacher), samples, recipe)
    return seen


def test_a_group_has_one_noise_level_and_every_sample_a_noise_of_its_own(
    tiny_sdxl: Path, samples: Samples, recipe: Recipe
) -> None:
    generated, real = passes_of(tiny_sdxl, samples, recipe)
    assert generated[0].shape[:2] == (2, 3)
    assert real[0].shape[:2] == (2, 4 + 2)
    sigma = torch.cat([generated[2], real[2]], dim=1)  # [B, N + P + A]
    assert torch.equal(sigma, sigma[:, :1].expand(-1, 9))
    assert sigma[0, 0] != sigma[1, 0]
    assert ((sigma >= 0.02) & (sigma <= 0.1)).all()
    noise = torch.cat([generated[1], real[1]], dim=1).flatten(0, 1).flatten(1)
    assert torch.pdist(noise).min() > 10  # sqrt(2 * 256) = 22.6 on average
    assert abs(noise.std().item() - 1) < 0.05


def test_all_samples_of_a_group_are_seen_with_its_condition(
    tiny_sdxl: Path, samples: Samples, recipe: Recipe
) -> None:
    generated, real = passes_of(tiny_sdxl, samples, recipe)
    row = {latent.numpy().tobytes(): i for i, latent in enumerate(samples.latents)}
    for group in range(2):
        picked = [row[x.numpy().tobytes()] for x in real[0][group]]
        assert len(set(picked)) == 6  # positives and anchors do not overlap
        (prompt,) = {index // 10 for index in picked}
        for condition in (generated[3], real[3]):
            for own, whole in (
                (condition.parts["prompt"], samples.conditions.parts["prompt"]),
                (condition.parts["pooled"], samples.conditions.parts["pooled"]),
            ):
                assert torch.equal(own[group], whole[prompt].expand_as(own[group]))


def record(unet: nn.Module, names: tuple[str, ...], seen: dict[str, list[torch.dtype]]) -> None:
    """Notes the precision of what the named blocks give, from now on."""

    def hook_of(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            seen.setdefault(name, []).append(first.dtype)

        return hook

    for name in names:
        unet.get_submodule(name).register_forward_hook(hook_of(name))


def test_the_teacher_stops_after_the_last_layer_and_stays_in_float32(
    tiny_sdxl: Path, samples: Samples, tmp_path: Path
) -> None:
    recipe = tiny_recipe(tmp_path, tiny_sdxl, "train.precision=bf16")
    teacher = load_teacher(tiny_sdxl, CPU)
    student = make_student(teacher)
    of_teacher: dict[str, list[torch.dtype]] = {}
    of_student: dict[str, list[torch.dtype]] = {}
    record(teacher.denoiser, BLOCKS, of_teacher)
    record(student, BLOCKS, of_student)
    loss, _ = step(teacher, student, samples, recipe)
    assert loss.dtype == torch.float32
    assert list(of_teacher) == ["down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0"]
    assert all(dtypes == [torch.float32] * 2 for dtypes in of_teacher.values())
    assert list(of_student) == list(BLOCKS)
    assert of_student["mid_block"] == [torch.bfloat16]


def test_features_are_the_same_inside_a_callers_autocast(
    teacher: SdxlTeacher, samples: Samples
) -> None:
    extractor, x = FeatureExtractor(teacher.denoiser, LAYERS, 2), draw(3, 2, 4, 8, 8)
    sigma = torch.full((3,), 0.05)
    seen = []
    for half in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            randomness = Randomness.of(0, 0, 0)
            seen.append(
                training_step.features(teacher, extractor, x, samples.conditions, sigma, randomness)
            )
    for layer in LAYERS:
        assert torch.equal(seen[0][layer], seen[1][layer])


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_samples_are_float32_and_bf16_is_close(
    teacher: SdxlTeacher, samples: Samples, tiny_sdxl: Path, tmp_path: Path, precision: str
) -> None:
    recipe = tiny_recipe(tmp_path, tiny_sdxl, f"train.precision={precision}")
    student, conditions = make_student(teacher), samples.conditions
    x = training_step.generate(teacher, student, conditions, recipe, Randomness.of(0, 0, 0))
    repeated = conditions.repeated(3)
    noise = Randomness.of(0, 0, 0).normal((9, 4, 8, 8), CPU)
    exact = teacher.one_step(student, noise, 399, repeated).view_as(x)
    assert x.dtype == torch.float32
    assert torch.allclose(x, exact, atol=0 if precision == "fp32" else 0.1)


def test_without_a_coverage_weight_there_is_no_coverage_loss(
    teacher: SdxlTeacher, samples: Samples, tiny_sdxl: Path, tmp_path: Path
) -> None:
    recipe = tiny_recipe(tmp_path, tiny_sdxl, "drift.coverage_weight=0")
    _, figures = step(teacher, make_student(teacher), samples, recipe)
    assert not any(name.startswith("cover") for name in figures)
    assert "drift/mid_block" in figures


def test_randomness_is_a_function_of_seed_step_and_micro_batch() -> None:
    def numbers(*key: int) -> tuple[int, float]:
        randomness = Randomness.of(*key)
        return int(randomness.arrays.integers(2**40)), randomness.normal((1,), CPU).item()

    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert len({numbers(*key) for key in keys}) == 4
    assert numbers(1, 2, 3) == numbers(1, 2, 3)
