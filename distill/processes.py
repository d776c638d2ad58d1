"""The processes of a training run: one, or several that `torchrun` or `accelerate launch` began.

A step's groups are divided over the processes, its randomness is not: each process draws the whole
of it and keeps what belongs to its own groups. So a student does not depend on how many processes
train it, but for the order in which numbers are added up.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from accelerate import PartialState  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from distill.losses import ALONE as ALONE_ACROSS
from distill.losses import Across

LONGEST_TURN = timedelta(days=1)  # the first process may make a bank while the others wait
PATIENCE_S = 5.0  # longer than a launcher takes to end all processes after the first has failed
LOST = ("closed by peer", "reset by peer", "Broken pipe", "timed out", "timeout", "gloo", "NCCL")


class LostProcessError(RuntimeError):
    """Another process died, or can no longer be reached; the text is what the library says."""


@dataclass(frozen=True)
class Share:
    """Which of a micro-batch's groups belong to this process: start up to stop, of `groups`."""

    groups: int
    start: int
    stop: int

    @property
    def own(self) -> slice:
        return slice(self.start, self.stop)

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Processes:
    """How many processes there are, which of them this one is, and what they do together.

    Every method but `share` and `weight` is to be called by all processes, in the same order.
    """

    count: int = 1
    rank: int = 0
    turns: Any = None  # a group whose waits may last as long as a turn

    @property
    def first(self) -> bool:
        """True of the one process that writes files."""
        return self.rank == 0

    def share(self, groups: int) -> Share:
        """This process's part of `groups` conditions; parts differ by at most one.

        ValueError: fewer conditions than processes.
        """
        if groups < self.count:
            raise ValueError(
                f"drift.groups is {groups}, but there are {self.count} processes: each needs at"
                " least one condition"
            )
        return Share(
            groups, groups * self.rank // self.count, groups * (self.rank + 1) // self.count
        )

    def weight(self, share: Share) -> float:
        """What a mean over this share counts for in a mean over processes: 1 if shares are even."""
        return len(share) * self.count / share.groups

    def across(self, share: Share) -> Across:
        """Means and rows over the groups of all processes, for the loss."""
        if self.count == 1:
            return ALONE_ACROSS

        def mean(x: Tensor) -> Tensor:
            total = x.detach() * (len(share) / share.groups)
            dist.all_reduce(total)
            return total

        def rows(x: Tensor) -> Tensor:
            each = len(x) // len(share)  # windows make several groups of one
            total = x.new_zeros(share.groups * each, *x.shape[1:])
            total[share.start * each : share.stop * each] = x
            dist.all_reduce(total)  # adds zeros: exact, and parts may be uneven
            return total

        return Across(mean, rows)

    def copies(self, student: nn.Module) -> nn.Module:
        """The student with a copy in each process, whose gradients are averaged in `backward`.

        Buckets are never rebuilt, so that a resumed run adds gradients up in the same order.
        """
        if self.count == 1:
            return student
        return DistributedDataParallel(
            student,
            find_unused_parameters=True,
            gradient_as_bucket_view=True,
        )

    def agreed(self, value: Any) -> Any:
        """What the first process says."""
        if self.count == 1:
            return value
        told = [value]
        dist.broadcast_object_list(told, src=0, group=self.turns)
        return told[0]

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first process goes through the body, and only then the others do."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            dist.barrier(group=self.turns)


ALONE = Processes()


@contextmanager
def open_processes(cpu: bool) -> Iterator[Processes]:
    """All processes of this launch, connected; alone where none launched it.

    Connected by NCCL on GPUs, of which each process takes its own, and by gloo on CPUs.
    """
    if not launched():
        yield ALONE
        return
    state = PartialState(cpu=cpu)
    turns = dist.new_group(backend="gloo", timeout=LONGEST_TURN)
    yield Processes(state.num_processes, state.process_index, turns)
    state.destroy_process_group()


def launched() -> bool:
    """True in a process that is one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def local_index() -> int:
    """The number of this process on its machine, and so of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def one_voice(patience_s: float = PATIENCE_S) -> Iterator[None]:
    """What fails in every process is said once: all but the first wait before they fail.

    Once the first has failed the launcher ends the others; one that fails alone is heard later.
    """
    whole = not launched() or os.environ.get("RANK") == "0"
    try:
        yield
        whole = True
    finally:
        if not whole:
            time.sleep(patience_s)


@contextmanager
def lost_noticed() -> Iterator[None]:
    """Turns what the communication libraries say of a dead peer into LostProcessError."""
    try:
        yield
    except RuntimeError as error:
        if not is_lost(error):
            raise
        raise LostProcessError(cause(str(error))) from error


def cause(text: str) -> str:
    """What a library says of a dead peer, without its file names before and its advice after."""
    line = re.sub(r"\[/?\w[^]]*\.(cc|cpp):\d+\]\s*", "", text.strip().splitlines()[0])
    return line.split(". ")[0]


def is_lost(error: RuntimeError) -> bool:
    """True where an error of a collective operation says that a peer is gone."""
    if isinstance(error, dist.DistError):
        return True
    ours = type(error) is not RuntimeError  # a sentence of our own may name such a word
    return launched() and not ours and any(word in str(error) for word in LOST)


def accumulating(student: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Around a micro-batch: gradients are averaged over processes at a step's last one only."""
    if isinstance(student, DistributedDataParallel) and not last:
        hold: Callable[[], AbstractContextManager[None]] = student.no_sync
        return hold()
    return nullcontext()
