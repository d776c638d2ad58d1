"""Draws the captioned pictures that the recipes learn from: `python draw_pictures.py --out DIR`.

A folder as Hugging Face's `imagefolder` reads it: pictures and `metadata.jsonl`. Every caption has
`--per-caption` pictures; captions of one object share theirs, since a picture of a small red circle
on the left is also one of "a red shape". Seeded: the same command draws the same folder. A folder
that is complete is left alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import world
from PIL import Image


def one_object_captions() -> list[world.Scene]:
    """Every caption of one object: each attribute said or left open, (2+1)(6+1)(3+1)(5+1)."""
    choices = [(None, *kind) for kind in (world.RADII_PX, world.COLOURS, world.SHAPES)]
    return [(world.Object(*c),) for c in product(*choices, (None, *world.POSITIONS_PX))]


def two_object_captions(count: int, rng: np.random.Generator) -> list[world.Scene]:
    """Different captions of two objects, named in either order."""
    found: dict[world.Scene, None] = {}
    while len(found) < count:
        scene = world.random_scene(rng, two=1.0)
        found[scene if rng.random() < 0.5 else scene[::-1]] = None
    return list(found)


def lines(out: Path, per_caption: int, pairs: int, seed: int) -> Iterator[dict[str, str]]:
    """Draws every picture into `out` and yields the lines of its metadata."""
    rng = np.random.default_rng(seed)
    drawn: dict[world.Scene, list[str]] = {}
    for scene in [*world.full_singles(), *two_object_captions(pairs, rng)]:
        drawn[scene] = []
        for _ in range(per_caption):
            name = f"{sum(map(len, drawn.values())):06d}.png"
            Image.fromarray(world.draw(scene, rng)).save(out / name, compress_level=1)
            drawn[scene].append(name)
            if len(scene) == 2:
                yield {"file_name": name, "text": world.caption(scene)}
    for (thing,) in one_object_captions():
        modes = thing.completions()
        if len(modes) == 1:
            names = drawn[modes[0],]
        else:  # the same number of each mode, as near as it goes, in no order
            order = [modes[i] for i in rng.permutation(len(modes))]
            wanted = max(per_caption, min(4 * per_caption, 2 * len(modes)))
            names = [
                drawn[order[i % len(order)],][(i // len(order)) % per_caption]
                for i in range(wanted)
            ]
        for name in names:
            yield {"file_name": name, "text": world.caption((thing,))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--per-caption", type=int, default=24)
    parser.add_argument("--pairs", type=int, default=400, help="captions of two objects")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if (args.out / "metadata.jsonl").is_file():
        print(f"{args.out} is there already")
        return
    partial = args.out.with_name(f".{args.out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    entries = list(lines(partial, args.per_caption, args.pairs, args.seed))
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    (partial / "metadata.jsonl").write_text(text, "utf-8")
    partial.rename(args.out)
    pictures = len({entry["file_name"] for entry in entries})
    captions = len({entry["text"] for entry in entries})
    print(f"{args.out}: {pictures} pictures of {captions} captions")


if __name__ == "__main__":
    main()
