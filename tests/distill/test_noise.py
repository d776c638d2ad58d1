"""The noise schedule against diffusers' own schedulers, and the distribution of noise levels."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from distill.noise import NoiseSchedule, sample_sigma

SDXL = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
KINDS = ("epsilon", "v_prediction", "sample")


@pytest.fixture
def schedule() -> NoiseSchedule:
    return NoiseSchedule(DDPMScheduler(**SDXL).alphas_cumprod)


def pictures(seed: int) -> Tensor:
    return torch.randn(5, 4, 3, 3, generator=torch.Generator().manual_seed(seed))


T = torch.tensor([0, 10, 40, 399, 999])


def test_noise_levels_of_sdxl_are_the_published_ones(schedule: NoiseSchedule) -> None:
    expected = torch.tensor([0.029, 0.1, 0.2, 1.16, 14.6])
    assert torch.allclose(schedule.sigma(T), expected, rtol=0.02)
    assert schedule.signal[399].item() == pytest.approx(0.653, abs=5e-4)
    assert schedule.signal[999].item() == pytest.approx(0.068, abs=5e-4)


def test_every_timestep_is_the_nearest_to_its_own_noise_level(schedule: NoiseSchedule) -> None:
    every = torch.arange(1000)
    assert torch.equal(schedule.timestep(schedule.sigma(every)), every)
    assert schedule.timestep(torch.tensor([[0.1, 0.2], [1e-9, 1e9]])).tolist() == [
        [10, 40],
        [0, 999],
    ]


def test_noising_agrees_with_diffusers(schedule: NoiseSchedule) -> None:
    x0, eps = pictures(0), pictures(1)
    expected = DDPMScheduler(**SDXL).add_noise(x0, eps, T)
    assert torch.allclose(schedule.add_noise(x0, eps, T), expected, atol=1e-6)
    velocity = DDPMScheduler(**SDXL).get_velocity(x0, eps, T)
    assert torch.allclose(schedule.target(x0, eps, T, "v_prediction"), velocity, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_clean_sample_agrees_with_diffusers(schedule: NoiseSchedule, kind: str) -> None:
    x, output = pictures(0), pictures(1)
    ddim = DDIMScheduler(**SDXL, prediction_type=kind, clip_sample=False, set_alpha_to_one=True)
    ddim.set_timesteps(1000)
    clean = schedule.x0_from_prediction(x, output, T, kind)
    for i, t in enumerate(T.tolist()):
        expected = ddim.step(output[i], t, x[i]).pred_original_sample
        assert torch.allclose(clean[i], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_target_leads_back_to_the_clean_sample(schedule: NoiseSchedule, kind: str) -> None:
    x0, eps = pictures(0), pictures(1)
    x = schedule.add_noise(x0, eps, T)
    back = schedule.x0_from_prediction(x, schedule.target(x0, eps, T, kind), T, kind)
    assert torch.allclose(back, x0, atol=1e-5)
    later = T[1:]  # at t = 0 there is too little noise to read it back in six digits
    assert torch.allclose(schedule.eps_from_x0(x, x0, T)[1:], eps[1:], atol=1e-5)
    assert schedule.sigma(later).min() > 0.05


def test_half_precision_goes_in_and_single_comes_out(schedule: NoiseSchedule) -> None:
    x, eps = pictures(0).half(), pictures(1).half()
    clean = schedule.x0_from_eps(x, eps, T)
    assert clean.dtype == torch.float32
    assert torch.equal(clean, schedule.x0_from_eps(x.float(), eps.float(), T))
    assert schedule.x0_from_prediction(x, eps, T, "sample").dtype == torch.float32


def test_unknown_prediction_type_is_refused_by_name(schedule: NoiseSchedule) -> None:
    x = pictures(0)
    with pytest.raises(ValueError, match="'flow' is not one of epsilon, v_prediction, sample"):
        schedule.x0_from_prediction(x, x, T, "flow")
    with pytest.raises(ValueError, match="'flow'"):
        schedule.target(x, x, T, "flow")


@pytest.mark.parametrize("values", [[], [0.5, 0.0], [1.0], [[0.5]]])
def test_impossible_schedules_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        NoiseSchedule(values)


def test_wrong_timesteps_are_a_programmer_error(schedule: NoiseSchedule) -> None:
    with pytest.raises(AssertionError, match="not integers"):
        schedule.sigma(torch.tensor([1.0]))
    with pytest.raises(AssertionError, match="timesteps"):
        schedule.add_noise(pictures(0), pictures(1), torch.tensor([1]))


def test_noise_levels_follow_the_log_normal_where_nothing_is_cut() -> None:
    draws = sample_sigma(torch.Generator().manual_seed(0), 20000, -1.2, 1.2, 1e-9, 1e9).log()
    assert draws.mean().item() == pytest.approx(-1.2, abs=0.03)
    assert draws.std().item() == pytest.approx(1.2, abs=0.03)


def test_noise_levels_are_redrawn_eight_times_before_they_are_clamped() -> None:
    draws = sample_sigma(torch.Generator().manual_seed(0), 50000, low=0.02, high=0.1)
    assert draws.min() >= 0.02
    assert draws.max() <= 0.1
    normal = torch.distributions.Normal(-1.2, 1.2)
    low, high = normal.cdf(torch.tensor([0.02, 0.1]).log()).tolist()
    clamped = (1 - (high - low)) ** 8 * torch.tensor([low, 1 - high])  # after nine draws
    assert (draws == 0.02).float().mean().item() == pytest.approx(clamped[0].item(), abs=2e-3)
    assert (draws == 0.1).float().mean().item() == pytest.approx(clamped[1].item(), abs=8e-3)


def test_a_noise_level_is_the_first_draw_in_range_or_else_the_last_clamped() -> None:
    normal = torch.randn(9, 200, generator=torch.Generator().manual_seed(0))
    sigmas = sample_sigma(torch.Generator().manual_seed(0), 200, 0.0, 1.0, low=0.9, high=1.1)
    for column, sigma in zip(normal.exp().T.tolist(), sigmas.tolist(), strict=True):
        inside = [draw for draw in column if 0.9 <= draw <= 1.1]
        expected = inside[0] if inside else min(max(column[-1], 0.9), 1.1)
        assert sigma == pytest.approx(expected, rel=1e-6)


def test_noise_levels_repeat_with_the_seed_and_a_point_range_is_a_constant() -> None:
    first, again = (sample_sigma(torch.Generator().manual_seed(3), 9) for _ in range(2))
    assert torch.equal(first, again)
    assert len(first.unique()) > 1
    constant = sample_sigma(torch.Generator().manual_seed(3), 9, low=0.1, high=0.1)
    assert torch.equal(constant, torch.full((9,), 0.1))


def test_impossible_ranges_of_noise_are_refused() -> None:
    generator = torch.Generator()
    with pytest.raises(ValueError, match=r"\[0.2, 0.1\]"):
        sample_sigma(generator, 1, low=0.2, high=0.1)
    with pytest.raises(ValueError, match=r"\[0, 0.1\]"):
        sample_sigma(generator, 1, low=0.0, high=0.1)
    with pytest.raises(ValueError, match="sigma std is -1"):
        sample_sigma(generator, 1, std=-1.0)
