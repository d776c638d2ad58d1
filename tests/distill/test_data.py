"""Every draw of a step is of samples of its prompts that do not overlap."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_training import draw

from distill import data
from distill.data import Choice, DataError, Samples, choose, gather
from distill.teachers.teacher import Condition, weights_digest


def numbered(sizes: list[int]) -> Samples:
    """A latent of one number, its own, for every sample of prompts of these sizes."""
    total = sum(sizes)
    return Samples(
        tuple(map(str, range(len(sizes)))),
        Condition({"prompt": torch.arange(len(sizes))}),
        torch.arange(total).view(-1, 1, 1, 1),
        torch.split(torch.randperm(total, generator=torch.Generator().manual_seed(total)), sizes),
    )


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(6, 9), min_size=1, max_size=5),
    counts=st.lists(st.integers(1, 2), min_size=1, max_size=3),
    groups=st.integers(1, 7),
    seed=st.integers(0, 2**32),
)
def test_draws_of_any_samples_never_overlap(
    sizes: list[int], counts: list[int], groups: int, seed: int
) -> None:
    samples = numbered(sizes)
    drawn = data.draw(samples, groups, counts, np.random.default_rng(seed))
    picked = torch.cat(drawn.parts, dim=1).flatten(1)
    prompts = drawn.conditions.parts["prompt"]
    assert [part.shape[:2] for part in drawn.parts] == [(groups, count) for count in counts]
    for prompt, row in zip(prompts.tolist(), picked, strict=True):
        assert len(row.unique()) == len(row)
        assert set(row.tolist()) <= set(samples.members[prompt].tolist())
    assert len(prompts.unique()) == min(groups, len(sizes)) or groups > len(sizes)


@settings(max_examples=20, deadline=None)
@given(size=st.integers(2, 30), seed=st.integers(0, 2**32))
def test_a_draw_of_all_covers_every_sample_once(size: int, seed: int) -> None:
    samples = numbered([size])
    drawn = data.draw(samples, 1, (1, size - 1), np.random.default_rng(seed))
    assert sorted(torch.cat(drawn.parts, dim=1).flatten().tolist()) == list(range(size))


def test_over_many_draws_every_sample_has_its_turn_as_often() -> None:
    samples, rng = numbered([8, 8]), np.random.default_rng(0)
    picked = [choose(samples, 1, (2, 1), rng).rows for _ in range(2000)]
    counts = torch.cat([torch.cat(rows, dim=1).flatten() for rows in picked]).bincount()
    assert len(counts) == 16
    expected = 2000 * 3 / 16
    assert (counts - expected).abs().max() < 5 * expected**0.5


def test_what_a_process_reads_of_a_draw_does_not_change_the_draw(samples: Samples) -> None:
    whole = data.draw(samples, 3, (4, 2), np.random.default_rng(3))
    for own in (slice(0, 1), slice(1, 3), slice(3, 3)):
        part = data.draw(samples, 3, (4, 2), np.random.default_rng(3), own)
        assert torch.equal(part.parts[0], whole.parts[0][own])
        assert torch.equal(part.choice.rows[1], whole.choice.rows[1][own])
        assert torch.equal(part.conditions.parts["prompt"], whole.conditions.parts["prompt"][own])


def test_a_choice_says_which_samples_are_read(samples: Samples) -> None:
    choice = Choice(torch.tensor([2, 0]), (torch.tensor([[20], [0]]), torch.tensor([[29], [5]])))
    drawn = gather(samples, choice)
    assert torch.equal(drawn.parts[1][0, 0], samples.latents[torch.tensor(29)])
    assert torch.equal(
        drawn.conditions.parts["pooled"], samples.conditions[choice.prompts].parts["pooled"]
    )
    assert drawn.choice is choice


def test_the_parts_of_a_draw_are_of_one_prompt_and_never_overlap(samples: Samples) -> None:
    row = {latent.numpy().tobytes(): i for i, latent in enumerate(samples.latents[:])}
    seen: set[int] = set()
    for seed in range(20):
        drawn = data.draw(samples, 2, (4, 2, 3), np.random.default_rng(seed))
        assert [part.shape[:2] for part in drawn.parts] == [(2, 4), (2, 2), (2, 3)]
        prompts = []
        for group in range(2):
            picked = [row[x.numpy().tobytes()] for part in drawn.parts for x in part[group]]
            assert len(set(picked)) == 9
            (prompt,) = {index // 10 for index in picked}
            for name, part in drawn.conditions.parts.items():
                assert torch.equal(part[group], samples.conditions.parts[name][prompt])
            prompts.append(prompt)
            seen |= set(picked)
        assert prompts[0] != prompts[1]
    assert len(seen) == 30  # over 20 draws every sample had its turn


def test_a_draw_is_a_function_of_its_generator(samples: Samples) -> None:
    one, again, other = (
        data.draw(samples, 3, (4,), np.random.default_rng(seed)).parts[0] for seed in (1, 1, 2)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_more_groups_than_prompts_repeat_prompts(samples: Samples) -> None:
    drawn = data.draw(samples, 7, (4, 2), np.random.default_rng(0))
    assert drawn.parts[0].shape[:2] == (7, 4)
    assert not torch.equal(drawn.parts[0][:, 0], drawn.parts[0][:, 1])


def test_too_few_samples_of_a_prompt_are_named_with_their_number(samples: Samples) -> None:
    members = (samples.members[0], samples.members[1][:5], samples.members[2])
    few = Samples(samples.prompts, samples.conditions, samples.latents, members)
    few.check_enough(5)
    with pytest.raises(DataError) as error:
        few.check_enough(6)
    assert str(error.value) == (
        "prompt 'blue' has 5 samples; drift.positives + drift.anchors asks for 6 of each prompt"
    )


def test_no_prompt_at_all_is_an_error(samples: Samples) -> None:
    nothing = Samples((), samples.conditions[:0], samples.latents, ())
    with pytest.raises(DataError, match="there is no prompt to learn: the prompt bank is empty"):
        nothing.check_enough(1)


def test_a_digest_of_weights_sees_names_and_every_bit() -> None:
    weights = {"a": draw(2, 3), "b": torch.tensor(1.0)}
    same = weights_digest({"b": torch.tensor(1.0), "a": draw(2, 3).t().contiguous().t()})
    assert weights_digest(weights) == same
    half = {**weights, "a": weights["a"].bfloat16()}
    moved = {**weights, "a": weights["a"].nextafter(torch.tensor(9.0))}
    renamed = {"a": weights["a"], "c": weights["b"]}
    digests = {weights_digest(w) for w in (weights, half, moved, renamed)}
    assert len(digests) == 4
