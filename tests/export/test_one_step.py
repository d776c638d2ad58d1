"""The coefficients are what stock schedulers do in one step; anything else is refused."""

from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
)
from tiny import SCHEDULE, one_step_scheduler

from export.errors import StudentError
from export.model.kinds import KINDS, OURS, Recipe
from export.model.one_step import PREDICTION_TYPES, Coefficients, OneStep, clean_latent, model_input
from export.model.scheduler import prescribed, read_one_step

EPSILON_AND_V = ("epsilon", "v_prediction")


def changed(**changes: object) -> DDIMScheduler:
    config = {**one_step_scheduler(999).config, **changes}
    return DDIMScheduler(**{key: value for key, value in config.items() if key[0] != "_"})


def draw(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    z, prediction = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    return z, prediction


def stock_step(scheduler: Any, timesteps: list[int] | None, z: torch.Tensor, F: torch.Tensor):
    """(what the UNet sees, the latent) in the stock pipeline's own order of calls."""
    scheduler.set_timesteps(
        **({"timesteps": timesteps} if timesteps else {"num_inference_steps": 1})
    )
    t = scheduler.timesteps[0]
    x = z * scheduler.init_noise_sigma
    return scheduler.scale_model_input(x, t), scheduler.step(F, t, x).prev_sample, t


def assert_same_step(scheduler: Any, recipe: Recipe) -> None:
    z, F = draw(1)
    step = read_one_step(scheduler, recipe)
    seen, latent, t = stock_step(scheduler, [recipe.timestep] if recipe.timestep else None, z, F)
    assert step.timestep == int(t)
    torch.testing.assert_close(model_input(z, step), seen, rtol=1e-6, atol=1e-6)
    terms = 4 * float(scheduler.alphas_cumprod[step.timestep]) ** -0.5  # they cancel to less
    torch.testing.assert_close(clean_latent(z, F, step), latent, rtol=1e-6, atol=2.4e-7 * terms)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("timestep", [0, 1, 399, 999])
def test_our_formula_is_the_stock_ddim_step(prediction_type: str, timestep: int) -> None:
    assert_same_step(one_step_scheduler(timestep, prediction_type), Recipe(OURS, "DDIMScheduler"))


@pytest.mark.parametrize("prediction_type", EPSILON_AND_V)
def test_the_ancestral_euler_step_of_turbo(prediction_type: str) -> None:
    settings = {"timestep_spacing": "trailing", "prediction_type": prediction_type}
    scheduler = EulerAncestralDiscreteScheduler(**SCHEDULE, **settings)
    assert_same_step(scheduler, KINDS["turbo"])


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("timestep", [None, 250, 999])
def test_the_euler_step(prediction_type: str, spacing: str, timestep: int | None) -> None:
    settings = {"timestep_spacing": spacing, "prediction_type": prediction_type, "steps_offset": 1}
    scheduler = EulerDiscreteScheduler(**SCHEDULE, **settings)
    assert_same_step(scheduler, Recipe("x", "EulerDiscreteScheduler", timestep=timestep))


@pytest.mark.parametrize("kind", [LCMScheduler, TCDScheduler])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("timestep", [None, 3, 399, 800])
def test_the_lcm_and_the_tcd_step(kind: Any, prediction_type: str, timestep: int | None) -> None:
    scheduler = kind(prediction_type=prediction_type)
    assert_same_step(scheduler, Recipe("x", kind.__name__, timestep=timestep))


@pytest.mark.parametrize(
    ("kind", "timestep", "c", "a", "b"),
    [
        ("turbo", 999, 0.99766, 14.6147, -14.6147),
        ("lightning", 999, 0.99766, 0.0, 1.0),
        ("dmd2", 399, 1.0, 1.53197, -1.16058),
        ("hyper", 800, 1.0, 5.20794, -5.11103),
        ("lcm", 999, 1.0, 14.6490, -14.6147),
    ],
)
def test_the_published_models_have_these_coefficients_on_sdxls_schedule(
    kind: str, timestep: int, c: float, a: float, b: float
) -> None:
    recipe = KINDS[kind]
    step = read_one_step(prescribed(recipe, EulerDiscreteScheduler(**SCHEDULE)), recipe)
    assert (step.kind, step.timestep) == (kind, timestep)
    found = step.coefficients
    assert (found.input_scale, found.noise, found.prediction) == pytest.approx((c, a, b), rel=2e-4)


def test_the_formula_inverts_the_noising_of_a_known_latent() -> None:
    step = read_one_step(one_step_scheduler(999))
    x0, eps = draw(2)
    alpha = one_step_scheduler(999).alphas_cumprod[999]
    x_t = alpha.sqrt() * x0 + (1 - alpha).sqrt() * eps
    torch.testing.assert_close(clean_latent(x_t, eps, step), x0, rtol=0, atol=2e-5)


def test_the_formula_is_computed_in_float32_whatever_comes_in() -> None:
    step = OneStep("x", 999, "epsilon", Coefficients(0.5, 14.6, -14.5))
    half = torch.ones(1, 1, 1, 1, dtype=torch.float16)
    clean = clean_latent(half, half, step)
    assert clean.dtype == model_input(half, step).dtype == torch.float32
    assert float(clean) == pytest.approx(0.1, rel=1e-4)


def test_the_facts_of_a_step_are_plain_values() -> None:
    assert read_one_step(one_step_scheduler(399, "sample")).to_json() == {
        "kind": "singlepass",
        "timestep": 399,
        "prediction_type": "sample",
        "coefficients": {"input_scale": 1.0, "noise": 0.0, "prediction": 1.0},
    }


@pytest.mark.parametrize(
    ("scheduler", "sentence"),
    [
        (EulerDiscreteScheduler(), "'linspace' .* it looks like a many-step model; .* --one-step"),
        (LCMScheduler(), "several one-step models share it, at different timesteps"),
        (TCDScheduler(), "several one-step models share it"),
    ],
)
def test_a_scheduler_that_names_no_one_step_model_is_refused(scheduler: Any, sentence: str) -> None:
    with pytest.raises(StudentError, match=sentence):
        read_one_step(scheduler)


def test_turbo_and_lightning_are_recognised_by_their_scheduler() -> None:
    trailing = {**SCHEDULE, "timestep_spacing": "trailing"}
    assert read_one_step(EulerAncestralDiscreteScheduler(**trailing)).kind == "turbo"
    lightning = EulerDiscreteScheduler(**trailing, prediction_type="sample")
    assert read_one_step(lightning).kind == "lightning"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("timestep_spacing", "trailing"),
        ("set_alpha_to_one", False),
        ("clip_sample", True),
        ("thresholding", True),
        ("prediction_type", "flow"),
        ("steps_offset", 1000),
        ("steps_offset", -1),
    ],
)
def test_a_setting_that_is_not_ours_is_refused_with_its_value(key: str, value: object) -> None:
    sentence = f"{key} in the student's scheduler config is {value!r}"
    with pytest.raises(StudentError, match=sentence):
        read_one_step(changed(**{key: value}))


def test_karras_sigmas_are_refused_by_name() -> None:
    scheduler = EulerDiscreteScheduler(
        **SCHEDULE, timestep_spacing="trailing", prediction_type="sample", use_karras_sigmas=True
    )
    with pytest.raises(StudentError, match=r"use_karras_sigmas .* is True; .* needs False"):
        read_one_step(scheduler)


def test_a_timestep_beyond_the_schedule_is_refused() -> None:
    with pytest.raises(StudentError, match=r"the recipe 'mine' is 1000; .* between 0 and 999"):
        read_one_step(LCMScheduler(), Recipe("mine", "LCMScheduler", timestep=1000))


def test_epsilon_without_any_signal_is_refused_but_v_is_not() -> None:
    with pytest.raises(StudentError, match="predicts epsilon at timestep 999"):
        read_one_step(changed(rescale_betas_zero_snr=True))
    velocity = changed(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    assert read_one_step(velocity).coefficients == Coefficients(1.0, 0.0, -1.0)
