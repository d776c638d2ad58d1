"""The moving average of the student's weights, and its place in a checkpoint."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import Trained, draw
from torch import nn

from distill import checkpoint
from distill.state import State


def new_state() -> State:
    student = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    return State(student, torch.optim.AdamW(student.parameters()))


def move(state: State, seed: int) -> None:
    """One optimiser step on a loss of random data."""
    state.optimizer.zero_grad()
    loss = state.student(draw(8, 3, seed=seed)).pow(3).mean()
    loss.backward()
    state.optimizer.step()


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.999])
def test_the_average_follows_its_formula(decay: float) -> None:
    state = new_state()
    expected = state.ema[0].clone()
    for step in range(5):
        move(state, step)
        state.average(decay, step)
        kept = min(decay, (step + 1) / (step + 10))
        expected = kept * expected + (1 - kept) * next(state.student.parameters()).detach()
    assert torch.allclose(state.ema[0], expected, atol=1e-7)


def test_no_decay_is_the_student_itself_to_the_bit() -> None:
    state = new_state()
    move(state, 0)
    state.average(0.0, 0)
    for name, parameter in state.student.named_parameters():
        assert torch.equal(state.weights()[name], parameter)


def test_the_weights_are_averages_with_the_students_buffers() -> None:
    state = new_state()
    move(state, 0)
    weights = state.weights()
    assert weights.keys() == state.student.state_dict().keys()
    assert torch.equal(weights["0.weight"], state.ema[0])
    assert not torch.equal(weights["0.weight"], state.student.state_dict()["0.weight"])
    assert torch.equal(weights["1.running_mean"], state.student.state_dict()["1.running_mean"])


def test_a_state_goes_on_from_its_checkpoint_to_the_bit(tmp_path: Path) -> None:
    state, other = new_state(), new_state()
    for step in range(3):
        move(state, step)
        state.average(0.9, step)
    state.save(tmp_path, 3, keep=1)
    path = checkpoint.latest(tmp_path, print)
    assert path is not None
    assert other.restore(path) == 3
    for one in (state, other):
        move(one, 3)
        one.average(0.9, 3)
    for name, value in state.weights().items():
        assert torch.equal(other.weights()[name], value), name
    assert torch.equal(
        state.student.state_dict()["0.weight"], other.student.state_dict()["0.weight"]
    )


def test_the_student_that_is_saved_is_the_average(trained: Trained) -> None:
    groups, meta = checkpoint.load(trained.recipe.run / "checkpoints" / "step-00000006")
    (path,) = (trained.student / "unet").glob("*.safetensors")
    saved = load_file(path)
    assert meta["step"] == 6
    for name, value in groups["ema"].items():
        assert torch.equal(saved[name], value), name
    assert not torch.equal(groups["student"]["conv_in.weight"], saved["conv_in.weight"])
