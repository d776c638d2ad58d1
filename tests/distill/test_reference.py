"""Real pictures: statistics files, folders, what is kept of them, and what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_networks import FEATURES, random_pictures, save_pictures, tiny_inception
from tiny_protocol import coco_recipe
from tiny_training import CPU, silent

from distill.data import DataError
from distill.feature_networks import load_inception
from distill.picture_shapes import cleanly_resized, cut_middle, squared
from distill.presets import NEIGHBOUR_IMAGES, preset_of
from distill.recipe import Recipe
from distill.reference import (
    KEPT,
    batches,
    loader_at,
    open_whole,
    picture_files,
    read_statistics,
    readable,
    real_digest,
    reference_of,
)
from distill.tally import Statistics


@pytest.fixture
def recipe(tmp_path: Path, tiny_sdxl: Path) -> Recipe:
    return coco_recipe(tmp_path, tiny_sdxl)


def reference(recipe: Recipe, lines: list[str] | None = None) -> Statistics:
    settings = recipe.evaluate
    assert settings is not None
    inception = load_inception(settings.inception, CPU)
    report = silent if lines is None else lines.append
    return reference_of(recipe, preset_of(settings), inception, report)


@torch.no_grad()
def features(pictures: list[np.ndarray]) -> np.ndarray:
    planes = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    return tiny_inception()(planes, return_features=True).double().numpy()


def test_a_folder_gives_the_moments_of_squares_and_of_middles(recipe: Recipe) -> None:
    found = reference(recipe)
    real = random_pictures(12, 320, 310)
    whole = features([cleanly_resized(squared(p, 512), 299) for p in real])
    patch = features([np.asarray(cut_middle(p, 299), np.float32) for p in real])
    assert found.patch is not None
    for one, rows in ((found.whole, whole), (found.patch, patch)):
        assert np.allclose(one.mean, rows.mean(0), atol=1e-6)
        assert np.allclose(one.covariance, np.cov(rows, rowvar=False), atol=1e-6)
    assert found.rows is not None
    assert np.allclose(np.sort(found.rows.numpy(), 0), np.sort(whole, 0), atol=1e-5)


def test_what_a_folder_gives_is_kept_until_the_folder_changes(recipe: Recipe) -> None:
    first, kept = reference(recipe), recipe.run / KEPT
    stamp = kept.stat().st_mtime_ns
    again = reference(recipe)
    assert kept.stat().st_mtime_ns == stamp
    assert np.array_equal(first.whole.covariance, again.whole.covariance)
    assert again.patch is not None
    assert torch.equal(first.rows, again.rows)
    assert recipe.evaluate is not None
    random_pictures(1, 300, 300, seed=9)[0].save(recipe.evaluate.real / "new.png")
    assert len(reference(recipe).rows) == 13


def test_kept_statistics_that_are_broken_are_made_again(recipe: Recipe) -> None:
    first, lines = reference(recipe), list[str]()
    (recipe.run / KEPT).write_bytes(b"PK\x03\x04 cut short")
    assert np.array_equal(reference(recipe, lines).whole.mean, first.whole.mean)
    assert len(lines) == 1
    assert "real-statistics.npz is broken" in lines[0]


def test_a_kept_file_is_a_reference_for_another_run(tmp_path: Path, recipe: Recipe) -> None:
    own = reference(recipe)
    found = read_statistics(recipe.run / KEPT)
    assert np.array_equal(found.mean, own.whole.mean)
    assert np.array_equal(found.covariance, own.whole.covariance)


def test_a_published_file_serves_fid_and_the_folder_the_rest(
    tmp_path: Path, tiny_sdxl: Path
) -> None:
    mu, sigma = np.arange(FEATURES, dtype=np.float32), np.eye(FEATURES)
    pictures = np.zeros((2, 4, 4, 3), np.uint8)  # as ADM's files hold them beside
    np.savez(tmp_path / "published.npz", mu=mu, sigma=sigma, arr_0=pictures)
    both = reference(coco_recipe(tmp_path, tiny_sdxl, reference="published.npz"))
    assert both.whole.mean.tolist() == list(range(FEATURES))
    assert both.whole.mean.dtype == np.float64
    assert both.rows is not None
    alone = reference(coco_recipe(tmp_path, tiny_sdxl, reference="published.npz", real=None))
    assert (alone.patch, alone.rows) == (None, None)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"mu": np.zeros(3)}, "sigma is not a file in the archive"),
        ({"mu": np.zeros(3), "sigma": np.eye(2)}, r"mu is \(3,\) and sigma \(2, 2\)"),
        ({"mu": np.zeros((3, 1)), "sigma": np.eye(3)}, r"mu is \(3, 1\)"),
        ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "mu or sigma is not finite"),
        ({"mu": np.array([{}, 1]), "sigma": np.eye(2)}, "Object arrays cannot be loaded"),
    ],
)
def test_a_file_without_its_statistics_is_refused(
    tmp_path: Path, arrays: dict[str, object], reason: str
) -> None:
    np.savez(tmp_path / "odd.npz", **arrays)
    with pytest.raises(DataError, match=rf"evaluate\.reference: .*odd\.npz must be .*{reason}"):
        read_statistics(tmp_path / "odd.npz")


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04junk", b"\x93NUMPY\x01\x00"])
def test_a_file_that_is_no_npz_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "no.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"evaluate\.reference: .*no\.npz must be an \.npz"):
        read_statistics(tmp_path / "no.npz")
    with pytest.raises(DataError, match="none does not exist"):
        read_statistics(tmp_path / "none")


@pytest.mark.parametrize("real", ["real", None])
def test_statistics_of_another_network_are_refused_before_any_picture_is_looked_at(
    tmp_path: Path, tiny_sdxl: Path, real: str | None
) -> None:
    np.savez(tmp_path / "wide.npz", mu=np.zeros(9), sigma=np.eye(9))
    recipe = coco_recipe(tmp_path, tiny_sdxl, reference="wide.npz", real=real)
    with pytest.raises(DataError, match=r"wide\.npz has 9 features, the network .* 6"):
        reference(recipe)
    assert not (recipe.run / KEPT).exists()


def test_files_are_mixed_the_same_way_each_time_and_names_count(tmp_path: Path) -> None:
    folder = save_pictures(tmp_path / "real", random_pictures(20, 8, 8))
    (folder / "notes.txt").write_text("no picture")
    files = picture_files(folder)
    assert files == picture_files(folder)
    assert len(files) == 20
    assert {p.parent.name for p in files[:8]} == {"even", "odd"}
    before = real_digest(folder)
    files[0].rename(files[0].with_name("other.png"))
    assert real_digest(folder) != before


def test_a_folder_of_too_few_pictures_is_refused(tmp_path: Path) -> None:
    folder = save_pictures(tmp_path / "real", random_pictures(5, 8, 8))
    with pytest.raises(DataError, match=r"evaluate\.real: .*real holds 5 pictures .* at least 6"):
        picture_files(folder)


def test_one_unreadable_picture_in_a_hundred_is_named_and_more_stop(
    tmp_path: Path, recipe: Recipe
) -> None:
    folder = save_pictures(tmp_path / "many", random_pictures(200, 8, 8))
    files, way, lines = picture_files(folder), loader_at(recipe, 8), list[str]()
    files[3].write_bytes(b"no picture")
    files[9].write_bytes(b"")
    assert sum(map(len, batches(readable(files, way, lines.append), 64))) == 198
    assert lines == [f"2 pictures cannot be read: {files[3]}, {files[9]}"]
    files[40].write_bytes(b"")
    with pytest.raises(DataError, match="3 of 200 pictures cannot be read, more than 1 %: "):
        list(readable(files, way, silent))


def test_pictures_of_classes_are_read_as_training_reads_them(
    tmp_path: Path, tiny_sdxl: Path
) -> None:
    changes = {"prompts": None, "clip": None, "classes": 2}
    recipe = coco_recipe(tmp_path, tiny_sdxl, preset="imagenet64", **changes)
    positives = recipe.positives.model_copy(update={"resize": "adm"})
    by_adm = recipe.model_copy(update={"positives": positives})
    lanczos, adm = reference(recipe), reference(by_adm)
    assert not np.allclose(lanczos.whole.mean, adm.whole.mean, atol=1e-6)
    shown = loader_at(by_adm, 64).open(tmp_path / "real" / "even" / "000.png")
    assert shown.size == (64, 64)
    assert lanczos.patch is None


def test_no_more_rows_are_kept_than_can_be_compared(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert NEIGHBOUR_IMAGES == 10_000
    monkeypatch.setattr("distill.tally.NEIGHBOUR_IMAGES", 7)
    assert reference(recipe).rows.shape == (7, FEATURES)


def test_protocol_sizes_are_part_of_what_is_kept(recipe: Recipe) -> None:
    assert recipe.evaluate is not None
    inception = load_inception(recipe.evaluate.inception, CPU)
    whole = reference_of(recipe, preset_of(recipe.evaluate), inception, silent)
    smaller = replace(preset_of(recipe.evaluate), size_px=64)
    other = reference_of(recipe, smaller, inception, silent)
    assert not np.array_equal(whole.whole.mean, other.whole.mean)


def test_a_picture_that_is_none_is_named(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "bad.png").write_bytes(b"\x89PNG cut")
    with pytest.raises(DataError, match=r"picture .*bad\.png cannot be read"):
        open_whole(tmp_path / "bad.png")
    Image.new("L", (4, 4)).save(tmp_path / "grey.png")
    assert open_whole(tmp_path / "grey.png").mode == "RGB"
