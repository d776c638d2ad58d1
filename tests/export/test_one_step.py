"""The formula is stock diffusers' single DDIM step; anything else in the config is refused."""

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from tiny import one_step_scheduler

from export.errors import StudentError
from export.one_step import PREDICTION_TYPES, OneStep, clean_latent, read_one_step


def changed(**changes: object) -> DDIMScheduler:
    config = {**one_step_scheduler(999).config, **changes}
    return DDIMScheduler(**{key: value for key, value in config.items() if key[0] != "_"})


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("timestep", [0, 1, 399, 999])
def test_the_formula_is_the_stock_scheduler_step(prediction_type: str, timestep: int) -> None:
    scheduler = one_step_scheduler(timestep, prediction_type)
    x_T, prediction = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    scheduler.set_timesteps(1)
    assert scheduler.timesteps.tolist() == [timestep]
    stock = scheduler.step(prediction, scheduler.timesteps[0], x_T).prev_sample
    ours = clean_latent(x_T, prediction, read_one_step(scheduler))
    torch.testing.assert_close(ours, stock, rtol=1e-6, atol=1e-6)


def test_the_formula_inverts_the_noising_of_a_known_latent() -> None:
    step = read_one_step(one_step_scheduler(999))
    x0, eps = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    noised = step.signal * x0 + step.noise * eps
    torch.testing.assert_close(clean_latent(noised, eps, step), x0, rtol=0, atol=1e-5)
    assert step.signal**2 + step.noise**2 == pytest.approx(1)


def test_the_division_is_done_in_float32_whatever_comes_in() -> None:
    step = OneStep(999, "epsilon", 0.068, 0.998)
    x_T = torch.ones(1, 1, 1, 1, dtype=torch.float16)
    clean = clean_latent(x_T, x_T, step)
    assert clean.dtype == torch.float32
    assert float(clean) == pytest.approx(0.002 / 0.068, rel=1e-4)


def test_another_scheduler_is_refused_by_name() -> None:
    with pytest.raises(StudentError, match="EulerDiscreteScheduler; only DDIMScheduler"):
        read_one_step(EulerDiscreteScheduler())


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


def test_epsilon_without_any_signal_is_refused_but_v_is_not() -> None:
    with pytest.raises(StudentError, match="predicts epsilon at timestep 999"):
        read_one_step(changed(rescale_betas_zero_snr=True))
    velocity = changed(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    assert read_one_step(velocity).signal == 0
