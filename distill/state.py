"""The state of a training run, as its checkpoints hold it: only what is trained.

A parameter that is frozen (all but the corrections of a LoRA student) is the teacher's and is not
kept. With several processes every one of them calls every method: what is shared must be gathered.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from distill import checkpoint
from distill.checkpoint import CheckpointError
from distill.sharding import gathered, own, rejoined, shared


class State:
    """What a checkpoint holds: student, its moving average, and the optimiser.

    `writes` is true of the one process that writes; `ema_device` is where the average is kept, by
    default with the student.
    """

    def __init__(
        self,
        student: nn.Module,
        optimizer: torch.optim.Optimizer,
        ema_device: torch.device | None = None,
        writes: bool = True,
    ) -> None:
        self.student, self.optimizer, self.writes = student, optimizer, writes
        trained = {n: p for n, p in student.named_parameters() if p.requires_grad}
        self.names, self.parameters = list(trained), list(trained.values())
        self.frozen = {n for n, p in student.named_parameters() if not p.requires_grad}
        self.ema = [own(p.detach()).to(device=ema_device, copy=True) for p in self.parameters]

    @torch.no_grad()
    def average(self, decay: float, step: int) -> None:
        """Moves the average; early on it forgets faster, so that it never holds the start."""
        decay = min(decay, (step + 1) / (step + 10))
        update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        now = [own(p.detach()) for p in self.parameters]
        if self.ema[0].device == now[0].device:
            update(self.ema, now, None)
            return
        for kept, value in zip(self.ema, now, strict=True):  # one after the other: little memory
            update([kept], [value.to(kept.device)], None)

    def weights(self) -> dict[str, Tensor]:
        """The averaged weights by name, with the student's buffers; of use where one writes."""
        return {**self.held(), **self.averaged()}

    def held(self) -> dict[str, Tensor]:
        """The student's own tensors that a checkpoint holds."""
        found = {n: t for n, t in self.student.state_dict().items() if n not in self.frozen}
        return gathered(found, self.writes)

    def averaged(self) -> dict[str, Tensor]:
        """The moving average by name."""
        found = {}
        for name, kept, parameter in zip(self.names, self.ema, self.parameters, strict=True):
            full = rejoined(kept, parameter)
            if self.writes:
                found[name] = full
        return found

    def save(self, folder: Path, step: int, keep: int) -> None:
        """Writes the checkpoint of `step`; see `checkpoint.save`."""
        tensors, numbers = checkpoint.flatten_optimizer(self.optimizer.state_dict())
        groups: Mapping[str, Mapping[str, Tensor]] = {
            "student": self.held(),
            "ema": self.averaged(),
            "optimizer": gathered(tensors, self.writes),
        }
        if self.writes:
            checkpoint.save(folder, step, groups, {"step": step, "optimizer": numbers}, keep)

    @torch.no_grad()
    def restore(self, path: Path) -> int:
        """Puts a checkpoint back; returns the number of steps done.

        CheckpointError: it cannot be read, or is of another student.
        """
        groups, meta = checkpoint.load(path)
        there = {n: t for n, t in self.student.state_dict().items() if n not in self.frozen}
        check_fit(path, groups["student"], there)
        for name, tensor in there.items():
            own(tensor).copy_(own(shared(groups["student"][name], tensor)))
        for name, kept, parameter in zip(self.names, self.ema, self.parameters, strict=True):
            kept.copy_(own(shared(groups["ema"][name], parameter)))
        state = checkpoint.unflatten_optimizer(groups["optimizer"], meta["optimizer"])
        for index, entry in state["state"].items():
            pattern = self.parameters[index]
            for name, value in entry.items():
                if isinstance(value, Tensor) and value.shape == pattern.shape and name != "step":
                    entry[name] = shared(value, pattern)
        self.optimizer.load_state_dict(state)
        return int(meta["step"])


def check_fit(path: Path, kept: Mapping[str, Tensor], asked: Mapping[str, Tensor]) -> None:
    """CheckpointError unless a checkpoint has the student's tensors, each in its shape."""
    for name in sorted(kept.keys() | asked.keys()):
        if name not in kept or name not in asked or kept[name].shape != asked[name].shape:
            raise CheckpointError(
                f"checkpoint {path} is of another student than the recipe's: {name} differs;"
                " choose another run folder (--set run=...)"
            )
