"""The state of a training run, as its checkpoints hold it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from distill import checkpoint


class State:
    """What a checkpoint holds: student, its moving average, and the optimiser."""

    def __init__(
        self, student: nn.Module, ema: list[Tensor], optimizer: torch.optim.Optimizer
    ) -> None:
        self.student, self.ema, self.optimizer = student, ema, optimizer
        self.names = [name for name, _ in student.named_parameters()]

    @torch.no_grad()
    def average(self, decay: float, step: int) -> None:
        """Moves the average; early on it forgets faster, so that it never holds the start."""
        decay = min(decay, (step + 1) / (step + 10))
        update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        update(self.ema, [p.detach() for p in self.student.parameters()], None)

    def weights(self) -> dict[str, Tensor]:
        """The averaged weights by name, with the student's buffers."""
        averaged = dict(zip(self.names, self.ema, strict=True))
        return {**self.student.state_dict(), **averaged}

    def save(self, folder: Path, step: int, keep: int) -> None:
        tensors, numbers = checkpoint.flatten_optimizer(self.optimizer.state_dict())
        groups: Mapping[str, Mapping[str, Tensor]] = {
            "student": self.student.state_dict(),
            "ema": dict(zip(self.names, self.ema, strict=True)),
            "optimizer": tensors,
        }
        checkpoint.save(folder, step, groups, {"step": step, "optimizer": numbers}, keep)

    def restore(self, path: Path) -> int:
        """Puts a checkpoint back; returns the number of steps done."""
        groups, meta = checkpoint.load(path)
        self.student.load_state_dict(groups["student"])
        for name, value in zip(self.names, self.ema, strict=True):
            value.copy_(groups["ema"][name])
        self.optimizer.load_state_dict(
            checkpoint.unflatten_optimizer(groups["optimizer"], meta["optimizer"])
        )
        return int(meta["step"])
