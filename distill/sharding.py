"""A student of which each process holds a share: FSDP2, `torch.distributed.fsdp.fully_shard`.

What leaves a run (checkpoints, grids, the student) is whole, and has the form that a run of one
process gives it: a run may go on with another number of processes, shared or not.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

# The lists of blocks in the denoisers of diffusers: an entry is fetched, used and let go at once.
BLOCK_LISTS = ("down_blocks", "up_blocks", "resnets", "attentions", "transformer_blocks")


def shard(student: nn.Module, device: torch.device, count: int) -> None:
    """Divides every parameter over `count` processes, in place."""
    mesh = init_device_mesh(device.type, (count,))
    for block in reversed(blocks(student)):  # inner ones first
        fully_shard(block, mesh=mesh)
    fully_shard(student, mesh=mesh)


def blocks(student: nn.Module) -> list[nn.Module]:
    """The parts that are gathered one at a time, outer before inner."""
    return [
        module
        for name, module in student.named_modules()
        if name.rpartition(".")[0].rpartition(".")[2] in BLOCK_LISTS
    ]


def whole(tensor: Tensor) -> Tensor:
    """A tensor gathered from all processes, which all must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own(tensor: Tensor) -> Tensor:
    """This process's share: the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shared(tensor: Tensor, pattern: Tensor) -> Tensor:
    """A whole tensor as this process holds it, divided as `pattern` is and on its device."""
    tensor = tensor.to(pattern.device)
    if not isinstance(pattern, DTensor):
        return tensor
    return distribute_tensor(tensor, pattern.device_mesh, pattern.placements, src_data_rank=None)


def rejoined(share: Tensor, pattern: Tensor) -> Tensor:
    """This process's share, on any device, as the whole tensor that it is a share of."""
    if not isinstance(pattern, DTensor):
        return share
    return DTensor.from_local(
        share.to(pattern.device),
        pattern.device_mesh,
        pattern.placements,
        shape=pattern.shape,
        stride=pattern.stride(),
    ).full_tensor()


def gathered(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Whole tensors by name, one after the other; held on the CPU where they are kept."""
    if not any(isinstance(tensor, DTensor) for tensor in tensors.values()):
        return dict(tensors)
    found = {}
    for name, tensor in tensors.items():
        full = whole(tensor)
        if keep:
            found[name] = full.cpu()
    return found
