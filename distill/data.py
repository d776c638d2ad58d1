"""The samples a student is drawn to: latents grouped by prompt, and how a step draws from them.

Two sources, one shape: captioned pictures encoded by the teacher's VAE (this module), or samples of
the teacher (`bank`). A folder of captioned pictures is Hugging Face's `imagefolder`: pictures and a
`metadata.jsonl` with one object a line, `{"file_name": "a.png", "text": "a red circle"}`. One file
may stand in several lines, with another text each: every text is a group of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from distill.teachers.teacher import Condition, Teacher

Report = Callable[[str], None]
METADATA = "metadata.jsonl"


class DataError(ValueError):
    """Samples that are missing, unreadable or too few; the text names them."""


@dataclass(frozen=True)
class Samples:
    """Latents [M, c, h, w] on the CPU, and which of them belong to each prompt."""

    prompts: tuple[str, ...]
    conditions: Condition  # one per prompt
    latents: Tensor
    members: tuple[Tensor, ...]  # per prompt, indices into latents, int64

    def check_enough(self, needed: int) -> None:
        """DataError unless every prompt has `needed` samples, so that no draw overlaps another."""
        if not self.prompts:
            raise DataError("there is no prompt to learn: the prompt bank is empty")
        for prompt, members in zip(self.prompts, self.members, strict=True):
            if len(members) < needed:
                raise DataError(
                    f"prompt {prompt!r} has {len(members)} samples; drift.positives +"
                    f" drift.anchors asks for {needed} of each prompt"
                )


@dataclass(frozen=True)
class Draw:
    """One micro-batch: the prompts of its groups, and samples of each that do not overlap."""

    conditions: Condition  # [B, ...]
    parts: tuple[Tensor, ...]  # each [B, count, c, h, w]


def draw(
    samples: Samples,
    groups: int,
    counts: Sequence[int],
    rng: np.random.Generator,
    own: slice = slice(None),
) -> Draw:
    """Draws `groups` prompts, different while there are enough, and disjoint samples of each.

    Only the `own` ones of the groups are read; the draw does not depend on which they are.

    A prompt with fewer samples than all counts together gives its last part with repetition
    of its own members; `Samples.check_enough` keeps that from positives and anchors.
    """
    count = len(samples.prompts)
    chosen = rng.choice(count, groups, replace=groups > count)
    total = sum(counts)
    rows = []
    for prompt in chosen:
        members = samples.members[prompt].numpy()
        order = rng.permutation(members)
        rows.append(np.resize(order, total))
    picked = samples.latents[torch.from_numpy(np.stack(rows[own]))]  # [B, total, c, h, w]
    return Draw(
        samples.conditions[torch.from_numpy(chosen[own])], torch.split(picked, list(counts), dim=1)
    )


def read_captions(folder: Path) -> dict[str, list[str]]:
    """File names by text, both in the order of `metadata.jsonl`. DataError names the bad line."""
    path = folder / METADATA
    if not path.is_file():
        raise DataError(f"positives.folder: {path} does not exist")
    by_text: dict[str, dict[str, None]] = {}  # a dict, so that a repeated line counts once
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            by_text.setdefault(str(entry["text"]), {})[str(entry["file_name"])] = None
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f"{path}, line {number}: not an object with file_name and text: {line[:80]}"
            ) from None
    if not by_text:
        raise DataError(f"{path} is empty: there is no prompt to learn")
    return {text: list(names) for text, names in by_text.items()}


def read_lines(path: Path) -> list[str]:
    """The lines of a text file. DataError: it is not UTF-8."""
    try:
        return path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error}") from error


def image_samples(
    teacher: Teacher, folder: Path, batch: int, cache: Path, report: Report
) -> Samples:
    """Captioned pictures as samples; their latents are kept in `cache` for the next time."""
    by_text = read_captions(folder)
    names = sorted({name for group in by_text.values() for name in group})
    index = {name: position for position, name in enumerate(names)}
    fingerprint = _fingerprint(teacher, folder / METADATA, names)
    latents = read_cache(cache, fingerprint, report)
    if latents is None:
        report(f"encoding {len(names)} pictures of {folder}")
        latents = _encode(teacher, folder, names, batch)
        write_cache(cache, latents, fingerprint)
    prompts = tuple(by_text)
    members = tuple(torch.tensor([index[name] for name in by_text[text]]) for text in prompts)
    return Samples(prompts, teacher.encode(prompts), latents, members)


def _encode(teacher: Teacher, folder: Path, names: Sequence[str], batch: int) -> Tensor:
    parts = []
    for start in range(0, len(names), batch):
        pictures = [
            read_picture(folder / name, teacher.size_px) for name in names[start : start + batch]
        ]
        parts.append(teacher.encode_pictures(torch.stack(pictures)).cpu())
    return torch.cat(parts)


def read_picture(path: Path, size_px: int) -> Tensor:
    """A picture as [3, size_px, size_px] float32 in [-1, 1], cut to a square and resized.

    Raises:
        DataError: it is missing or is no picture.
    """
    try:
        with Image.open(path) as image:
            rgb = image.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"picture {path} cannot be read: {error}") from error
    side = min(rgb.size)
    left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
    if rgb.size != (size_px, size_px):
        box = (left, top, left + side, top + side)
        rgb = rgb.resize((size_px, size_px), Image.Resampling.LANCZOS, box=box)
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1).float().div(127.5).sub(1)


def read_cache(path: Path, fingerprint: str, report: Report) -> Tensor | None:
    """Latents kept under this fingerprint, or None; a broken file is named to `report`."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("fingerprint") != fingerprint:
                return None
            latents: Tensor = file.get_tensor("latents")
            return latents
    except SafetensorError as error:
        report(f"{path} is broken ({error}); it is made again")
        return None


def write_cache(path: Path, latents: Tensor, fingerprint: str) -> None:
    """Keeps latents under a fingerprint, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({"latents": latents.contiguous()}, partial, {"fingerprint": fingerprint})
    partial.replace(path)


def _fingerprint(teacher: Teacher, metadata: Path, names: Sequence[str]) -> str:
    digest = hashlib.sha256(metadata.read_bytes())
    digest.update(teacher.picture_digest().encode())
    for name in names:
        path = metadata.parent / name
        stat = path.stat() if path.is_file() else None  # a missing one is named when it is read
        digest.update(f"{name} {stat and (stat.st_size, stat.st_mtime_ns)}\n".encode())
    return digest.hexdigest()
