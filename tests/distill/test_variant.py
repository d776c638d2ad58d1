"""Teachers' directories with files in half precision alone, or with pickles."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from tiny_training import CPU

from distill.teachers.opening import load_teacher
from distill.teachers.sdxl import SdxlTeacher
from distill.teachers.teacher import TeacherError

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


@pytest.mark.parametrize("shard", ["10GB", "100KB"])
def test_fp16_files_alone_are_a_teacher_in_float32(
    teacher: SdxlTeacher, tmp_path: Path, shard: str
) -> None:
    teacher.pipe.save_pretrained(tmp_path, variant="fp16", max_shard_size=shard)
    assert not list(tmp_path.glob("*/*model.safetensors"))
    found = load_teacher(tmp_path, CPU)
    assert found.sampling_digest() == teacher.sampling_digest()
    assert found.picture_digest() == teacher.picture_digest()


def test_of_both_types_the_exact_one_is_taken(
    teacher: SdxlTeacher, tiny_sdxl: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_sdxl, tmp_path, dirs_exist_ok=True)
    for part in PARTS:
        (file,) = (tmp_path / part).glob("*.safetensors")
        file.with_name(f"{file.stem}.fp16.safetensors").write_bytes(b"not read")
    assert load_teacher(tmp_path, CPU).sampling_digest() == teacher.sampling_digest()


class Code:
    """A pickle that makes a folder when it is opened as pickles are."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.made),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.fp16.bin"])
def test_a_pickle_runs_no_code(tiny_sdxl: Path, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(tiny_sdxl, tmp_path / "teacher")
    (copy / "text_encoder" / "model.safetensors").unlink()
    torch.save({"weight": Code(tmp_path / "made")}, copy / "text_encoder" / name)
    with pytest.raises(TeacherError, match=r"^teacher\.model: .* opened: a pickle in it holds"):
        load_teacher(copy, CPU)
    assert not (tmp_path / "made").exists()
