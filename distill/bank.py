"""The bank: samples of the teacher, made once, kept in safetensors shards, resumable.

    BANK/bank.json                what the bank is of: teacher, prompts, steps, guidance
         shard-00000.safetensors  latents [prompts of the shard, per_prompt, c, h, w]

Sample k of prompt i has the noise of seed i * per_prompt + k, so a bank does not depend on how it
was cut into batches, nor on where its making was interrupted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from distill.data import DataError, Report, Samples, read_lines
from distill.recipe import Recipe
from distill.stats import write_whole
from distill.teachers.teacher import Condition, Teacher

FACTS = "bank.json"


def read_prompts(path: Path) -> tuple[str, ...]:
    """Prompts of a text file, one a line, blank lines left out. DataError: missing or empty."""
    if not path.is_file():
        raise DataError(f"positives.prompts: {path} does not exist")
    lines = [line.strip() for line in read_lines(path)]
    prompts = tuple(dict.fromkeys(line for line in lines if line))
    if not prompts:
        raise DataError(f"positives.prompts: {path} is empty, so the prompt bank would be too")
    return prompts


def bank_samples(teacher: Teacher, recipe: Recipe, report: Report) -> Samples:
    """The bank of a recipe, made as far as it is not made yet.

    Raises:
        DataError: no prompts, or the folder holds the bank of another teacher or other prompts.
    """
    assert recipe.positives.prompts is not None
    prompts = read_prompts(recipe.positives.prompts)
    conditions = teacher.encode(prompts)
    folder = recipe.run / "bank"
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, _facts(teacher, recipe, prompts))
    shards = [_shard(teacher, recipe, conditions, folder, part) for part in _parts(recipe, prompts)]
    latents = torch.cat([shard.flatten(0, 1) for shard in shards])
    per_prompt = recipe.positives.per_prompt
    members = torch.split(torch.arange(len(latents)), per_prompt)
    report(f"bank {folder}: {len(prompts)} prompts, {per_prompt} teacher samples each")
    return Samples(prompts, conditions, latents, tuple(members))


def _parts(recipe: Recipe, prompts: tuple[str, ...]) -> Iterator[tuple[int, range]]:
    """Shards of about eight batches: their number, and the prompts in them."""
    width = max(1, 8 * recipe.positives.batch // recipe.positives.per_prompt)
    starts = range(0, len(prompts), width)
    bar = tqdm(starts, desc="teacher samples", unit="shard", disable=None)
    return ((n, range(s, min(s + width, len(prompts)))) for n, s in enumerate(bar))


def _shard(
    teacher: Teacher,
    recipe: Recipe,
    conditions: Condition,
    folder: Path,
    part: tuple[int, range],
) -> Tensor:
    """Reads a shard, or makes and writes it: [prompts, per_prompt, c, h, w]."""
    number, prompts = part
    path = folder / f"shard-{number:05d}.safetensors"
    per_prompt, batch = recipe.positives.per_prompt, recipe.positives.batch
    if path.is_file():
        try:
            kept: Tensor = load_file(path)["latents"]
        except (SafetensorError, KeyError) as error:
            raise DataError(f"bank shard {path} is broken ({error}); delete it") from error
        return kept
    seeds = list(range(prompts.start * per_prompt, prompts.stop * per_prompt))
    made = []
    for start in range(0, len(seeds), batch):
        chunk = seeds[start : start + batch]
        condition = conditions[torch.tensor(chunk) // per_prompt]
        made.append(
            teacher.sample(condition, chunk, recipe.teacher.steps, recipe.teacher.guidance_scale)
        )
    latents = torch.cat(made).cpu()
    latents = latents.view(len(prompts), per_prompt, *latents.shape[1:])
    partial = path.with_suffix(".partial")
    save_file({"latents": latents}, partial)
    partial.replace(path)
    return latents


def _facts(teacher: Teacher, recipe: Recipe, prompts: tuple[str, ...]) -> dict[str, object]:
    return {
        "teacher_sha256": teacher.sampling_digest(),
        "prompts_sha256": hashlib.sha256("\n".join(prompts).encode()).hexdigest(),
        "per_prompt": recipe.positives.per_prompt,
        "batch": recipe.positives.batch,
        "steps": recipe.teacher.steps,
        "guidance_scale": recipe.teacher.guidance_scale,
    }


def _claim(folder: Path, facts: dict[str, object]) -> None:
    """Writes what the bank is of, or holds it against what is written there."""
    path = folder / FACTS
    if not path.is_file():
        write_whole(path, json.dumps(facts, indent=2) + "\n")
        return
    try:
        there = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise DataError(f"bank {folder}: {FACTS} is broken ({error}); delete the bank") from error
    other = [name for name in facts if there.get(name) != facts[name]]
    if other:
        raise DataError(
            f"bank {folder} was made with another {', '.join(other)};"
            " choose another run folder, or delete the bank"
        )
