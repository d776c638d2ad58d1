"""One thing changed at a time: the shapes recipe at a short length, several seeds of each variant.

    python benchmarks/ablations.py --recipe examples/shapes/recipe.yaml --folder runs/ablations

Each run is `distill train` and `distill evaluate` in a folder of its own; what is done is not done
again, so it may be stopped at any time. `--table` prints what is there, mean and deviation.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import yaml

# Short enough for many seeds; the figures of the teacher are measured once and copied.
LENGTH = ("train.steps=150", "train.diagnose_steps=50", "train.sample_steps=150")
JUDGED = ("evaluate.captions=360", "evaluate.vague_seeds=16")
FEW = 9  # one caption in so many, for comparing pictures with the teacher's own samples
PICTURES = ("positives.folder={folder}/few", "positives.cache={folder}/few-encoded")
SAMPLES = (
    "positives.source=teacher",
    "positives.prompts={folder}/few/captions.txt",
    "positives.cache={folder}/bank",
    "positives.per_prompt=16",  # there are 15 pictures of a caption
)
VARIANTS = {
    "base": (),
    "latents by position alone": ("drift.layers=[sample/1]",),
    "latents whole alone": ("drift.layers=[sample]",),
    "teacher features alone": ("drift.layers=[down_blocks.1/1, mid_block]",),
    "one layer: down_blocks.1 by position": ("drift.layers=[down_blocks.1/1]",),
    "one layer: mid_block": ("drift.layers=[mid_block]",),
    "three layers, whole maps": ("drift.layers=[down_blocks.1, mid_block, up_blocks.0]",),
    "coverage loss off": ("drift.coverage_weight=0",),
    "radius 0.02 alone": ("drift.radii=[0.02]",),
    "radius 0.05 alone": ("drift.radii=[0.05]",),
    "radius 0.1 alone": ("drift.radii=[0.1]",),
    "radius 0.2 too": ("drift.radii=[0.02, 0.05, 0.1, 0.2]",),
    "sigma 0.02": ("drift.sigma=[0.02, 0.02]",),
    "sigma 0.1": ("drift.sigma=[0.1, 0.1]",),
    "sigma 0.5": ("drift.sigma=[0.5, 0.5]",),
    "32 groups of 2": ("drift.groups=32", "drift.samples=2"),
    "16 groups of 4": ("drift.groups=16", "drift.samples=4"),
    "4 groups of 16": ("drift.groups=4", "drift.samples=16"),
    "pictures of 101 captions": PICTURES,
    "teacher's samples of 101 captions": SAMPLES,
    "features cached, 4 draws": ("drift.cached_draws=4",),
}
STUDENT = "student, 1 step"
FIGURES = ("caption_accuracy", "frechet_distance", "mode_coverage")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="where the runs are kept")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", action="store_true", help="only print what was measured")
    args = parser.parse_args()
    if not args.table:
        prepare(args.recipe, args.folder.resolve())
        for seed in range(args.seeds):
            for name, changes in VARIANTS.items():
                run(args.recipe, args.folder.resolve(), name, changes, seed)
    print(table(args.folder, args.seeds))


def prepare(recipe: Path, folder: Path) -> None:
    """The pictures of some of the captions, as a folder of their own, and those captions."""
    named = yaml.safe_load(recipe.read_text("utf-8"))["positives"]["folder"]
    pictures = (recipe.parent / named).resolve()
    lines = (pictures / "metadata.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    captions = sorted({row["text"] for row in rows})[::FEW]
    few = folder / "few"
    few.mkdir(parents=True, exist_ok=True)
    kept = [row for row in rows if row["text"] in set(captions)]
    for row in kept:
        link = few / row["file_name"]
        link.unlink(missing_ok=True)
        link.symlink_to(pictures / row["file_name"])
    (few / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept), "utf-8")
    (few / "captions.txt").write_text("\n".join(captions) + "\n", "utf-8")


def run(recipe: Path, folder: Path, name: str, changes: tuple[str, ...], seed: int) -> None:
    """One run, unless it is there; the teacher's figures come from the first."""
    own = folder_of(folder, name, seed)
    if figures(own) is not None:
        return
    own.mkdir(parents=True, exist_ok=True)
    first = folder_of(folder, "base", 0)
    shared = first / "evaluate.json"
    if own != first and shared.is_file() and not (own / shared.name).exists():
        shutil.copy2(shared, own / shared.name)
    places = (f"run={own}", f"positives.cache={folder / 'pictures'}", f"train.seed={seed}")
    named = (change.format(folder=folder) for change in changes)
    settings = (*LENGTH, *JUDGED, *places, *named)
    overrides = [part for setting in settings for part in ("--set", setting)]
    for stage in ("train", "evaluate"):
        print(f"{name}, seed {seed}: {stage}", flush=True)
        command = [sys.executable, "-m", "singlepass", stage, str(recipe), *overrides]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(own / "checkpoints")


def folder_of(folder: Path, name: str, seed: int) -> Path:
    """Where a run is kept."""
    words = "".join(c if c.isalnum() or c == "." else "-" for c in name)
    return folder / f"{words}-{seed}"


def figures(own: Path) -> dict[str, float] | None:
    """The student's figures, if they were measured on this very run."""
    path = own / "evaluate.json"
    if not (path.is_file() and (own / "student").is_dir() and not (own / "checkpoints").exists()):
        return None
    measured = json.loads(path.read_text("utf-8"))["generators"][STUDENT]
    return {name: measured[name] for name in FIGURES}


def table(folder: Path, seeds: int) -> str:
    """Markdown: a row a variant, mean ± deviation over its seeds."""
    lines = [
        "| Variant | Seeds | Caption accuracy | Fréchet distance | Modes |",
        "|---|---|---|---|---|",
    ]
    for name in VARIANTS:
        found = [figures(folder_of(folder, name, seed)) for seed in range(seeds)]
        there = [one for one in found if one is not None]
        if there:
            accuracy, frechet, modes = ([one[key] for one in there] for key in FIGURES)
            cells = (percent(accuracy), spread(frechet), percent(modes))
            lines.append(f"| {name} | {len(there)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def percent(values: list[float]) -> str:
    """Mean and deviation of shares, as percentages."""
    return spread([100 * value for value in values], 1) + " %"


def spread(values: list[float], digits: int = 2) -> str:
    """Mean and deviation; the mean alone of one value."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


if __name__ == "__main__":
    main()
