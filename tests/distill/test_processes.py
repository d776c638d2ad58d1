"""Several real processes train the student that one trains; one that dies stops them all."""

import os
import signal
from pathlib import Path

import pytest
import several
import torch
from several import Body, farthest, run_in, said, saved_weights, write_recipe_of
from tiny_training import different_files, silent, tiny_samples, watched

from distill import processes, run
from distill.losses import ALONE
from distill.processes import LostProcessError, Processes, Share, lost_noticed, one_voice
from distill.recipe import Recipe, read_recipe
from distill.run import distil, pick_device
from distill.stats import whole_lines
from distill.train import TrainingError, lost, lost_said, run_training

SETTINGS = (
    "train={steps: STEPS, learning_rate: 3e-5, warmup_steps: 2, precision: fp32, accumulate: 2,"
    " ema_decay: 0.9, diagnose_steps: 10, sample_steps: 100, checkpoint_steps: 100, trackers: [],"
    " parallel: PARALLEL}"
)


def trained_by(
    count: int,
    folder: Path,
    teacher: Path,
    groups: int,
    steps: int,
    parallel: str = "ddp",
    body: Body = several.train_samples,
) -> Recipe:
    settings = SETTINGS.replace("PARALLEL", parallel).replace("STEPS", str(steps))
    overrides = [f"drift.groups={groups}", settings]
    path = write_recipe_of(folder, teacher, overrides)
    codes = run_in(count, body, path)
    recipe = read_recipe(path)
    assert codes == [0] * count, said(recipe, 0)
    return recipe


def assert_one_student(alone: Recipe, together: Recipe, teacher: Path) -> None:
    """Weights within 1e-5 of each other, though training moved them ten times as far."""
    assert farthest(alone, together) < 1e-5
    one, other = (list(whole_lines(r.run / "stats.jsonl")) for r in (alone, together))
    assert [line.keys() for line in one] == [line.keys() for line in other]
    for a, b in zip(one[:3], other[:3], strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-6)
    before = teacher / "unet" / "diffusion_pytorch_model.safetensors"
    assert before.is_file()
    moved = several.load_weights(before)["conv_in.weight"] - saved_weights(alone)["conv_in.weight"]
    assert moved.abs().max() > 1e-4


def test_two_processes_with_uneven_shares_train_the_student_of_one(
    tiny_sdxl: Path, tmp_path: Path
) -> None:
    alone = trained_by(1, tmp_path / "one", tiny_sdxl, groups=3, steps=6)
    two = trained_by(2, tmp_path / "two", tiny_sdxl, groups=3, steps=6)
    assert_one_student(alone, two, tiny_sdxl)


WAYS = [("ddp", 2), ("fsdp2", 2), ("ddp", 4), ("fsdp2", 4)]


@pytest.mark.slow
@pytest.mark.parametrize(("parallel", "count"), WAYS)
def test_processes_train_the_student_of_one(
    tiny_sdxl: Path, tmp_path: Path, parallel: str, count: int
) -> None:
    alone = trained_by(1, tmp_path / "one", tiny_sdxl, groups=4, steps=20)
    several_ = trained_by(count, tmp_path / "several", tiny_sdxl, 4, 20, parallel)
    assert_one_student(alone, several_, tiny_sdxl)


@pytest.mark.slow
@pytest.mark.parametrize(("parallel", "count"), WAYS)
def test_with_64_bits_nothing_but_their_last_digits_differs(
    tiny_sdxl: Path, tmp_path: Path, parallel: str, count: int
) -> None:
    """So nothing is computed of one process's part alone: only the order of sums differs."""
    body = several.train_in_double
    alone = trained_by(1, tmp_path / "one", tiny_sdxl, groups=4, steps=20, body=body)
    together = trained_by(count, tmp_path / "several", tiny_sdxl, 4, 20, parallel, body)
    assert farthest(alone, together) < 1e-12


def train_and_die(path: Path) -> None:
    """`several.train_samples`, but the second process is killed in its fourth step."""
    recipe, passes = read_recipe(path), list[int]()

    def watch(*_: object) -> None:
        passes.append(1)
        if os.environ["RANK"] == "1" and len(passes) == 19:
            os.kill(os.getpid(), signal.SIGKILL)

    teacher = watched(recipe.teacher.model, watch)
    said_so = lost_said(recipe.run / "checkpoints")
    with said_so, processes.open_processes(cpu=True) as all_of_them:
        run_training(teacher, tiny_samples(teacher), recipe, silent, all_of_them)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_one_that_is_killed_stops_all_and_the_run_resumes_bit_for_bit(
    tiny_sdxl: Path, tmp_path: Path, parallel: str
) -> None:
    paths = [
        write_recipe_of(tmp_path / name, tiny_sdxl, [f"train.parallel={parallel}"])
        for name in ("whole", "killed")
    ]
    whole, killed = (read_recipe(path) for path in paths)
    assert run_in(2, several.train_samples, paths[0]) == [0, 0]
    assert run_in(2, train_and_die, paths[1]) == [1, -signal.SIGKILL]
    assert "TrainingError: another process of this run died or cannot be" in said(killed, 0)
    assert "the same command resumes from step-00000002" in said(killed, 0)
    assert run_in(2, several.train_samples, paths[1]) == [0, 0]
    assert different_files(whole.run, killed.run) == ["recipe.yaml"]


def die_while_others_wait(path: Path) -> None:
    """The stage, but the first process is killed where it alone prepares the samples."""
    if os.environ["RANK"] == "0":
        run.open_samples = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    distil(read_recipe(path))


@pytest.mark.slow
def test_one_that_is_killed_while_others_wait_stops_them_too(
    tiny_sdxl: Path, tmp_path: Path
) -> None:
    path = write_recipe_of(tmp_path, tiny_sdxl, [])
    assert run_in(2, die_while_others_wait, path) == [-signal.SIGKILL, 1]
    text = said(read_recipe(path), 1)
    assert text.count("TrainingError: another process of this run died or cannot be reached") == 1
    assert "the same command resumes from the start" in text


@pytest.mark.slow
def test_the_stage_itself_runs_on_two_processes(tiny_sdxl: Path, tmp_path: Path) -> None:
    path = write_recipe_of(tmp_path, tiny_sdxl, [])
    recipe = read_recipe(path)
    assert run_in(2, several.train_whole, path) == [0, 0], said(recipe, 0)
    assert said(recipe, 0).count(f"bank {recipe.run / 'bank'}") == 1
    assert "bank" not in said(recipe, 1)
    assert (recipe.run / "student" / "model_index.json").is_file()
    lines: list[str] = []
    distil(recipe, lines.append)  # a run of several is finished for one as well
    assert lines == [f"{recipe.run / 'student'} is trained already"]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_shares_are_disjoint_and_cover_and_their_weights_average_to_one(count: int) -> None:
    shares = [Processes(count, rank).share(5) for rank in range(count)]
    assert [n for share in shares for n in range(5)[share.own]] == list(range(5))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    weights = [Processes(count, r).weight(share) for r, share in enumerate(shares)]
    assert sum(weights) / count == pytest.approx(1)


def test_fewer_conditions_than_processes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"drift\.groups is 2, but there are 3 processes: each"):
        Processes(3, 0).share(2)


def test_alone_nothing_is_averaged_and_everything_is_agreed() -> None:
    alone = Processes()
    assert alone.across(Share(4, 0, 4)) is ALONE
    assert alone.agreed("as it is") == "as it is"
    module = torch.nn.Linear(1, 1)
    assert alone.copies(module) is module
    with processes.open_processes(cpu=True) as found:
        assert found is processes.ALONE


def test_what_fails_in_another_than_the_first_is_said_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(processes.time, "sleep", waits.append)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(ValueError, match="no"), one_voice(3.0):
            raise ValueError("no")
    with one_voice():
        pass
    assert waits == [3.0]


def test_a_dead_peer_is_told_from_another_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    closed = "[/a/pair.cc:544] Connection closed by peer [127.0.0.1]:5. This is typically caused"
    with pytest.raises(RuntimeError, match="peer") as alone, lost_noticed():
        raise RuntimeError(closed)
    assert not isinstance(alone.value, LostProcessError)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LostProcessError, match="closed by peer") as error, lost_noticed():
        raise RuntimeError(closed)
    with pytest.raises(RuntimeError, match="size") as other, lost_noticed():
        raise RuntimeError("size mismatch")
    assert not isinstance(other.value, LostProcessError)
    assert str(error.value) == "Connection closed by peer [127.0.0.1]:5"
    with pytest.raises(TrainingError, match=r"^lost in gloo"), lost_noticed():
        raise TrainingError("lost in gloo")
    assert lost(error.value, tmp_path).endswith("the same command resumes from the start")


def test_of_several_processes_each_has_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match=r"train\.device is 'cuda:1', but of several processes"):
        pick_device("cuda:1")
