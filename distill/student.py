"""The student: born from the teacher's denoiser, saved as a stock diffusers pipeline.

One step of the saved pipeline in stock diffusers gives the student's picture: what makes it so is
its scheduler, which the teacher's adapter chooses.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from distill.class_names import write_names
from distill.lora import add_lora, merged
from distill.recipe import Lora, Recipe
from distill.teachers.teacher import Teacher


def make_student(teacher: Teacher, lora: Lora | None = None, seed: int = 0) -> nn.Module:
    """A trainable float32 copy of the teacher's denoiser, or one with trainable corrections.

    RecipeError: the corrections do not fit it (see `lora.add_lora`).
    """
    student = copy.deepcopy(teacher.denoiser).requires_grad_(True).train()
    if lora is not None:
        add_lora(student, lora, seed)
    return student


def whole_weights(
    teacher: Teacher, lora: Lora | None, weights: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """A student's weights under the teacher's names, corrections merged into what they correct."""
    if lora is None:
        return weights
    student = make_student(teacher, lora)
    student.load_state_dict(weights, strict=False)
    return merged(student)


def level_of(teacher: Teacher, recipe: Recipe) -> float:
    """The level of the student's input that a recipe asks for. TeacherError: it cannot be."""
    return teacher.level(recipe.student.timestep, recipe.student.sigma)


def load_student(teacher: Teacher, folder: Path) -> nn.Module:
    """The denoiser of a student's directory, in float32, on the teacher's device."""
    kind: type = type(teacher.denoiser)
    denoiser: nn.Module = kind.from_pretrained(  # type: ignore[attr-defined]
        folder / teacher.part, dtype=torch.float32, local_files_only=True
    )
    return denoiser.to(teacher.device).eval().requires_grad_(False)


def save_student(
    teacher: Teacher,
    weights: Mapping[str, Tensor],
    level: float,
    folder: Path,
    class_names: Sequence[str] = (),
) -> None:
    """Writes the whole pipeline to `folder`, replacing what was there only once it is complete.

    `class_names` are written where the teacher has none of its own.
    """
    denoiser = copy.deepcopy(teacher.denoiser)
    denoiser.load_state_dict(weights)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    teacher.student_pipeline(denoiser, level).save_pretrained(partial)
    for config in partial.glob("*/config.json"):
        forget_origin(config)
    for tokenizer in partial.glob("*/tokenizer.json"):
        forget_use(tokenizer)
    write_names(partial, teacher.class_names or class_names)
    give_modes(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def give_modes(pipeline: Path) -> None:
    """Weights become readable by whom the rest is: safetensors writes for the owner alone."""
    for weights in pipeline.rglob("*.safetensors"):
        shutil.copymode(pipeline / "model_index.json", weights)


def forget_origin(config: Path) -> None:
    """Takes out of a saved config where on this machine it was loaded from."""
    plain = json.loads(config.read_text("utf-8"))
    plain.pop("_name_or_path", None)
    config.write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n", "utf-8")


def forget_use(tokenizer: Path) -> None:
    """Takes out of a saved tokenizer how the last text before it was saved was padded and cut."""
    plain = json.loads(tokenizer.read_text("utf-8"))
    plain |= {"truncation": None, "padding": None}
    tokenizer.write_text(json.dumps(plain, indent=2, ensure_ascii=False) + "\n", "utf-8")
