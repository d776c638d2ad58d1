"""Activations computed again in `backward`: the same features, losses and gradients."""

from pathlib import Path

import pytest
import torch
from tiny_training import CPU, LAYERS, tiny_recipe
from torch import Tensor, nn

from distill.data import Samples
from distill.features import FeatureExtractor
from distill.recipe import RecipeError
from distill.step import Randomness, micro_batch
from distill.student import make_student
from distill.teachers.opening import load_teacher
from distill.train import keep_fewer_activations

INNER = ("down_blocks.1.resnets.0", "down_blocks.1.attentions.0", "mid_block.attentions.0")


def gradient(
    folder: Path, teacher: Path, samples: Samples, layers: tuple[str, ...], fewer: bool
) -> tuple[float, Tensor, int]:
    """Loss and gradient of one micro-batch, and the bytes that its graph holds at the end."""
    recipe, opened = tiny_recipe(folder, teacher), load_teacher(teacher, CPU)
    student, held = make_student(opened), dict[int, int]()
    if fewer:
        keep_fewer_activations(opened.denoiser, student)
    extractor = FeatureExtractor(opened.denoiser, layers, 2)

    def note(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        randomness = Randomness.of(0, 0, 0)
        loss, _ = micro_batch(opened, student, extractor, samples, recipe, randomness)
    loss.backward()  # type: ignore[no-untyped-call]
    found = torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])
    return loss.item(), found, sum(held.values())


@pytest.mark.parametrize("layers", [LAYERS, ("sample", *INNER), (*INNER, "up_blocks.0.resnets.1")])
def test_fewer_activations_give_the_same_loss_and_gradient(
    tiny_sdxl: Path, tmp_path: Path, samples: Samples, layers: tuple[str, ...]
) -> None:
    loss, plain, held = gradient(tmp_path, tiny_sdxl, samples, layers, fewer=False)
    again, fewer, kept = gradient(tmp_path, tiny_sdxl, samples, layers, fewer=True)
    assert again == loss
    assert torch.equal(plain, fewer)
    assert kept < held / 2


def test_a_model_that_cannot_is_named() -> None:
    with pytest.raises(RecipeError, match=r"train\.checkpointing is true, but a Linear cannot"):
        keep_fewer_activations(nn.Linear(2, 2))
