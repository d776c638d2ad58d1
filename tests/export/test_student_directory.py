"""A student that cannot be exported is refused in one sentence that names what is wrong."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from edited import edit

from export.errors import StudentError
from export.model.student import Student, load_student


@pytest.fixture
def copy(tiny_student: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_student, tmp_path / "student")


def test_a_whole_student_is_loaded_in_float32_without_gradients(student: Student) -> None:
    assert (student.size_px, student.latent_size, student.latent_channels) == (64, 8, 4)
    assert student.step.timestep == 999
    weight = next(student.pipeline.unet.parameters())
    assert weight.dtype == torch.float32
    assert not weight.requires_grad
    assert not student.pipeline.unet.training


def test_weights_saved_in_half_precision_are_loaded_in_float32(copy: Path) -> None:
    pipeline = load_student(copy).pipeline
    pipeline.text_encoder.half().save_pretrained(copy / "text_encoder")
    again = load_student(copy).pipeline.text_encoder
    assert {p.dtype for p in again.parameters()} == {torch.float32}


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(StudentError, match="nothing does not exist"):
        load_student(tmp_path / "nothing")


def test_a_directory_without_an_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudentError, match=r"has no model_index\.json"):
        load_student(tmp_path)


def test_a_broken_index_is_refused(copy: Path) -> None:
    (copy / "model_index.json").write_text("{")
    with pytest.raises(StudentError, match="is not valid JSON"):
        load_student(copy)


def test_another_pipeline_class_is_refused_by_name(copy: Path) -> None:
    edit(copy / "model_index.json", _class_name="FluxPipeline")
    with pytest.raises(StudentError, match="holds a FluxPipeline; only"):
        load_student(copy)


def test_a_pipeline_without_its_first_tokenizer_is_refused(copy: Path) -> None:
    edit(copy / "model_index.json", tokenizer=[None, None])
    with pytest.raises(StudentError, match="has no tokenizer; a one-step graph needs"):
        load_student(copy)


def test_a_part_whose_folder_is_gone_is_named(copy: Path) -> None:
    shutil.rmtree(copy / "tokenizer_2")
    with pytest.raises(StudentError, match="the folder tokenizer_2 is missing"):
        load_student(copy)


def test_weights_that_are_cut_off_are_refused(copy: Path) -> None:
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(StudentError, match="cannot be loaded"):
        load_student(copy)


def test_a_teacher_with_its_many_step_scheduler_is_refused(tiny_sdxl: Path) -> None:
    with pytest.raises(StudentError, match="EulerDiscreteScheduler"):
        load_student(tiny_sdxl)


@pytest.mark.parametrize(
    ("part", "changes", "sentence"),
    [
        ("unet", {"sample_size": [8, 16]}, r"sample_size .* is \[8, 16\]; it must be one whole"),
        ("unet", {"addition_embed_type": None}, "addition_embed_type .* is None; only 'text_time'"),
        ("vae", {"shift_factor": 0.1}, "shift_factor .* is 0.1; the stock"),
    ],
)
def test_settings_the_graph_would_not_honour_are_refused(
    copy: Path, part: str, changes: dict[str, Any], sentence: str
) -> None:
    edit(copy / part / "config.json", **changes)
    with pytest.raises(StudentError, match=sentence):
        load_student(copy)


def test_a_unet_conditioned_on_guidance_is_refused(copy: Path) -> None:
    unet = load_student(copy).pipeline.unet
    guided = type(unet).from_config({**unet.config, "time_cond_proj_dim": 4})
    guided.save_pretrained(copy / "unet")
    with pytest.raises(StudentError, match=r"proj_dim .* is 4: it takes a guidance scale"):
        load_student(copy)
