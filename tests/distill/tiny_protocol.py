"""Recipes of published protocols with tiny networks, captions and real pictures beside them."""

from pathlib import Path

import yaml
from tiny_networks import (
    random_pictures,
    save_network,
    save_pictures,
    save_tiny_clip,
    tiny_inception,
)
from tiny_training import tiny_recipe

from distill.recipe import Recipe

CAPTIONS = ("red", "a red circle", "blue", "a blue", "an area", "green", "a green square", "read")


def coco_recipe(folder: Path, model: Path, **changes: object) -> Recipe:
    """Eight captions, twelve real pictures of 320 x 310 pixels; `changes` are of `evaluate`."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "clip").exists():
        save_network(tiny_inception(), folder / "inception.pt")
        save_tiny_clip(folder / "clip")
        save_pictures(folder / "real", random_pictures(12, 320, 310))
        (folder / "captions.txt").write_text("\n".join(CAPTIONS) + "\n")
    plain: dict[str, object] = {
        "preset": "coco10k",
        "inception": "inception.pt",
        "clip": "clip",
        "real": "real",
        "prompts": "captions.txt",
        "images": 8,
        "batch": 3,
        "seed": 40,
    }
    kept = {key: value for key, value in {**plain, **changes}.items() if value is not None}
    settings = yaml.safe_dump(kept, default_flow_style=True, width=10_000)
    return tiny_recipe(folder, model, f"evaluate={settings}")
