"""A class-conditional student by stock diffusers and by the graph, and what is not exported."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline
from tiny_classes import CLASSES, save_class_student

from export.errors import DecoderError, PrecisionError, SizeError, StudentError
from export.export import export_student
from export.gate.verify import draw_cases
from export.graph.precision import Precision
from export.model.class_student import ClassStudent, load_class_student
from export.model.foreign import Source
from export.options import Options
from export.tasks.class_task import ClassTask
from export.tasks.opening import open_task

SCHEDULERS = {
    "ours": {"sigma_min": 0.0, "sigma_max": 80.0, "rho": 1.0, "clip_denoised": False},
    "ours at a low level": {"sigma_min": 0.0, "sigma_max": 2.5, "rho": 1.0, "clip_denoised": False},
    "a consistency model": {},
    "other data": {"sigma_data": 1.0, "sigma_max": 10.0, "num_train_timesteps": 2},
}


def load(folder: Path) -> ClassStudent:
    return load_class_student(Source(folder))


def changed(folder: Path, **values: object) -> Path:
    """The student with other values in its network's config."""
    save_class_student(folder)
    file = folder / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | values), "utf-8")
    return folder


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_graph_draws_the_pictures_of_one_stock_step(tmp_path: Path, name: str) -> None:
    scheduler = CMStochasticIterativeScheduler(**SCHEDULERS[name])
    task = open_task(Source(save_class_student(tmp_path, scheduler)))
    cases = draw_cases(task, task.signature(()), rows=6)
    gap = np.abs(cases.torch_pictures.astype(int) - cases.stock_pictures)
    assert gap.max() <= 1
    assert cases.torch_pictures.shape == (6, 16, 16, 3)
    assert cases.prompts == ("0", str(CLASSES - 1), "1", "2", "0", str(CLASSES - 1))


def test_the_class_and_the_seed_change_the_picture(tmp_path: Path) -> None:
    task = open_task(Source(save_class_student(tmp_path)))
    noise = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    first = task.graph(torch.tensor([0, 1]), noise[:1].expand(2, -1, -1, -1))
    assert (first[0] != first[1]).any()
    second = task.graph(torch.tensor([0, 0]), noise)
    assert (second[0] == first[0]).all()
    assert (second[0] != second[1]).any()


def test_stock_diffusers_by_a_seed_draws_what_the_noise_of_the_seed_gives(tmp_path: Path) -> None:
    student = load(save_class_student(tmp_path))
    task = open_task(Source(tmp_path))
    by_seed = student.pipeline(
        class_labels=[2], generator=torch.Generator().manual_seed(7), num_inference_steps=1
    ).images[0]
    noise = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(7))
    drawn = task.graph(torch.tensor([2]), noise)[0].numpy()
    assert np.abs(np.asarray(by_seed).astype(int) - drawn).max() <= 1


def test_names_of_the_classes_are_read_from_a_file_beside_the_pipeline(tmp_path: Path) -> None:
    save_class_student(tmp_path)
    assert load(tmp_path).names == ()
    (tmp_path / "classes.txt").write_text("red\nblue\ngreen\nsmall dog\n", "utf-8")
    assert load(tmp_path).names == ("red", "blue", "green", "small dog")
    assert ConsistencyModelPipeline.from_pretrained(tmp_path).unet.config.num_class_embeds == 4
    (tmp_path / "classes.txt").write_text("red\n\nblue\n", "utf-8")
    with pytest.raises(StudentError, match=r"has 3 lines, some of them blank; .* has 4 classes"):
        load(tmp_path)
    (tmp_path / "classes.txt").write_bytes(b"\xff\n" * 4)
    with pytest.raises(StudentError, match=r"classes\.txt is not UTF-8"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"sample_size": [16, 16]}, "sample_size in the student's unet config is"),
        ({"class_embed_type": "identity"}, "class_embed_type is 'identity'"),
    ],
)
def test_a_network_that_is_not_reproduced_is_refused_by_name(
    tmp_path: Path, values: dict, sentence: str
) -> None:
    with pytest.raises(StudentError, match=sentence):
        load(changed(tmp_path, **values))


def test_a_student_without_classes_or_of_other_channels_is_refused(tmp_path: Path) -> None:
    save_class_student(tmp_path / "none", num_class_embeds=None)
    with pytest.raises(StudentError, match="num_class_embeds in the student's unet config is None"):
        load(tmp_path / "none")
    save_class_student(tmp_path / "grey", out_channels=1)
    with pytest.raises(StudentError, match="out_channels in the student's unet config is 1; only"):
        load(tmp_path / "grey")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"sigma_min": 80.0}, "sigma_min 80, sigma_max 80"),
        ({"sigma_data": 0.0}, "sigma_data 0 and rho 1; they must be"),
        ({"num_train_timesteps": 1}, "num_train_timesteps in .* is 1; .* at least 2"),
        ({"_class_name": "DDIMScheduler"}, "scheduler is a DDIMScheduler; a class-conditional"),
    ],
)
def test_a_scheduler_without_a_step_is_refused(tmp_path: Path, values: dict, sentence: str) -> None:
    save_class_student(tmp_path)
    file = tmp_path / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | values), "utf-8")
    if name := values.get("_class_name"):
        index = json.loads((tmp_path / "model_index.json").read_text("utf-8"))
        index["scheduler"] = ["diffusers", name]
        (tmp_path / "model_index.json").write_text(json.dumps(index), "utf-8")
    with pytest.raises(StudentError, match=sentence):
        load(tmp_path)


def test_a_many_step_teacher_is_noted(tmp_path: Path) -> None:
    save_class_student(tmp_path, CMStochasticIterativeScheduler(clip_denoised=False))
    (note,) = load(tmp_path).notes
    assert "looks like a many-step EDM: its CMStochasticIterativeScheduler has sigma_min" in note
    save_class_student(tmp_path, CMStochasticIterativeScheduler())
    assert load(tmp_path).notes == ()


@pytest.mark.parametrize(
    ("error", "given", "sentence"),
    [
        (StudentError, {"one_step": "turbo"}, "--one-step is 'turbo', but .* holds a Consistency"),
        (StudentError, {"base": Path("sdxl")}, "--base is 'sdxl', but"),
    ],
)
def test_what_is_said_of_text_models_is_refused(tmp_path, error, given, sentence) -> None:
    with pytest.raises(error, match=sentence):
        open_task(Source(save_class_student(tmp_path), **given))


@pytest.mark.parametrize(
    ("error", "options", "sentence"),
    [
        (DecoderError, Options(vae=Path("v")), "vae is v, but .* draws pixels"),
        (PrecisionError, Options(precision=Precision(vae=torch.float16)), "vae-dtype is float16"),
        (PrecisionError, Options(precision=Precision(text=torch.bfloat16)), "text-dtype is bfl"),
        (SizeError, Options(sizes=((32, 32),)), "size 32x32 does not suit .* alone, 16x16"),
    ],
)
def test_options_of_text_models_are_refused(tmp_path, error, options, sentence) -> None:
    with pytest.raises(error, match=sentence):
        export_student(save_class_student(tmp_path / "s"), tmp_path, "edm", options)
    assert not (tmp_path / "edm").exists()


def test_the_networks_type_may_be_float16(tmp_path: Path) -> None:
    half = open_task(Source(save_class_student(tmp_path)), Precision(torch.float16, torch.float16))
    assert isinstance(half, ClassTask)
    assert half.facts()["precision"] == {"unet": "float16"}
    cases = draw_cases(half, half.signature(()), rows=2)
    assert np.abs(cases.torch_pictures.astype(int) - cases.stock_pictures).max() <= 4
