"""LoRA students (arXiv 2106.09685): the teacher's weights W, and trained corrections W + BA α/r."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distill.recipe import Lora, RecipeError

MARK, BASE = ".lora_", ".base_layer."  # in the names of corrections, and of what they correct


def add_lora(student: nn.Module, lora: Lora, seed: int) -> None:
    """Puts corrections of zero beside the layers that `lora.targets` ends the names of, in place.

    Everything else is frozen. The matrices A are drawn from `seed` alone.

    Raises:
        RecipeError: no layer has such a name, or one of them is of a kind that cannot be corrected.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.rank if lora.alpha is None else lora.alpha,  # type: ignore[arg-type]
        target_modules=list(lora.targets),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(config, student)
        except ValueError as error:
            targets = ", ".join(lora.targets)
            raise RecipeError(
                f"student.lora.targets is {targets}: {first_sentence(error)}"
            ) from None


def merged(student: nn.Module) -> dict[str, Tensor]:
    """The weights with their corrections added, under the teacher's names; merges in place."""
    from peft.tuners.lora import LoraLayer

    for module in student.modules():
        if isinstance(module, LoraLayer):
            module.merge()
    return {
        name.replace(BASE, "."): value
        for name, value in student.state_dict().items()
        if MARK not in name
    }


def first_sentence(error: ValueError) -> str:
    """The first sentence of what a library says."""
    return str(error).strip().splitlines()[0].partition(". ")[0]
