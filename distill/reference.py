"""The real pictures that generated ones are compared with: a statistics file, a folder, or both.

A statistics file is an .npz with `mu` [D] and `sigma` [D, D], as EDM and ADM publish it. It is read
without pickle, and what else it holds is not looked at. It knows neither patches nor single
pictures: patch FID, precision, recall, density and coverage need the folder. What a folder's
pictures give is kept in the run folder, in the same format.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from distill.data import DataError
from distill.feature_networks import Inception, file_digest
from distill.fidelity import NEIGHBOURS_DENSITY, Gaussian
from distill.generators import digest_of
from distill.pictures import open_rgb, read_picture
from distill.presets import NEIGHBOUR_IMAGES, Preset
from distill.recipe import Evaluate, Recipe
from distill.sources import visible
from distill.tally import Statistics, Tally

KEPT = "real-statistics.npz"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MOST_UNREADABLE = 0.01  # share of a folder's pictures that may be skipped
NAMED = 5  # unreadable pictures that a message names
# What numpy raises for a file that is no .npz, or another.
BROKEN = (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile)
Report = Callable[[str], None]


def reference_of(
    recipe: Recipe, preset: Preset, inception: Inception, report: Report
) -> Statistics:
    """What the recipe's `reference` and `real` say of real pictures, together.

    DataError: a file or folder is missing, broken, or of another network.
    """
    settings = recipe.evaluate
    assert settings is not None, "the recipe has no evaluate section"
    published = None
    if settings.reference is not None:
        published = statistics_for(inception, settings.reference, preset)
    own = real_statistics(recipe, settings.real, preset, inception, report)
    if own is None:
        assert published is not None, "the recipe's validation asks for one of them"
        return Statistics(published)
    return own if published is None else Statistics(published, own.patch, own.rows)


def statistics_for(inception: Inception, path: Path, preset: Preset) -> Gaussian:
    """A file's statistics, once a black picture has told how many features the network gives.

    DataError: the file is missing or broken, or of another network. NetworkError: it gives none.
    """
    published, side = read_statistics(path), preset.network_px or preset.size_px
    D = inception(torch.zeros(1, side, side, 3, dtype=torch.uint8)).shape[1]
    if len(published.mean) != D:
        raise DataError(
            f"evaluate.reference: {path} has {len(published.mean)} features, the network of"
            f" evaluate.inception {D}"
        )
    return published


def read_statistics(path: Path) -> Gaussian:
    """Mean and covariance of an .npz. DataError: it is missing, or does not hold them."""
    if not path.is_file():
        raise DataError(f"evaluate.reference: {path} does not exist")
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return gaussian_in(file, "mu", "sigma")
    except BROKEN as error:
        raise DataError(
            f"evaluate.reference: {path} must be an .npz of mu [D] and sigma [D, D]:"
            f" {str(error).partition('. ')[0]}"
        ) from None


def gaussian_in(file: np.lib.npyio.NpzFile, mean: str, covariance: str) -> Gaussian:
    """Two arrays of an .npz as a Gaussian. KeyError, ValueError: they are not there, or no such."""
    mu, sigma = (np.asarray(file[name], np.float64) for name in (mean, covariance))
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise ValueError(f"{mean} is {mu.shape} and {covariance} {sigma.shape}")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ValueError(f"{mean} or {covariance} is not finite")
    return Gaussian(mu, sigma)


def real_statistics(
    recipe: Recipe, folder: Path | None, preset: Preset, inception: Inception, report: Report
) -> Statistics | None:
    """Statistics of all pictures in a folder, kept in the run folder; None where there is none."""
    if folder is None:
        return None
    assert recipe.evaluate is not None, "the recipe has no evaluate section"
    keep, batch = recipe.run / KEPT, recipe.evaluate.batch
    way = opener_of(recipe, preset)
    sizes = (preset.size_px, preset.network_px, preset.patch_px, NEIGHBOUR_IMAGES)
    fingerprint = digest_of(real_digest(folder), inception.sha256, way.name, *sizes)
    found = read_kept(keep, fingerprint, report)
    if found is None:
        found = tallied(picture_files(folder), way, batch, Tally(inception, None, preset), report)
        write_kept(keep, found, fingerprint)
    return found


def tallied(
    paths: Sequence[Path], way: Opener, batch: int, tally: Tally, report: Report
) -> Statistics:
    """Statistics of picture files. DataError: too many of them cannot be read."""
    bar = tqdm(total=len(paths), desc="real pictures", unit="img", disable=None, leave=False)
    with bar:
        for pictures in batches(readable(paths, way, report), batch):
            tally.add(pictures)
            bar.update(len(pictures))
    return tally.statistics()


@dataclass(frozen=True)
class Opener:
    """A way to open a picture file, and what its pictures depend on."""

    name: str
    open: Callable[[Path], Image.Image]  # DataError: it is no picture


def opener_of(recipe: Recipe, preset: Preset) -> Opener:
    """Of classes: as training reads them, at the protocol's size. Of captions: at full size."""
    if preset.classes is None:
        return Opener("whole", open_whole)
    return loader_at(recipe, preset.size_px)


def loader_at(recipe: Recipe, size_px: int) -> Opener:
    """Pictures as training reads them."""
    resize = recipe.positives.resize

    def read(path: Path) -> Image.Image:
        return Image.fromarray(read_picture(path, size_px, resize).permute(1, 2, 0).numpy())

    return Opener(f"{resize} {size_px}", read)


def open_whole(path: Path) -> Image.Image:
    """A picture as RGB, as large as it is. DataError: it is none."""
    return open_rgb(path, path)


def picture_files(folder: Path) -> list[Path]:
    """The pictures under a folder, in an order that mixes sub-folders and is always the same.

    DataError: there are none, or too few to have neighbours.
    """
    paths = visible(folder, SUFFIXES)
    if len(paths) <= NEIGHBOURS_DENSITY:
        raise DataError(
            f"evaluate.real: {folder} holds {len(paths)} pictures ({', '.join(SUFFIXES)}); at least"
            f" {NEIGHBOURS_DENSITY + 1} are needed"
        )
    return [paths[i] for i in np.random.default_rng(0).permutation(len(paths))]


def real_digest(folder: Path) -> str:
    """SHA-256 over the names and sizes of a folder's pictures."""
    lines = [f"{p.relative_to(folder)} {p.stat().st_size}" for p in sorted(picture_files(folder))]
    return digest_of(*lines)


def readable(paths: Sequence[Path], way: Opener, report: Report) -> Iterator[Image.Image]:
    """The pictures as RGB; what cannot be read is left out, counted and named at the end.

    DataError: it is more than one in a hundred.
    """
    broken: list[Path] = []
    for path in paths:
        try:
            picture = way.open(path)
        except DataError:
            broken.append(path)
            if len(broken) > MOST_UNREADABLE * len(paths):
                raise DataError(
                    f"{len(broken)} of {len(paths)} pictures cannot be read, more than 1 %:"
                    f" {', '.join(map(str, broken[:NAMED]))}"
                ) from None
            continue
        yield picture
    if broken:
        report(f"{len(broken)} pictures cannot be read: {', '.join(map(str, broken[:NAMED]))}")


def batches(pictures: Iterator[Image.Image], size: int) -> Iterator[list[Image.Image]]:
    """The pictures in lists of `size`, the last perhaps shorter."""
    batch: list[Image.Image] = []
    for picture in pictures:
        batch.append(picture)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def read_kept(path: Path, fingerprint: str, report: Report) -> Statistics | None:
    """What an earlier call kept under this fingerprint, or None."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            if str(file["fingerprint"]) != fingerprint:
                return None
            patch = gaussian_in(file, "patch_mu", "patch_sigma") if "patch_mu" in file else None
            whole = gaussian_in(file, "mu", "sigma")
            return Statistics(whole, patch, torch.from_numpy(file["rows"]))
    except BROKEN as error:
        report(f"{path} is broken ({error}); it is made again")
        return None


def write_kept(path: Path, found: Statistics, fingerprint: str) -> None:
    """Keeps statistics, whole or not at all; `mu` and `sigma` make the file a reference too."""
    assert found.rows is not None, "statistics of a folder have rows"
    arrays: dict[str, Any] = {"mu": found.whole.mean, "sigma": found.whole.covariance}
    if found.patch is not None:
        arrays |= {"patch_mu": found.patch.mean, "patch_sigma": found.patch.covariance}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(file, fingerprint=np.array(fingerprint), rows=found.rows.numpy(), **arrays)
    partial.replace(path)


def reference_digests(settings: Evaluate) -> dict[str, str | None]:
    """What the reference is, for the protocol: SHA-256 of the file, and of the folder's listing."""
    file, folder = settings.reference, settings.real
    if file is not None and not file.is_file():
        raise DataError(f"evaluate.reference: {file} does not exist")
    return {
        "reference_sha256": None if file is None else file_digest(file),
        "real_sha256": None if folder is None else real_digest(folder),
    }
