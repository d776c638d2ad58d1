"""Directories as people have them: fp16 alone, both types, in shards, pickles, the hub's links."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from micro import save_micro_sdxl

from export.errors import StudentError
from export.export import export_student
from export.graph.decoder import load_decoder
from export.model.foreign import Source
from export.model.student import load_model
from export.model.weights import variant_of
from export.options import Options

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
SHARDS = {"max_shard_size": "20KB"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_micro_sdxl(tmp_path_factory.mktemp("micro") / "base")


@pytest.fixture(scope="module")
def halves(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `variant="fp16"` downloads a repository: half precision, and no other files of weights."""
    folder = tmp_path_factory.mktemp("halves") / "sdxl-turbo"
    pipe = StableDiffusionXLPipeline.from_pretrained(base, dtype=torch.float16)
    pipe.save_pretrained(folder, variant="fp16")
    return folder


def assert_values(pipeline: Any, base: Path, *, rounded: bool) -> None:
    """Each weight is the base's, rounded to half precision or not."""
    own = StableDiffusionXLPipeline.from_pretrained(base)
    for part in PARTS:
        found = getattr(pipeline, part).state_dict()
        for key, value in getattr(own, part).state_dict().items():
            wanted = value.half().float() if rounded and value.is_floating_point() else value
            assert torch.equal(found[key], wanted), (part, key)


def test_a_directory_of_fp16_files_alone_is_taken(base: Path, halves: Path) -> None:
    assert not (halves / "unet" / "diffusion_pytorch_model.safetensors").exists()
    assert_values(load_model(Source(halves, "turbo")).pipeline, base, rounded=True)
    assert_values(load_model(Source(halves / "unet", "dmd2", halves)).pipeline, base, rounded=True)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_are_read_by_their_index(base: Path, tmp_path: Path, variant: str | None) -> None:
    pipe = StableDiffusionXLPipeline.from_pretrained(base)
    pipe.save_pretrained(tmp_path, variant=variant, **SHARDS)
    index = f"diffusion_pytorch_model.safetensors.index{'.fp16' if variant else ''}.json"
    assert (tmp_path / "unet" / index).is_file()
    assert_values(load_model(Source(tmp_path, "turbo")).pipeline, base, rounded=False)


def test_of_both_types_the_exact_one_is_taken(base: Path, halves: Path, tmp_path: Path) -> None:
    for folder in (base, halves):
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    assert variant_of(tmp_path / "unet") is None
    assert_values(load_model(Source(tmp_path, "turbo")).pipeline, base, rounded=False)


def test_other_weights_are_not_taken_for_a_type(halves: Path, tmp_path: Path) -> None:
    unet = shutil.copytree(halves / "unet", tmp_path / "unet")
    (unet / "diffusion_pytorch_model.fp16.safetensors").rename(
        unet / "diffusion_pytorch_model.non_ema.safetensors"
    )
    assert variant_of(unet) is None
    with pytest.raises(StudentError, match=r"no file named diffusion_pytorch_model\.safetensors"):
        load_model(Source(unet, "dmd2", halves))


def test_a_pickle_alone_is_refused_with_what_to_do(base: Path, tmp_path: Path) -> None:
    pipe = StableDiffusionXLPipeline.from_pretrained(base)
    pipe.unet.save_pretrained(tmp_path / "unet", safe_serialization=False)
    with pytest.raises(StudentError, match=r"a pickle alone, diffusion.*\.bin, .* save_pretrained"):
        load_model(Source(tmp_path / "unet", "dmd2", base))


def test_a_decoder_may_have_fp16_files_alone(base: Path, halves: Path) -> None:
    student = load_decoder(load_model(Source(base, "turbo")), halves / "vae")
    found = student.pipeline.vae.state_dict()
    exact = load_model(Source(base, "turbo")).pipeline.vae.state_dict()
    assert all(torch.equal(found[key], exact[key].half().float()) for key in exact)


def linked(folder: Path, cache: Path) -> Path:
    """The snapshot of a hub's cache: links with the files' names, to blobs without."""
    blobs, snapshot = cache / "blobs", cache / "snapshots" / "0123abcd"
    blobs.mkdir(parents=True)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    for number, file in enumerate(files):
        shutil.copy(file, blobs / f"{number:04x}")
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / f"{number:04x}", link.parent))
    return snapshot


@pytest.mark.slow
def test_the_hubs_snapshot_of_links_is_exported(base: Path, halves: Path, tmp_path: Path) -> None:
    snapshot = linked(halves, tmp_path / "models--stabilityai--sdxl-turbo")
    assert_values(load_model(Source(snapshot, "turbo")).pipeline, base, rounded=True)
    source, options = Source(snapshot, "turbo"), Options(max_batch=2)
    version = export_student(source, tmp_path / "r", "x", options, report=lambda line: None)
    assert (version.folder / "model.onnx").is_file()
