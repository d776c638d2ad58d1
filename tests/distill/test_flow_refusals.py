"""What a flow-matching teacher refuses, by name, and what its digests tell apart."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from test_sdxl_teacher import edit
from tiny_flow import save_tiny_sd3, save_tiny_sd35
from tiny_training import CPU, silent, tiny_recipe

from distill.run import distil
from distill.teachers.flow import FlowTeacher
from distill.teachers.opening import load_teacher
from distill.teachers.teacher import TeacherError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SD 3 with its T5; read only."""
    return save_tiny_sd3(tmp_path_factory.mktemp("sd3") / "sd3")


@pytest.fixture(scope="module")
def flow(folder: Path) -> FlowTeacher:
    """The same, open on the CPU; read only."""
    return load_teacher(folder, CPU)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "teacher")


def no_t5(folder: Path) -> None:
    shutil.rmtree(folder / "text_encoder_3")


def no_transformer(folder: Path) -> None:
    shutil.rmtree(folder / "transformer")


def torn_transformer(folder: Path) -> None:
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def heun(folder: Path) -> None:
    name = "FlowMatchHeunDiscreteScheduler"
    edit(folder / "model_index.json", scheduler=["diffusers", name])
    config = {"_class_name": name, "num_train_timesteps": 1000, "shift": 3.0}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))


def backwards(folder: Path) -> None:
    edit(folder / "scheduler" / "scheduler_config.json", invert_sigmas=True)


def no_shift(folder: Path) -> None:
    edit(folder / "vae" / "config.json", shift_factor=None)


REFUSED = [
    (no_t5, "cannot be opened: no text_encoder_3$"),
    (no_transformer, "cannot be opened: no transformer$"),
    (torn_transformer, "cannot be opened: .*transformer/diffusion_pytorch_model.safetensors"),
    (heun, "is FlowMatchHeunDiscreteScheduler; it must be FlowMatchEulerDiscreteScheduler$"),
    (backwards, "FlowMatchEulerDiscreteScheduler has invert_sigmas, so its time runs backwards$"),
    (no_shift, "its VAE's config has no shift_factor, which this pipeline decodes by$"),
]


@pytest.mark.parametrize(("damage", "sentence"), REFUSED)
def test_a_directory_that_is_no_teacher_is_named_with_the_reason(
    copy: Path, damage: Callable[[Path], None], sentence: str
) -> None:
    damage(copy)
    with pytest.raises(TeacherError, match=sentence) as error:
        load_teacher(copy, CPU)
    assert str(error.value).startswith(f"teacher.model: {copy} cannot be opened: ")
    assert "\n" not in str(error.value)


def test_the_one_step_begins_at_pure_noise(flow: FlowTeacher) -> None:
    assert flow.level(None, None) == flow.level(None, 1.0) == flow.last_level == 1.0
    with pytest.raises(
        TeacherError, match=r"^student\.sigma is 0\.7, allowed is 1: FlowMatchEuler"
    ):
        flow.level(None, 0.7)
    with pytest.raises(TeacherError, match=r"^student\.timestep is 999, but .* counts in sigmas: "):
        flow.level(999, None)


def test_a_recipe_of_u_net_layers_is_told_the_blocks_there_are(
    folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"'down_blocks\.1' does not exist.*transformer_blocks\.0"):
        distil(tiny_recipe(tmp_path, folder, "drift.layers=[down_blocks.1]"), silent)


def test_digests_tell_what_their_pictures_depend_on(flow: FlowTeacher, copy: Path) -> None:
    edit(copy / "vae" / "config.json", shift_factor=0.5)
    other = load_teacher(copy, CPU)
    assert other.sampling_digest() == flow.sampling_digest()
    assert other.picture_digest() != flow.picture_digest()
    edit(copy / "scheduler" / "scheduler_config.json", shift=1.0)
    assert load_teacher(copy, CPU).sampling_digest() != flow.sampling_digest()


def test_t5_belongs_to_the_digest(tmp_path: Path, copy: Path, flow: FlowTeacher) -> None:
    edit(copy / "model_index.json", text_encoder_3=[None, None], tokenizer_3=[None, None])
    without = load_teacher(copy, CPU)
    assert len(without.encoders) == 2
    assert without.sampling_digest() != flow.sampling_digest()
    other = load_teacher(save_tiny_sd35(tmp_path / "other"), CPU)
    assert other.sampling_digest() != without.sampling_digest()
