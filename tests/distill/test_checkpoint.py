"""Checkpoints: bitwise resume, and what happens when they break or the disk is full."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from distill import checkpoint
from distill.checkpoint import CheckpointError

GROUPS = {
    "student": {"weight": torch.arange(6.0).view(2, 3), "half": torch.ones(2).bfloat16()},
    "optimizer": {"0.step": torch.tensor(3.0)},
}


def no_report(message: str) -> None:
    raise AssertionError(f"nothing should be reported: {message}")


def save_steps(folder: Path, *steps: int, keep: int = 2) -> None:
    for step in steps:
        groups = {"student": {"weight": torch.full((3,), float(step))}}
        checkpoint.save(folder, step, groups, {"step": step}, keep=keep)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_loaded_to_the_bit(tmp_path: Path) -> None:
    meta = {"step": 500, "rate": 0.1 + 0.2, "by_rank": {10: "a", 2: "b"}}
    path = checkpoint.save(tmp_path, 500, GROUPS, meta)
    assert names(path) == ["meta.json", "optimizer.safetensors", "student.safetensors"]
    assert path.name == "step-00000500"
    assert checkpoint.latest(tmp_path, no_report) == path
    groups, loaded = checkpoint.load(path)
    assert loaded == {"step": 500, "rate": 0.1 + 0.2, "by_rank": {"10": "a", "2": "b"}}
    assert list(groups) == list(GROUPS)
    for group, tensors in GROUPS.items():
        assert groups[group].keys() == tensors.keys()
        assert all(torch.equal(groups[group][name], t) for name, t in tensors.items())
        assert all(groups[group][name].dtype == t.dtype for name, t in tensors.items())


def test_views_and_graphs_are_saved_as_plain_values(tmp_path: Path) -> None:
    weight = torch.arange(6.0).view(2, 3).requires_grad_()
    path = checkpoint.save(tmp_path, 1, {"student": {"t": weight.t(), "empty": torch.ones(0)}}, {})
    groups, _ = checkpoint.load(path)
    assert torch.equal(groups["student"]["t"], weight.detach().t())
    assert groups["student"]["empty"].shape == (0,)


def test_only_the_last_two_are_kept(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2, 3)
    assert names(tmp_path) == ["step-00000002", "step-00000003"]
    save_steps(tmp_path, 4, keep=1)
    assert names(tmp_path) == ["step-00000004"]


def test_a_later_step_of_an_abandoned_future_does_not_push_out_the_new_one(tmp_path: Path) -> None:
    save_steps(tmp_path, 100, 300)
    save_steps(tmp_path, 200, keep=1)
    assert names(tmp_path) == ["step-00000200", "step-00000300"]


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save_steps(tmp_path, 7)
    checkpoint.save(tmp_path, 7, GROUPS, {"again": True})
    assert names(tmp_path) == ["step-00000007"]
    assert checkpoint.load(tmp_path / "step-00000007")[1] == {"again": True}


def test_there_is_no_latest_in_an_empty_or_missing_folder(tmp_path: Path) -> None:
    (tmp_path / "step-notes").mkdir()
    assert checkpoint.latest(tmp_path, no_report) is None
    assert checkpoint.latest(tmp_path / "missing", no_report) is None


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def change_meta(path: Path) -> None:
    record = json.loads(path.read_text())
    record["meta"]["step"] = 9
    path.write_text(json.dumps(record))


BREAKS: list[tuple[str, Callable[[Path], None], str]] = [
    ("student.safetensors", Path.unlink, "No such file"),
    ("student.safetensors", truncate, "student.safetensors has 83 bytes, not 84"),
    ("student.safetensors", flip_last_byte, "student.safetensors has another sha256"),
    ("meta.json", Path.unlink, "meta.json cannot be read"),
    ("meta.json", lambda path: path.write_text("{"), "meta.json cannot be read"),
    ("meta.json", lambda path: path.write_text("[1]"), "meta.json cannot be read"),
    ("meta.json", change_meta, "meta.json has another sha256"),
]


@pytest.mark.parametrize(("name", "damage", "cause"), BREAKS)
def test_a_broken_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, name: str, damage: Callable[[Path], None], cause: str
) -> None:
    save_steps(tmp_path, 1, 2)
    damage(tmp_path / "step-00000002" / name)
    reports: list[str] = []
    assert checkpoint.latest(tmp_path, reports.append) == tmp_path / "step-00000001"
    assert len(reports) == 1
    assert "step-00000002 is broken" in reports[0]
    assert cause in reports[0]
    with pytest.raises(CheckpointError, match="step-00000002 is broken"):
        checkpoint.load(tmp_path / "step-00000002")


def test_none_whole_is_none_with_every_one_named(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2)
    for step in (1, 2):
        truncate(tmp_path / f"step-0000000{step}" / "student.safetensors")
    reports: list[str] = []
    assert checkpoint.latest(tmp_path, reports.append) is None
    assert ["step-00000002" in reports[0], "step-00000001" in reports[1]] == [True, True]


def test_a_file_that_is_not_safetensors_is_named_on_loading(tmp_path: Path) -> None:
    def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
        path.write_bytes(b"not a tensor file")

    path = checkpoint.save(tmp_path, 1, GROUPS, {}, write=write)
    with pytest.raises(CheckpointError, match=r"step-00000001 is broken: .*header"):
        checkpoint.load(path)


def test_a_full_disk_leaves_the_old_one_whole_and_nothing_of_the_new(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)

    def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
        path.write_bytes(b"half a fi")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(CheckpointError, match=r"step-00000002 could not be written .*No space"):
        checkpoint.save(tmp_path, 2, GROUPS, {}, write=write)
    assert names(tmp_path) == ["step-00000001"]
    assert checkpoint.latest(tmp_path, no_report) == tmp_path / "step-00000001"


LIMITED = """
import resource, sys, torch
from pathlib import Path
from distill import checkpoint
folder = Path(sys.argv[1])
checkpoint.save(folder, 1, {"student": {"weight": torch.zeros(10)}}, {})
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    checkpoint.save(folder, 2, {"student": {"weight": torch.zeros(10_000)}}, {})
except checkpoint.CheckpointError as error:
    print(error)
"""

ENDLESS = """
import sys, torch
from pathlib import Path
from distill import checkpoint
for step in range(1, 10_000_000):
    checkpoint.save(Path(sys.argv[1]), step, {"student": {"w": torch.full((200_000,), step)}}, {})
"""


def test_the_real_writer_meets_a_real_limit(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "step-00000002 could not be written" in result.stdout
    assert "File too large" in result.stdout
    assert names(tmp_path) == ["step-00000001"]
    assert checkpoint.latest(tmp_path, no_report) == tmp_path / "step-00000001"


def test_a_kill_in_the_middle_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ENDLESS, str(tmp_path)])
    limit_s = time.monotonic() + 30
    # Caught while a file of the third or a later one is being written.
    while not (tmp_path / "step-00000003").exists() or not list(tmp_path.glob(".step-*")):
        assert time.monotonic() < limit_s, "the child wrote no checkpoint in 30 s"
    process.send_signal(signal.SIGKILL)
    process.wait()
    path = checkpoint.latest(tmp_path, no_report)
    assert path is not None
    groups, _ = checkpoint.load(path)
    assert (groups["student"]["w"] == int(path.name[5:])).all()
    save_steps(tmp_path, 9_000_000, keep=1)
    assert names(tmp_path) == ["step-09000000"]  # what the killed one left is gone


def test_a_rename_that_fails_puts_the_old_one_back(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    with pytest.raises(FileNotFoundError):
        checkpoint.replace_folder(tmp_path / "gone", tmp_path / "step-00000001")
    with pytest.raises(FileNotFoundError):
        checkpoint.replace_folder(tmp_path / "gone", tmp_path / "step-00000002")
    assert names(tmp_path) == ["step-00000001"]
    assert checkpoint.latest(tmp_path, no_report) == tmp_path / "step-00000001"


def test_meta_that_is_not_json_fails_before_the_disk_is_touched(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path / "new", 1, GROUPS, {"path": tmp_path})
    assert not (tmp_path / "new").exists()


def test_keep_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep is 0"):
        checkpoint.save(tmp_path, 1, GROUPS, {}, keep=0)


def new_training() -> tuple[nn.Module, torch.optim.AdamW]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 2))
    slow, fast = list(model[0].parameters()), list(model[2].parameters())
    groups = [{"params": slow, "lr": 1e-3 / 3}, {"params": fast, "betas": (0.8, 0.99)}]
    return model, torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.01)


def train(model: nn.Module, optimizer: torch.optim.AdamW, steps: range) -> None:
    for step in steps:
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def test_a_resumed_training_repeats_bit_for_bit(tmp_path: Path) -> None:
    model, optimizer = new_training()
    train(model, optimizer, range(5))
    tensors, meta = checkpoint.flatten_optimizer(optimizer.state_dict())
    groups = {"student": model.state_dict(), "optimizer": tensors}
    path = checkpoint.save(tmp_path, 5, groups, {"optimizer": meta})
    train(model, optimizer, range(5, 10))

    again, resumed = new_training()
    loaded, loaded_meta = checkpoint.load(path)
    again.load_state_dict(loaded["student"])
    state = checkpoint.unflatten_optimizer(loaded["optimizer"], loaded_meta["optimizer"])
    resumed.load_state_dict(state)
    train(again, resumed, range(5, 10))
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    assert resumed.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


def test_an_optimizer_before_its_first_step_survives(tmp_path: Path) -> None:
    _, optimizer = new_training()
    tensors, meta = checkpoint.flatten_optimizer(optimizer.state_dict())
    path = checkpoint.save(tmp_path, 0, {"optimizer": tensors}, meta)
    loaded, loaded_meta = checkpoint.load(path)
    state = checkpoint.unflatten_optimizer(loaded["optimizer"], loaded_meta)
    assert state == optimizer.state_dict()


def test_numbers_in_the_state_are_kept_and_tensors_in_groups_refused() -> None:
    state = {"state": {0: {"step": 3, "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
    tensors, meta = checkpoint.flatten_optimizer(state)
    assert list(tensors) == ["0.exp_avg"]
    assert checkpoint.unflatten_optimizer(tensors, meta)["state"][0]["step"] == 3
    with pytest.raises(AssertionError, match=r"holds tensors: \['lr'\]"):
        checkpoint.flatten_optimizer({"state": {}, "param_groups": [{"lr": torch.ones(())}]})


def test_an_entry_may_hold_a_mapping_and_one_tensor_may_belong_to_several(tmp_path: Path) -> None:
    levels = torch.linspace(-1, 1, 5)  # as bitsandbytes keeps its state
    entry = {"step": 2, "quant": {"state1": torch.ones(3, dtype=torch.uint8), "levels": levels}}
    given = {"state": {0: entry, 1: {"quant": {"levels": levels}}}, "param_groups": []}
    tensors, meta = checkpoint.flatten_optimizer(given)
    path = checkpoint.save(tmp_path, 2, {"optimizer": tensors}, meta)
    loaded, loaded_meta = checkpoint.load(path)
    state = checkpoint.unflatten_optimizer(loaded["optimizer"], loaded_meta)["state"]
    assert state[0]["step"] == 2
    assert torch.equal(state[0]["quant"]["state1"], entry["quant"]["state1"])
    assert all(torch.equal(state[index]["quant"]["levels"], levels) for index in (0, 1))
