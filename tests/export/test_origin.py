"""Where a version comes from, and whether it is published yet."""

import hashlib
import shutil
from pathlib import Path

import torch

from export.graph.precision import Precision
from export.model.foreign import Source
from export.options import Options
from export.origin import find_published, origin_of
from export.repository.manifest import sha256_of, student_sha256


def test_a_student_that_lies_in_the_repository_is_found(run, tiny_student: Path) -> None:
    found = find_published(Source(tiny_student), run.repository, "tiny", Options())
    assert found == run.exported.folder


def test_the_newest_version_that_is_whole_is_found(run, tiny_student: Path, tmp_path: Path) -> None:
    repository = shutil.copytree(run.repository, tmp_path / "repository")
    for number in ("2", "10", "11"):
        shutil.copytree(repository / "tiny" / "1", repository / "tiny" / number)
    (repository / "tiny" / "11" / "model.onnx").unlink()
    found = find_published(Source(tiny_student), repository, "tiny", Options())
    assert found == repository / "tiny" / "10"


def test_another_student_option_model_or_place_is_not_found(
    run, tiny_student: Path, tiny_sdxl: Path, tmp_path: Path
) -> None:
    student, half = Source(tiny_student), Precision(unet=torch.float16)
    assert find_published(Source(tiny_sdxl), run.repository, "tiny", Options()) is None
    assert find_published(student, run.repository, "tiny", Options(max_batch=4)) is None
    assert find_published(student, run.repository, "tiny", Options(precision=half)) is None
    assert find_published(student, run.repository, "other", Options()) is None
    assert find_published(student, tmp_path, "tiny", Options()) is None
    assert find_published(Source(tmp_path / "none"), run.repository, "tiny", Options()) is None


def test_how_a_version_is_kept_or_served_makes_no_other_version(run, tiny_student: Path) -> None:
    other = Options(keep=3, runtime="python")
    assert find_published(Source(tiny_student), run.repository, "tiny", other)


def test_the_origin_names_what_it_took_by_name_and_digest(
    tiny_student: Path, tiny_sdxl: Path
) -> None:
    source = Source(tiny_student / "unet", "turbo", tiny_sdxl)
    origin = origin_of(source, Options(vae=tiny_sdxl / "vae"))
    assert (origin["student"], origin["one_step"]) == ("unet", "turbo")
    assert origin["base_sha256"] == student_sha256(tiny_sdxl)
    assert (origin["vae"], origin["vae_sha256"]) == ("vae", student_sha256(tiny_sdxl / "vae"))
    assert "lora_scale" not in origin


def test_the_digest_of_a_student_is_that_of_sha256sum_over_its_files(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    for name in ("unet/a.safetensors", "model_index.json"):
        (tmp_path / name).write_text(name)
    lines = "".join(
        f"{sha256_of(tmp_path / name)}  {name}\n"
        for name in ("model_index.json", "unet/a.safetensors")
    )
    assert student_sha256(tmp_path) == hashlib.sha256(lines.encode()).hexdigest()
    assert student_sha256(tmp_path / "model_index.json") == sha256_of(tmp_path / "model_index.json")
