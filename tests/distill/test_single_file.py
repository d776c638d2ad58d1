"""Teachers from a single file: the same numbers as from the directory that it was written from."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from original_layout import original_checkpoint, original_sd1, original_sd2
from safetensors.torch import save_file
from test_sd_teacher import save_tiny_sd
from test_sdxl_teacher import edit
from tiny_training import CPU, PROMPTS, draw, silent, tiny_recipe, tiny_samples

from distill.run import distil
from distill.teachers.opening import load_teacher
from distill.teachers.sdxl import SdxlTeacher
from distill.teachers.teacher import Teacher, TeacherError
from distill.train import run_training

State = dict[str, torch.Tensor]


def write(file: Path, state: State) -> Path:
    save_file({key: value.contiguous() for key, value in state.items()}, file)
    return file


def without_weights(folder: Path, copy: Path) -> Path:
    """A pipeline's configs, tokenizers and scheduler alone."""
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.safetensors"))
    return copy


def assert_same_teacher(one: Teacher, other: Teacher) -> None:
    """Bit for bit: conditions, samples with guidance, one step, and the way to pictures."""
    assert type(one) is type(other)
    assert one.sampling_digest() == other.sampling_digest()
    assert one.picture_digest() == other.picture_digest()
    conditions = [teacher.encode(PROMPTS) for teacher in (one, other)]
    for name, part in conditions[0].parts.items():
        assert torch.equal(part, conditions[1].parts[name])
    made = [t.sample(c, [1, 2, 3], 2, 3.0) for t, c in zip((one, other), conditions, strict=True)]
    assert torch.equal(*made)
    assert torch.equal(one.decode(made[0]), other.decode(made[1]))
    pictures = draw(1, 3, 64, 64).clamp(-1, 1)
    assert torch.equal(one.encode_pictures(pictures), other.encode_pictures(pictures))


@pytest.fixture(scope="module")
def state(tiny_sdxl: Path) -> State:
    """The tiny SDXL under its original names; read only."""
    return original_checkpoint(StableDiffusionXLPipeline.from_pretrained(tiny_sdxl))


@pytest.fixture(scope="module")
def config(tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny SDXL's directory without a weight in it; read only."""
    return without_weights(tiny_sdxl, tmp_path_factory.mktemp("config") / "sdxl")


@pytest.fixture(scope="module")
def file(state: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("file") / "sdxl.safetensors", state)


def test_sdxl_from_a_file_is_the_directorys_bit_for_bit(
    file: Path, config: Path, teacher: SdxlTeacher
) -> None:
    assert not list(config.rglob("*.safetensors"))
    assert_same_teacher(load_teacher(file, CPU, config), teacher)


@pytest.mark.parametrize(
    ("prediction", "layout"), [("epsilon", original_sd1), ("v_prediction", original_sd2)]
)
def test_sd_1_and_2_from_a_file_are_the_directorys_bit_for_bit(
    tmp_path: Path, prediction: str, layout: Callable[[Any], State]
) -> None:
    folder = save_tiny_sd(tmp_path / "sd", prediction)
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    file = write(tmp_path / "sd.safetensors", layout(pipe))
    config = without_weights(folder, tmp_path / "config")
    found = load_teacher(file, CPU, config)
    assert found.prediction_type == prediction
    assert_same_teacher(found, load_teacher(folder, CPU))


def test_a_file_in_half_precision_becomes_float32(
    state: State, config: Path, teacher: SdxlTeacher, tmp_path: Path
) -> None:
    halves = {key: value.half() for key, value in state.items()}
    found = load_teacher(write(tmp_path / "half.safetensors", halves), CPU, config)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        mine, own = getattr(found.pipe, part), getattr(teacher.pipe, part)
        assert {p.dtype for p in mine.parameters()} == {torch.float32}
        assert not any(p.requires_grad or p.is_meta for p in mine.parameters())
        for name, value in own.state_dict().items():
            assert torch.equal(mine.state_dict()[name], value.half().float())


@pytest.mark.parametrize(
    ("mark", "setting", "value"),
    [("v_pred", "prediction_type", "v_prediction"), ("ztsnr", "rescale_betas_zero_snr", True)],
)
def test_a_file_marked_for_a_schedule_needs_it(
    state: State, config: Path, tmp_path: Path, mark: str, setting: str, value: object
) -> None:
    marked = write(tmp_path / "marked.safetensors", {**state, mark: torch.zeros(0)})
    sentence = rf"holds {mark}, so its scheduler needs {setting} {value}; that .* has \w+$"
    with pytest.raises(TeacherError, match=sentence):
        load_teacher(marked, CPU, config)
    other = shutil.copytree(config, tmp_path / "config")
    edit(other / "scheduler" / "scheduler_config.json", **{setting: value})
    assert load_teacher(marked, CPU, other).pipe.scheduler.config[setting] == value


def test_a_student_of_a_file_is_a_whole_pipeline(file: Path, config: Path, tmp_path: Path) -> None:
    found = load_teacher(file, CPU, config)
    recipe = tiny_recipe(tmp_path, file, "train.steps=1", f"teacher.config={config}")
    student = run_training(found, tiny_samples(found), recipe, silent)
    pipe = StableDiffusionXLPipeline.from_pretrained(student)
    pipe.set_progress_bar_config(disable=True)
    assert pipe("blue", num_inference_steps=1, guidance_scale=0.0).images[0].size == (64, 64)


def test_the_recipe_names_the_directory_beside_the_file(
    file: Path, config: Path, tmp_path: Path
) -> None:
    recipe = tiny_recipe(tmp_path, file, "train.steps=1", "teacher.config=configs")
    assert recipe.teacher.config == tmp_path / "configs"
    with pytest.raises(TeacherError, match=r"^teacher\.config: .*/configs does not exist"):
        distil(recipe, silent)
    shutil.copytree(config, tmp_path / "configs")
    assert (distil(recipe, silent) / "unet").is_dir()


def test_a_file_without_a_config_says_what_it_needs(file: Path) -> None:
    with pytest.raises(TeacherError) as error:
        load_teacher(file, CPU)
    assert str(error.value) == (
        f"teacher.model: {file} is a single file, which holds weights alone: teacher.config must"
        " name a StableDiffusionXLPipeline directory with its configs, tokenizers and scheduler"
    )


def test_a_directory_with_a_config_is_refused(tiny_sdxl: Path, config: Path) -> None:
    with pytest.raises(TeacherError, match=r"^teacher\.config is .* is a directory, which has its"):
        load_teacher(tiny_sdxl, CPU, config)


def test_the_config_of_another_class_is_refused(file: Path, tmp_path: Path) -> None:
    other = save_tiny_sd(tmp_path / "sd", "epsilon")
    sentence = r"^teacher\.config: .* holds StableDiffusionPipeline, but .* of StableDiffusionXLPip"
    with pytest.raises(TeacherError, match=sentence):
        load_teacher(file, CPU, other)


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("unet/config.json", r"^teacher\.config: .*/unet/config.json does not exist"),
        ("model_index.json", r"^teacher\.config: .* has no model_index.json"),
        ("tokenizer_2", "cannot be opened: no tokenizer_2"),
    ],
)
def test_what_the_config_lacks_is_named(
    file: Path, config: Path, tmp_path: Path, path: str, sentence: str
) -> None:
    copy = shutil.copytree(config, tmp_path / "config")
    lost = copy / path
    shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    with pytest.raises(TeacherError, match=sentence):
        load_teacher(file, CPU, copy)


def test_a_torn_config_is_named(file: Path, config: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(config, tmp_path / "config")
    (copy / "vae" / "config.json").write_text("{")
    with pytest.raises(TeacherError, match=r"^teacher\.config: .*/vae/config.json is not JSON"):
        load_teacher(file, CPU, copy)


def test_a_truncated_file_is_named(file: Path, config: Path, tmp_path: Path) -> None:
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(TeacherError, match=r"torn.safetensors is no whole safetensors file: "):
        load_teacher(torn, CPU, config)


def test_a_pickle_is_not_opened(config: Path, tmp_path: Path) -> None:
    (tmp_path / "sdxl.ckpt").write_bytes(b"\x80\x04.")
    with pytest.raises(TeacherError, match=r"sdxl.ckpt is a file that does not end in \.safetens"):
        load_teacher(tmp_path / "sdxl.ckpt", CPU, config)


BARE = {
    "a lora": (
        {"lora_unet_down.alpha": 1, "lora_unet_up.alpha": 1},
        "is no checkpoint of SD 1.x, 2.x or SDXL: 2 tensors named lora_unet_down.alpha, lora_",
    ),
    "a bare unet": (
        {"model.diffusion_model.out.2.bias": 4},
        r"of a checkpoint's parts it has model\.diffusion_model\. alone",
    ),
    "edm": ({"edm_mean": 4, "first_stage_model.a": 1}, "holds edm_mean: an SDXL of EDM's noise"),
}


@pytest.mark.parametrize("name", BARE)
def test_a_file_of_another_kind_is_refused(config: Path, tmp_path: Path, name: str) -> None:
    shapes, sentence = BARE[name]
    file = write(tmp_path / "x.safetensors", {k: torch.zeros(n) for k, n in shapes.items()})
    with pytest.raises(TeacherError, match=sentence):
        load_teacher(file, CPU, config)


LOST = [
    (
        "first_stage_model.decoder.conv_in.weight",
        "fit the AutoencoderKL .* it lacks 1: decoder.con",
    ),
    ("conditioner.embedders.1.model.ln_final.weight", "CLIPTextModelWithProjection .* lacks 1: te"),
    ("model.diffusion_model.label_emb.0.0.weight", "lacks the tensor label_emb.0.0.weight"),
    ("model.diffusion_model.out.2.bias", "the UNet2DConditionModel .* it lacks 1: conv_out.bias"),
    (
        "conditioner.embedders.0.transformer.text_model.embeddings.position_embedding.weight",
        "fit the CLIPTextModel of .* it lacks 1: embeddings.position_embedding.weight",
    ),
]


@pytest.mark.parametrize(("lost", "sentence"), LOST)
def test_a_checkpoint_that_lacks_a_tensor_is_refused_by_name(
    state: State, config: Path, tmp_path: Path, lost: str, sentence: str
) -> None:
    rest = {key: value for key, value in state.items() if key != lost}
    assert len(rest) == len(state) - 1
    with pytest.raises(TeacherError, match=sentence):
        load_teacher(write(tmp_path / "lost.safetensors", rest), CPU, config)


def test_a_checkpoint_of_another_width_is_refused(
    state: State, config: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(config, tmp_path / "config")
    edit(copy / "unet" / "config.json", in_channels=9)
    sentence = r"has misshapen 1: conv_in.weight \[16, 4, 3, 3\] instead of \[16, 9, 3, 3\]$"
    with pytest.raises(TeacherError, match=sentence):
        load_teacher(write(tmp_path / "sdxl.safetensors", state), CPU, copy)
