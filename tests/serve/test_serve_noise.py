"""Noise against torch's own generator."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.noise import MAX_SEED, draw

SHAPES = [(16,), (4, 8, 8), (3, 7), (17,), (31,), (1, 33), (4, 64, 64), (5, 5, 5)]


def torch_noise(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)).numpy()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", [0, 1, 42, 2**31, 2**32 - 1, 2**32 + 7, 2**63, MAX_SEED])
def test_noise_is_the_noise_that_torch_draws(seed, shape):
    ours, theirs = draw(seed, shape), torch_noise(seed, shape)
    assert ours.dtype == np.float32
    assert ours.shape == shape
    assert np.all(np.abs(ours - theirs) <= 5e-7 * np.maximum(1, np.abs(theirs)))


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, MAX_SEED), count=st.integers(16, 300))
def test_noise_of_any_seed_and_size_is_torchs(seed, count):
    ours, theirs = draw(seed, (count,)), torch_noise(seed, (count,))
    assert np.all(np.abs(ours - theirs) <= 5e-7 * np.maximum(1, np.abs(theirs)))


def test_noise_is_standard_normal():
    values = draw(3, (4, 256, 256))
    assert abs(values.mean()) < 0.01
    assert abs(values.std() - 1) < 0.01


def test_only_the_low_32_bits_of_a_seed_count_as_in_torch():
    assert np.array_equal(draw(5, (4, 8, 8)), draw(5 + 2**32, (4, 8, 8)))
    assert not np.array_equal(draw(5, (4, 8, 8)), draw(6, (4, 8, 8)))


@pytest.mark.parametrize(("seed", "shape"), [(-1, (16,)), (MAX_SEED + 1, (16,)), (0, (15,))])
def test_what_torch_draws_otherwise_is_not_drawn(seed, shape):
    with pytest.raises(AssertionError, match=str(seed) if seed else "15 values"):
        draw(seed, shape)


def test_threads_that_draw_at_the_same_time_do_not_mix():
    seeds = [*range(200)] * 2
    with ThreadPoolExecutor(4) as threads:
        drawn = list(threads.map(lambda seed: draw(seed, (4, 16, 16)), seeds))
    assert all(
        np.array_equal(noise, draw(seed, (4, 16, 16)))
        for seed, noise in zip(seeds, drawn, strict=True)
    )
