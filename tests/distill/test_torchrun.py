"""The real torchrun starts the command; one process that is killed ends the launch; it resumes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from several import write_recipe_of
from tiny_training import different_files

LIMIT_S = 600
ROOT = Path(__file__).parents[2]
LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SETTINGS = ["train.steps=30", "train.checkpoint_steps=4", "train.sample_steps=30"]


def launch(recipe: Path) -> subprocess.Popen[bytes]:
    """torchrun with two processes; what all of them say goes to `said.txt` beside the recipe."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, *LAUNCHER, "-m", "singlepass", "train", str(recipe)]
    with (recipe.parent / "said.txt").open("wb") as out:
        return subprocess.Popen(words, env=environment, stdout=out, stderr=out)


def process_of(launcher: subprocess.Popen[bytes], rank: int) -> int:
    """The number of one of the processes that a launcher began."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    place = f"RANK={rank}".encode()
    found = [c for c in children if place in Path(f"/proc/{c}/environ").read_bytes().split(b"\0")]
    return int(found[0])


def wait_for_lines(path: Path, count: int) -> None:
    end = time.monotonic() + LIMIT_S
    while not (path.is_file() and path.read_bytes().count(b"\n") >= count):
        assert time.monotonic() < end, f"no {count} lines in {path}"
        time.sleep(0.01)


def said(recipe: Path) -> str:
    return (recipe.parent / "said.txt").read_text()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
@pytest.mark.parametrize(("parallel", "rank"), [("ddp", 1), ("fsdp2", 0)])
def test_a_launch_that_lost_a_process_ends_and_the_same_command_resumes_bit_for_bit(
    tiny_sdxl: Path, tmp_path: Path, parallel: str, rank: int
) -> None:
    settings = [*SETTINGS, f"train.parallel={parallel}"]
    whole, killed = (write_recipe_of(tmp_path / n, tiny_sdxl, settings) for n in ("a", "b"))
    assert launch(whole).wait(LIMIT_S) == 0, said(whole)
    assert said(whole).count(f"student: {tmp_path / 'a' / 'run' / 'student'}\n") == 1
    running = launch(killed)
    wait_for_lines(tmp_path / "b" / "run" / "stats.jsonl", 6)
    os.kill(process_of(running, rank), signal.SIGKILL)
    assert running.wait(60) != 0
    assert said(killed).count("distill: another process of this run died") <= 1
    assert f"failed (exitcode: -9) local_rank: {rank}" in said(killed)
    assert launch(killed).wait(LIMIT_S) == 0, said(killed)
    assert "resumed from" in said(killed)
    assert different_files(tmp_path / "a" / "run", tmp_path / "b" / "run") == ["recipe.yaml"]
