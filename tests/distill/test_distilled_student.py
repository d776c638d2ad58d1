"""The student's directory, by its public reader: stock diffusers, and nothing of our own."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline
from tiny_training import CPU, PROMPTS, different_files, draw

from distill.student import make_student, save_student
from distill.teachers.opening import load_teacher
from distill.teachers.sdxl import SdxlTeacher


def teacher_of(tiny_sdxl: Path, folder: Path, **changes: object) -> SdxlTeacher:
    """The tiny teacher with another scheduler config."""
    copy = shutil.copytree(tiny_sdxl, folder / "teacher")
    config = copy / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    return load_teacher(copy, CPU)


def other_weights(teacher: SdxlTeacher) -> dict[str, torch.Tensor]:
    """The teacher's weights, each moved a little: a student that has learnt something."""
    state = teacher.denoiser.state_dict()
    return {name: value + 0.02 * draw(*value.shape) for name, value in state.items()}


def stock_step(folder: Path, noise: torch.Tensor, kind: str) -> torch.Tensor:
    """What stock diffusers makes of a student in one step: latents, or pictures in uint8."""
    pipe = DiffusionPipeline.from_pretrained(folder)
    assert type(pipe) is StableDiffusionXLPipeline
    pipe.set_progress_bar_config(disable=True)
    out = pipe(
        list(PROMPTS[: len(noise)]),
        latents=noise,
        num_inference_steps=1,
        guidance_scale=0.0,
        output_type=kind,
    ).images
    result: torch.Tensor = out
    return result


KINDS: list[dict[str, object]] = [
    {"prediction_type": kind} for kind in ("epsilon", "v_prediction", "sample")
]
ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}


@pytest.mark.parametrize(
    ("changes", "timestep"),
    [*((kind, t) for kind in KINDS for t in (999, 399, 250)), (KINDS[0], 0), (ZERO_SNR, 399)],
)
def test_one_step_of_stock_diffusers_is_the_students(
    tiny_sdxl: Path, tmp_path: Path, changes: dict[str, object], timestep: int
) -> None:
    teacher = teacher_of(tiny_sdxl, tmp_path, **changes)
    weights, noise = other_weights(teacher), draw(2, 4, 8, 8)
    save_student(teacher, weights, timestep, tmp_path / "student")
    unet = make_student(teacher)
    unet.load_state_dict(weights)
    with torch.no_grad():
        own = teacher.one_step(unet.eval(), noise, timestep, teacher.encode(PROMPTS[:2]))
    stock = stock_step(tmp_path / "student", noise, "latent")
    assert torch.allclose(stock, own, atol=1e-5 * own.abs().max().item())


def test_its_pictures_are_ours_within_a_level(teacher: SdxlTeacher, tmp_path: Path) -> None:
    weights, noise = other_weights(teacher), draw(3, 4, 8, 8)
    save_student(teacher, weights, 399, tmp_path / "student")
    unet = make_student(teacher)
    unet.load_state_dict(weights)
    with torch.no_grad():
        latents = teacher.one_step(unet.eval(), noise, 399, teacher.encode(PROMPTS))
    own = teacher.decode(latents)
    stock = (stock_step(tmp_path / "student", noise, "pt") * 255).round().permute(0, 2, 3, 1)
    assert (own.int() - stock.int()).abs().max() <= 1
    assert own.float().std() > 10


def test_everything_but_denoiser_and_scheduler_is_the_teachers(
    teacher: SdxlTeacher, tiny_sdxl: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "student"
    save_student(teacher, teacher.denoiser.state_dict(), 399, folder)
    for part in ("vae", "text_encoder", "text_encoder_2", "unet"):
        (name,) = (path.name for path in (folder / part).glob("*.safetensors"))
        assert (folder / part / name).read_bytes() == (tiny_sdxl / part / name).read_bytes()
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert (scheduler["_class_name"], scheduler["steps_offset"]) == ("DDIMScheduler", 399)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["force_zeros_for_empty_prompt"] is True


def test_no_file_tells_where_it_was_made(
    teacher: SdxlTeacher, tiny_sdxl: Path, tmp_path: Path
) -> None:
    save_student(teacher, teacher.denoiser.state_dict(), 399, tmp_path / "student")
    files = [path for path in (tmp_path / "student").rglob("*") if path.is_file()]
    assert len(files) >= 12
    for path in files:
        content = path.read_bytes()
        for place in (tiny_sdxl, tmp_path, Path.home(), Path.cwd()):
            assert str(place).encode() not in content, path
        assert b"_name_or_path" not in content, path


def test_who_may_read_a_students_config_may_read_its_weights(
    teacher: SdxlTeacher, tmp_path: Path
) -> None:
    save_student(teacher, other_weights(teacher), 399, tmp_path / "student")
    files = [path for path in (tmp_path / "student").rglob("*") if path.is_file()]
    assert len({path.stat().st_mode for path in files}) == 1


def test_the_same_weights_are_the_same_bytes_and_replace_what_was_there(
    teacher: SdxlTeacher, tmp_path: Path
) -> None:
    for name in ("one", "other"):
        save_student(teacher, other_weights(teacher), 399, tmp_path / name)
    assert different_files(tmp_path / "one", tmp_path / "other") == []
    (tmp_path / "one" / "left over").write_text("")
    (tmp_path / ".one.partial").mkdir()
    save_student(teacher, teacher.denoiser.state_dict(), 250, tmp_path / "one")
    changed = different_files(tmp_path / "one", tmp_path / "other")
    assert changed == [
        "scheduler/scheduler_config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "other"]


def test_a_student_is_a_trainable_copy_that_leaves_the_teacher_alone(teacher: SdxlTeacher) -> None:
    student, before = make_student(teacher), teacher.denoiser.state_dict()["conv_in.bias"].clone()
    assert student.training
    assert all(parameter.requires_grad for parameter in student.parameters())
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert torch.equal(teacher.denoiser.state_dict()["conv_in.bias"], before)
    assert not any(parameter.requires_grad for parameter in teacher.denoiser.parameters())


def test_the_scheduler_has_the_one_timestep(teacher: SdxlTeacher) -> None:
    scheduler = teacher.student_pipeline(teacher.denoiser, 250.0).scheduler
    scheduler.set_timesteps(1)
    assert scheduler.timesteps.tolist() == [250]
    assert torch.equal(scheduler.alphas_cumprod, teacher.pipe.scheduler.alphas_cumprod)
