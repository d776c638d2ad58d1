"""What a recipe may ask of training besides: LoRA, 8 bits, compilation, trackers."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import CPU, draw, silent, tiny_recipe

from distill import checkpoint, trackers
from distill.data import Samples
from distill.optimizer import make_optimizer
from distill.recipe import Recipe, RecipeError
from distill.student import load_student, make_student, whole_weights
from distill.teachers.sdxl import SdxlTeacher
from distill.train import run_training

LORA = "student={lora: {rank: 2, alpha: 4, targets: [to_q, to_v]}}"


def trained(teacher: SdxlTeacher, samples: Samples, recipe: Recipe) -> dict[str, torch.Tensor]:
    student = run_training(teacher, samples, recipe, silent)
    (path,) = (student / "unet").glob("*.safetensors")
    weights: dict[str, torch.Tensor] = load_file(path)
    return weights


def test_a_lora_student_is_a_stock_pipeline_of_which_only_the_targets_moved(
    teacher: SdxlTeacher, samples: Samples, tiny_sdxl: Path, tmp_path: Path
) -> None:
    recipe = tiny_recipe(tmp_path, tiny_sdxl, LORA)
    weights, before = trained(teacher, samples, recipe), teacher.denoiser.state_dict()
    assert weights.keys() == before.keys()
    moved = {name for name in weights if not torch.equal(weights[name], before[name])}
    assert moved == {n for n in before if n.endswith(("to_q.weight", "to_v.weight"))}
    groups, _ = checkpoint.load(recipe.run / "checkpoints" / "step-00000006")
    assert all(".lora_" in name for name in (*groups["student"], *groups["ema"]))
    change = weights[min(moved)] - before[min(moved)]
    assert torch.linalg.matrix_rank(change, rtol=1e-3) == 2


def test_merged_corrections_give_what_the_trained_student_gives(
    teacher: SdxlTeacher, samples: Samples, recipe: Recipe, tiny_sdxl: Path, tmp_path: Path
) -> None:
    lora = tiny_recipe(tmp_path, tiny_sdxl, LORA).student.lora
    student = make_student(teacher, lora, seed=3)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                parameter.copy_(draw(*parameter.shape, seed=1))
    plain = make_student(teacher)
    noise, condition = draw(3, 4, 8, 8), samples.conditions
    plain.load_state_dict(dict(whole_weights(teacher, lora, student.state_dict())))
    with torch.no_grad():
        one, other = (teacher.one_step(s, noise, 399, condition) for s in (student, plain))
        untouched = teacher.one_step(teacher.denoiser, noise, 399, condition)
    assert torch.allclose(one, other, atol=1e-4)
    assert not torch.allclose(one, untouched, atol=1e-2)


def test_corrections_begin_at_nothing_and_from_the_seed(
    teacher: SdxlTeacher, tiny_sdxl: Path, tmp_path: Path
) -> None:
    lora = tiny_recipe(tmp_path, tiny_sdxl, LORA).student.lora
    first, same, other = (make_student(teacher, lora, seed).state_dict() for seed in (1, 1, 2))
    name = next(n for n in first if "lora_A" in n)
    assert torch.equal(first[name], same[name])
    assert not torch.equal(first[name], other[name])
    assert all(not v.any() for n, v in first.items() if "lora_B" in n)


def test_a_lora_target_that_no_layer_has_is_named(
    teacher: SdxlTeacher, tiny_sdxl: Path, tmp_path: Path
) -> None:
    lora = tiny_recipe(tmp_path, tiny_sdxl, "student={lora: {rank: 2, targets: [nose]}}")
    with pytest.raises(RecipeError, match=r"student\.lora\.targets is nose: .*not found"):
        make_student(teacher, lora.student.lora)


def test_a_lora_run_resumes_bit_for_bit(
    teacher: SdxlTeacher, samples: Samples, tiny_sdxl: Path, tmp_path: Path
) -> None:
    whole = trained(teacher, samples, tiny_recipe(tmp_path / "whole", tiny_sdxl, LORA))
    for steps in (4, 6):
        overrides = (LORA, f"train.steps={steps}", "train.final_learning_rate=1")
        again = trained(teacher, samples, tiny_recipe(tmp_path / "halves", tiny_sdxl, *overrides))
    straight = tiny_recipe(tmp_path / "straight", tiny_sdxl, LORA, "train.final_learning_rate=1")
    once = trained(teacher, samples, straight)
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert any(not torch.equal(once[name], whole[name]) for name in once)


def test_without_bitsandbytes_there_are_no_8_bits(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    train = recipe.train.model_copy(update={"optimizer": "adamw8bit"})
    with pytest.raises(
        RecipeError, match=r"adamw8bit', which needs bitsandbytes: pip install bitsandbytes"
    ):
        make_optimizer([torch.nn.Parameter(torch.ones(2))], train)


def test_8_bits_are_asked_of_bitsandbytes_with_the_recipes_numbers(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = SimpleNamespace(AdamW8bit=torch.optim.AdamW)
    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(optim=library))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", library)
    train = recipe.train.model_copy(update={"optimizer": "adamw8bit", "weight_decay": 0.3})
    made: Any = make_optimizer([torch.nn.Parameter(torch.ones(2))], train)
    assert made.param_groups[0]["weight_decay"] == 0.3


def test_8_bits_cannot_be_shared(tiny_sdxl: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="adamw8bit cannot share its state: parallel must be"):
        tiny_recipe(tmp_path, tiny_sdxl, "train.optimizer=adamw8bit", "train.parallel=fsdp2")


def test_tensorboard_is_told_the_lines_of_the_statistics(
    teacher: SdxlTeacher, samples: Samples, tiny_sdxl: Path, tmp_path: Path
) -> None:
    board = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    recipe = tiny_recipe(tmp_path, tiny_sdxl, "train.trackers=[tensorboard]", "train.steps=3")
    run_training(teacher, samples, recipe, silent)
    events = board.EventAccumulator(str(recipe.run / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [0, 1, 2]
    assert "floor/mid_block/r0.1" in events.Tags()["scalars"]


def test_trackers_are_those_installed_or_those_asked_for(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_default = recipe.train.model_copy(update={"trackers": None})
    asked = recipe.train.model_copy(update={"trackers": ("wandb",)})
    monkeypatch.setattr(trackers, "installed", lambda name: False)
    assert trackers.wanted(recipe.model_copy(update={"train": by_default})) == []
    with pytest.raises(RecipeError, match=r"train\.trackers names wandb, which is not installed"):
        trackers.wanted(recipe.model_copy(update={"train": asked}))
    monkeypatch.setattr(trackers, "installed", lambda name: True)
    assert trackers.wanted(recipe.model_copy(update={"train": by_default})) == ["tensorboard"]
    assert trackers.wanted(recipe.model_copy(update={"train": asked})) == ("wandb",)
    assert trackers.open_tracker("wandb", recipe, 0).name == "wandb"


@pytest.mark.slow
def test_a_compiled_student_trains_to_the_same_weights(
    teacher: SdxlTeacher, samples: Samples, tiny_sdxl: Path, tmp_path: Path
) -> None:
    short = ("train.steps=2", "train.learning_rate=1e-5")
    plain = trained(teacher, samples, tiny_recipe(tmp_path / "plain", tiny_sdxl, *short))
    recipe = tiny_recipe(tmp_path / "compiled", tiny_sdxl, *short, "train.compile=true")
    compiled = trained(teacher, samples, recipe)
    assert max((plain[n] - compiled[n]).abs().max() for n in plain) < 1e-5
    assert load_student(teacher, recipe.run / "student").training is False


def test_fewer_activations_and_an_average_on_the_cpu_change_no_bit(
    teacher: SdxlTeacher, samples: Samples, recipe: Recipe, tiny_sdxl: Path, tmp_path: Path
) -> None:
    from distill.teachers.opening import load_teacher

    own_teacher = load_teacher(tiny_sdxl, CPU)  # its denoiser is changed
    plain = trained(teacher, samples, recipe)
    sparing = tiny_recipe(
        tmp_path / "sparing", tiny_sdxl, "train.checkpointing=true", "train.ema_device=cpu"
    )
    spared = trained(own_teacher, samples, sparing)
    assert all(torch.equal(plain[name], spared[name]) for name in plain)
