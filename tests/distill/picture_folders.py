"""Folders of pictures for tests of data."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def write_pictures(folder: Path, count: int = 5, suffix: str = "png") -> Path:
    """Pictures of noise, by turns "red" and "blue"; the first is also "a picture"."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = []
    for number in range(count):
        name = f"{number}.{suffix}"
        pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
        lines.append({"file_name": name, "text": ("red", "blue")[number % 2]})
    lines.append({"file_name": f"0.{suffix}", "text": "a picture"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n", "utf-8")
    return folder


def write_classes(folder: Path, names: tuple[str, ...], count: int, side_px: int) -> Path:
    """`count` pictures of noise in a folder of each name."""
    rng = np.random.default_rng(1)
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (side_px, side_px, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder
