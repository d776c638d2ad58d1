"""Trains on several real processes of this machine, connected by gloo.

A server process imports the libraries once and is forked for each of them: a process then begins in
a fraction of a second instead of ten. What a launcher sets in the environment is set here by hand.
"""

import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import silent, tiny_recipe, tiny_samples

from distill.processes import open_processes
from distill.recipe import Recipe, read_recipe
from distill.run import distil, pick_device
from distill.teachers.opening import load_teacher
from distill.train import run_training

LIMIT_S = 240
Body = Callable[[Path], None]


def run_in(count: int, body: Body, recipe: Path) -> list[int]:
    """Calls `body` with a recipe's path in each of `count` processes; returns their exit codes.

    AssertionError: one of them is still there after LIMIT_S.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["several"])
    port = free_port()
    processes = [
        context.Process(target=enter, args=(rank, count, port, body, recipe))
        for rank in range(count)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # else the server finds no module
        for process in processes:
            process.start()
    for process in processes:
        process.join(LIMIT_S)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert None not in codes, f"still running after {LIMIT_S} s: {codes}"
    return codes


def enter(rank: int, count: int, port: int, body: Body, recipe: Path) -> None:
    """One process: its place among the others, then the body; what it says goes to a file."""
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    os.environ.update({name: str(value) for name, value in {**place, **rendezvous}.items()})
    with (recipe.parent / f"said-{rank}.txt").open("w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        try:
            body(recipe)
        except Exception:  # noqa: BLE001
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def said(recipe: Recipe, rank: int) -> str:
    return (recipe.run.parent / f"said-{rank}.txt").read_text()


def train_samples(path: Path) -> None:
    """Trains on the seeded samples of `tiny_training`, without a bank."""
    recipe = read_recipe(path)
    teacher = load_teacher(recipe.teacher.model, pick_device("cpu"))
    with open_processes(cpu=True) as processes:
        run_training(teacher, tiny_samples(teacher), recipe, silent, processes)


def train_in_double(path: Path) -> None:
    """`train_samples` with 64 bits in every number; the process is of no other use afterwards."""
    recipe = read_recipe(path)
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    teacher = load_teacher(recipe.teacher.model, pick_device("cpu"))
    teacher.pipe.to(torch.float64)
    with open_processes(cpu=True) as processes:
        run_training(teacher, tiny_samples(teacher), recipe, silent, processes)


def train_whole(path: Path) -> None:
    """The stage as the command line calls it."""
    distil(read_recipe(path))


def train_traced(path: Path) -> None:
    """`train_whole`; what is compiled is traced, but not made machine code, which takes minutes."""
    whole = torch.nn.Module.compile
    torch.nn.Module.compile = lambda module: whole(module, backend="aot_eager")  # type: ignore[assignment, method-assign, misc]
    distil(read_recipe(path))


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = load_file(path)
    return weights


def saved_weights(recipe: Recipe) -> dict[str, torch.Tensor]:
    student = recipe.run / "student"
    (path,) = (
        p for name in ("unet", "transformer") for p in (student / name).glob("*.safetensors")
    )
    return load_weights(path)


def farthest(one: Recipe, other: Recipe) -> float:
    """The largest difference of any weight of two students."""
    a, b = saved_weights(one), saved_weights(other)
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def write_recipe_of(folder: Path, teacher: Path, overrides: Sequence[str]) -> Path:
    """A tiny recipe with its overrides written into the file."""
    recipe = tiny_recipe(folder, teacher, *overrides)
    (folder / "recipe.yaml").write_text(recipe.resolved(), "utf-8")
    return folder / "recipe.yaml"
