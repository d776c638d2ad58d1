"""The bank: samples of the teacher, made once, kept in safetensors shards, resumable.

    BANK/bank.json                what the bank is of: teacher, prompts, steps, guidance
         shard-00000.safetensors  latents [prompts of the shard, per_prompt, c, h, w]
         conditions/              of the same prompts, likewise

Sample k of prompt i has the noise of seed i * per_prompt + k, and batches begin anew with every
shard: so a bank does not depend on how many processes made it, nor on where one was interrupted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from distill.conditions import make_conditions, open_conditions, prompts_digest
from distill.data import ConditionRows, DataError, Report, Samples
from distill.prompts import fitting, read_prompts
from distill.recipe import Recipe
from distill.shards import StoredRows, claim, open_shard, shard_path, write_shard
from distill.teachers.teacher import Condition, Teacher
from distill.turns import EVERY, Turns

FACTS = "bank.json"
BATCHES = 8  # of a shard, about


def bank_samples(teacher: Teacher, recipe: Recipe, report: Report) -> Samples:
    """The bank of a recipe, made as far as it is not made yet.

    Raises:
        DataError: no prompts, one that is too long, or the folder holds the bank of another teacher
            or other prompts.
        TeacherError: a prompt is no class of this teacher.
    """
    prompts = make_bank(teacher, recipe, report)
    folder = bank_folder(recipe)
    shards = range(-(-len(prompts) // width(recipe)))
    parts = [open_shard(shard_path(folder, n))["latents"].flatten(0, 1) for n in shards]
    latents = StoredRows(parts)
    per_prompt = recipe.positives.per_prompt
    members = torch.split(torch.arange(len(latents)), per_prompt)
    if len(members) != len(prompts):
        raise DataError(f"bank {folder} holds {len(latents)} samples of {len(prompts)} prompts")
    report(f"bank {folder}: {len(prompts)} prompts, {per_prompt} teacher samples each")
    return Samples(prompts, conditions_of(folder, prompts, recipe), latents, members)


def make_bank(
    teacher: Teacher, recipe: Recipe, report: Report, turns: Turns = EVERY
) -> tuple[str, ...]:
    """Makes the missing shards whose turn it is; returns all prompts. Raises: `bank_samples`."""
    assert recipe.positives.prompts is not None, "the recipe's validation asks for it"
    texts = read_prompts(recipe.positives.prompts)
    used = fitting(teacher, texts, recipe.positives.long_prompts, report)
    prompts = tuple(dict.fromkeys(used.values()))
    if not teacher.prompted:  # a class that is none is named before a folder is claimed for it
        teacher.encode(prompts)
    folder = bank_folder(recipe)
    facts = bank_facts(teacher, recipe, prompts)
    if other := claim(folder, facts, FACTS):
        raise DataError(
            f"bank {folder} was made with another {', '.join(other)};"
            " choose another run folder, or delete the bank"
        )
    make_conditions(teacher, prompts, folder / "conditions", width(recipe), turns)
    make_shards(teacher, recipe, prompts, turns)
    return prompts


def make_shards(teacher: Teacher, recipe: Recipe, prompts: tuple[str, ...], turns: Turns) -> None:
    """Samples and writes the missing shards whose turn it is, telling pictures/s and time left."""
    folder, step = bank_folder(recipe), width(recipe)
    starts = range(0, len(prompts), step)
    parts = {
        n: range(starts[n], min(starts[n] + step, len(prompts))) for n in turns.of(len(starts))
    }
    missing = {n: part for n, part in parts.items() if not shard_path(folder, n).is_file()}
    if not missing:
        return
    per_prompt = recipe.positives.per_prompt
    total = per_prompt * sum(map(len, parts.values()))
    left = per_prompt * sum(map(len, missing.values()))
    bar = tqdm(total=total, initial=total - left, desc="bank", unit="img", disable=None)
    with bar:
        for number, part in missing.items():
            conditions = conditions_shard(folder, number)
            latents = sample_shard(teacher, recipe, conditions, part, bar)
            write_shard(shard_path(folder, number), {"latents": latents})


def sample_shard(
    teacher: Teacher, recipe: Recipe, conditions: Condition, prompts: range, bar: Any
) -> Tensor:
    """Samples of some prompts and their conditions: [prompts, per_prompt, c, h, w]."""
    per_prompt, batch = recipe.positives.per_prompt, recipe.positives.batch
    seeds = range(prompts.start * per_prompt, prompts.stop * per_prompt)
    made = []
    for start in range(0, len(seeds), batch):
        chunk = list(seeds[start : start + batch])
        condition = conditions[torch.tensor(chunk) // per_prompt - prompts.start]
        steps, guidance = recipe.teacher.steps, recipe.teacher.guidance_scale
        made.append(teacher.sample(condition, chunk, steps, guidance).cpu())
        bar.update(len(chunk))
    latents = torch.cat(made)
    return latents.view(len(prompts), per_prompt, *latents.shape[1:])


def conditions_shard(folder: Path, number: int) -> Condition:
    """The conditions of the prompts of one shard."""
    return Condition(open_shard(shard_path(folder / "conditions", number)))


def conditions_of(folder: Path, prompts: tuple[str, ...], recipe: Recipe) -> ConditionRows:
    """The conditions of all prompts."""
    return open_conditions(folder / "conditions", len(prompts), width(recipe))


def bank_folder(recipe: Recipe) -> Path:
    """Where a recipe's bank lies."""
    return recipe.positives.cache or recipe.run / "bank"


def width(recipe: Recipe) -> int:
    """Prompts of a shard."""
    return max(1, BATCHES * recipe.positives.batch // recipe.positives.per_prompt)


def bank_facts(teacher: Teacher, recipe: Recipe, prompts: tuple[str, ...]) -> dict[str, object]:
    """What a bank is of."""
    return {
        "teacher_sha256": teacher.sampling_digest(),
        "prompts_sha256": prompts_digest(prompts),
        "per_prompt": recipe.positives.per_prompt,
        "batch": recipe.positives.batch,
        "steps": recipe.teacher.steps,
        "guidance_scale": recipe.teacher.guidance_scale,
    }
