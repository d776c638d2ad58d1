"""Torch's meta device in the place of a GPU: its tensors have no numbers, but are not on the CPU.

What is read back is made up: whole numbers are 0, all else is 1. An operation on tensors of both
devices is what fails on a GPU; it is refused here.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = ("item", "tolist", "numpy", "__float__", "__int__", "__bool__", "__index__")
COPIES = ("copy_", "_to_copy")
INDEXED = ("index", "index_put_")  # which take indices on the CPU too


@contextmanager
def away_from_the_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, `train.device=meta` trains. Autocast is off: it knows no such device."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    with ReadBack(), Apart():
        yield


def is_away(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_meta


def made_up(tensor: Tensor) -> Tensor:
    """A tensor as if it had been copied to the CPU."""
    return torch.full(tensor.shape, int(tensor.dtype != torch.int64), dtype=tensor.dtype)


def leads_to_cpu(*args: object, **kwargs: object) -> bool:
    """Of the arguments of `Tensor.to`."""
    named = [a for a in (*args, kwargs.get("device")) if isinstance(a, (str, torch.device))]
    return bool(named) and torch.device(named[0]).type == "cpu"


class ReadBack(TorchFunctionMode):
    """Reads and copies to the CPU work, as from a GPU."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        first, *others = args or (None,)
        if is_away(first):
            if name in (*READS, "cpu") or (name == "to" and leads_to_cpu(*others, **kwargs)):
                return getattr(made_up(first), name)(*others, **kwargs)
            if name == "nonzero":
                return torch.zeros(1, first.ndim, dtype=torch.int64, device="meta")
        elif isinstance(first, Tensor) and others and is_away(others[0]):
            if name == "copy_":
                return first
            if name == "__getitem__" and others[0].ndim == 0:  # reads the number
                return first[0]
        return func(*args, **kwargs)


class Apart(TorchDispatchMode):
    """Refuses an operation on tensors of both devices; single numbers may be anywhere."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.ndim]
        if name in INDEXED and is_away(args[0]):
            tensors = [args[0]]
        if name not in COPIES and len({x.device for x in tensors}) > 1:
            raise RuntimeError(f"{name} takes tensors of the CPU and of the other device")
        return func(*args, **dict(kwargs or {}))
