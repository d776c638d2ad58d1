"""A shared student, in a group of one process: whole in checkpoints, whole again from them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tiny_training import CPU, draw
from torch.distributed.tensor import DTensor

from distill import checkpoint
from distill.checkpoint import CheckpointError
from distill.processes import Processes, Share, accumulating
from distill.sharding import blocks, own, shard, whole
from distill.state import State
from distill.student import make_student
from distill.teachers.sdxl import SdxlTeacher


@pytest.fixture
def group_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def shared_state(teacher: SdxlTeacher, writes: bool = True) -> State:
    student = make_student(teacher)
    shard(student, CPU, 1)
    return State(student, torch.optim.AdamW(student.parameters()), writes=writes)


def move(state: State, seed: int) -> None:
    for parameter in state.parameters:
        noise = draw(*parameter.shape, seed=seed)
        parameter.grad = DTensor.from_local(noise, parameter.device_mesh, parameter.placements)
    state.optimizer.step()
    state.average(0.5, 10)


@pytest.mark.usefixtures("group_of_one")
def test_a_shared_student_goes_on_from_its_checkpoint_to_the_bit(
    teacher: SdxlTeacher, tmp_path: Path
) -> None:
    state, again = shared_state(teacher), shared_state(teacher)
    assert isinstance(state.parameters[0], DTensor)
    move(state, 1)
    state.save(tmp_path, 1, 2)
    assert again.restore(tmp_path / "step-00000001") == 1
    for one in (state, again):
        move(one, 2)
    for name, value in state.weights().items():
        assert torch.equal(value, again.weights()[name]), name
    groups, _ = checkpoint.load(tmp_path / "step-00000001")
    assert groups["student"].keys() == teacher.denoiser.state_dict().keys()


@pytest.mark.usefixtures("group_of_one")
def test_one_that_does_not_write_keeps_nothing_whole(teacher: SdxlTeacher, tmp_path: Path) -> None:
    state = shared_state(teacher, writes=False)
    move(state, 1)
    state.save(tmp_path, 1, 2)
    assert state.weights() == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("group_of_one")
def test_every_block_is_gathered_by_itself(teacher: SdxlTeacher) -> None:
    student = make_student(teacher)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    shard(student, CPU, 1)
    assert len(blocks(student)) >= 12
    for name, value in student.state_dict().items():
        assert torch.equal(whole(value), before[name])
        assert own(value).shape == before[name].shape


def test_a_checkpoint_of_another_student_is_named(teacher: SdxlTeacher, tmp_path: Path) -> None:
    linear = torch.nn.Linear(2, 2)
    State(linear, torch.optim.AdamW(linear.parameters())).save(tmp_path, 1, 2)
    other = torch.nn.Linear(3, 2)
    with pytest.raises(CheckpointError, match=r"is of another student .*: weight differs; choose"):
        State(other, torch.optim.AdamW(other.parameters())).restore(tmp_path / "step-00000001")


def test_an_average_kept_on_the_cpu_is_the_same_average() -> None:
    linear = torch.nn.Linear(3, 2)
    states = [State(linear, torch.optim.AdamW(linear.parameters()), d) for d in (None, CPU)]
    with torch.no_grad():
        linear.weight.add_(1.0)
    for state in states:
        state.average(0.5, 10)
    assert torch.equal(states[0].ema[0], states[1].ema[0])
    assert states[1].ema[0].device == CPU


@pytest.mark.usefixtures("group_of_one")
def test_means_and_rows_over_processes_are_those_of_all_groups() -> None:
    across = Processes(2, 0).across(Share(4, 1, 3))  # as one of two; the other adds nothing here
    assert across.mean(torch.tensor(6.0)).item() == 3.0
    rows = across.rows(torch.ones(4, 3))  # two windows of each of two groups
    assert rows.sum(dim=1).tolist() == [0, 0, 3, 3, 3, 3, 0, 0]


@pytest.mark.usefixtures("group_of_one")
def test_gradients_are_averaged_at_the_last_micro_batch_only() -> None:
    linear = torch.nn.Linear(2, 1)
    copies = Processes(2, 0).copies(linear)
    with accumulating(copies, last=False):
        assert copies.require_backward_grad_sync is False
    with accumulating(copies, last=True):
        assert copies.require_backward_grad_sync is True
