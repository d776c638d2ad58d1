"""AdamW, with its state in 32 or in 8 bits."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import torch
from torch import nn

from distill.recipe import RecipeError, Train


def make_optimizer(parameters: Sequence[nn.Parameter], train: Train) -> torch.optim.Optimizer:
    """AdamW of a recipe; its learning rate is set step by step.

    Raises:
        RecipeError: the optimiser's library is not installed.
    """
    kind = kind_of(train)
    return kind(parameters, lr=0.0, betas=train.betas, weight_decay=train.weight_decay)


def kind_of(train: Train) -> type[torch.optim.AdamW]:
    """The optimiser that a recipe asks for. RecipeError: see `make_optimizer`."""
    return torch.optim.AdamW if train.optimizer == "adamw" else eight_bit()


def eight_bit() -> type[torch.optim.AdamW]:
    """AdamW of bitsandbytes (arXiv 2110.02861), which takes the same arguments."""
    try:
        library = importlib.import_module("bitsandbytes.optim")
    except ImportError as error:
        raise RecipeError(
            "train.optimizer is 'adamw8bit', which needs bitsandbytes: pip install bitsandbytes"
            f" ({error})"
        ) from None
    kind: type[torch.optim.AdamW] = library.AdamW8bit
    return kind
