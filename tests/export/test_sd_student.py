"""Students of Stable Diffusion 1.x and 2.x: the graph, the version, and stock diffusers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, TCDScheduler
from original_layout import original_unet
from safetensors.torch import save_file
from stock_step import stock_picture
from tiny import SCHEDULE
from tiny_sd import save_tiny_sd_student

from export.errors import StudentError
from export.export import export_student
from export.gate.published import Request, verify_repository
from export.gate.session import open_session
from export.gate.verify import draw_cases
from export.graph.precision import Precision
from export.graph.sd_module import SdGraph
from export.model.foreign import Source
from export.model.one_step import clean_latent, ddim
from export.model.stock import stock_pictures
from export.model.student import load_model, load_student
from export.options import Options
from export.repository.describe import describe
from export.repository.manifest import check_version
from export.tasks.opening import open_task


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_sd_student(tmp_path_factory.mktemp("sd") / "student")


@pytest.fixture(scope="module")
def version(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student as `sd/1`; exported once."""
    repository = tmp_path_factory.mktemp("sd-repository")
    options = Options(max_batch=3)
    return export_student(folder, repository, "sd", options, report=lambda line: None).folder


def close(left: np.ndarray, right: np.ndarray) -> bool:
    return bool(np.abs(left.astype(int) - right).max() <= 1)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("timestep", [399, 999])
def test_the_graph_draws_the_pictures_of_one_stock_step(
    tmp_path: Path, timestep: int, prediction_type: str
) -> None:
    task = open_task(Source(save_tiny_sd_student(tmp_path, timestep, prediction_type)))
    assert isinstance(task.graph, SdGraph)
    assert task.graph.step.timestep == timestep
    cases = draw_cases(task, task.signature(()), rows=3)
    assert close(cases.torch_pictures, cases.stock_pictures)
    assert (cases.torch_pictures[0] != cases.torch_pictures[1]).any()


def test_the_version_has_one_tokenizer_and_one_text_input(version: Path) -> None:
    manifest = check_version(version)
    assert manifest["task"] == "text-to-image"
    assert [tensor["name"] for tensor in manifest["inputs"]] == ["input_ids", "noise"]
    assert manifest["tokenizers"] == {"input_ids": {"file": "tokenizer.json", "max_length": 77}}
    assert sorted(manifest["files"]) == ["model.onnx", "tokenizer.json"]
    assert manifest["gate"]["level"] == "bitwise"
    assert (manifest["one_step"]["kind"], manifest["one_step"]["timestep"]) == ("singlepass", 399)


def test_the_file_draws_the_picture_of_stock_diffusers(version: Path, folder: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    ids = pipeline.tokenizer("a red circle", padding="max_length", return_tensors="np").input_ids
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5)).numpy()
    (drawn,) = open_session(version / "model.onnx", 1)({"input_ids": ids, "noise": noise})
    assert close(stock_picture(pipeline, "a red circle", 5), drawn)


def test_it_is_verified_and_described(version: Path, folder: Path) -> None:
    request = Request("torch", folder, rows=3)
    found = verify_repository(version.parents[1], request=request, report=lambda line: None)
    assert found.level == "bitwise"
    assert "timestep 399, predicts epsilon (DDIMScheduler)" in describe(folder)
    assert describe(version).startswith("sd/1: text-to-image\n")


def test_half_precision_and_several_sizes(folder: Path) -> None:
    half = Precision(torch.float16, torch.float16, torch.float16)
    task = open_task(Source(folder), half, report=lambda line: None)
    assert task.facts()["precision"] == {"text": "float16", "unet": "float16", "vae": "float16"}
    signature = task.signature(((64, 64), (96, 64)))
    assert signature.inputs[1].shape == (4, None, None)
    cases = draw_cases(task, signature, rows=2, size=(96, 64))
    gap = np.abs(cases.torch_pictures.astype(int) - cases.stock_pictures)
    assert cases.torch_pictures.shape == (2, 64, 96, 3)
    assert gap.mean() < 1


def test_a_schedule_that_does_not_end_at_the_clean_latent_is_refused(tmp_path: Path) -> None:
    save_tiny_sd_student(tmp_path)
    file = tmp_path / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text("utf-8"))
    for key, value in (("timestep_spacing", "leading"), ("set_alpha_to_one", False)):
        file.write_text(json.dumps(config | {key: value}), "utf-8")
        with pytest.raises(StudentError, match=f"{key} in the student's scheduler config is"):
            load_student(tmp_path)


def test_a_many_step_scheduler_is_not_taken_for_a_student(tmp_path: Path) -> None:
    save_tiny_sd_student(tmp_path)
    DDIMScheduler(steps_offset=1, clip_sample=False, set_alpha_to_one=False).save_pretrained(
        tmp_path / "scheduler"
    )
    with pytest.raises(StudentError, match=r"timestep_spacing .* is 'leading'.* needs 'trailing'"):
        load_student(tmp_path)


def test_anybodys_one_step_of_the_family_is_named(tmp_path: Path) -> None:
    """As SD-Turbo: the step of SDXL-Turbo on the smaller pipeline."""
    save_tiny_sd_student(tmp_path, 999)
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path)
    pipeline.scheduler = DDIMScheduler(**SCHEDULE, clip_sample=False, steps_offset=1)
    pipeline.save_pretrained(tmp_path)
    task = open_task(Source(tmp_path, "turbo"))
    cases = draw_cases(task, task.signature(()), rows=2)
    assert close(cases.torch_pictures, cases.stock_pictures)


def test_ddim_with_a_timestep_of_ones_own_is_refused_for_lcm(folder: Path, tmp_path: Path) -> None:
    text = "scheduler: ddim\ntimestep: 300\nprediction_type: epsilon\n"
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(
        StudentError, match=r"of the recipe 'mine' is 'ddim', .* 'lcm' makes the sa"
    ):
        load_model(Source(folder, tmp_path / "mine.yaml"))
    (tmp_path / "mine.yaml").write_text(text.replace("ddim", "lcm"))
    step = load_model(Source(folder, tmp_path / "mine.yaml")).step
    same = ddim(DDIMScheduler(**SCHEDULE).alphas_cumprod, 300, "epsilon")
    assert step.coefficients.noise == pytest.approx(same.noise, rel=1e-6)
    assert step.coefficients.prediction == pytest.approx(same.prediction, rel=1e-6)


# As SD-Turbo's repository has it; SDXL-Turbo's names the ancestral class.
SD_TURBO = SCHEDULE | {
    "_class_name": "EulerDiscreteScheduler",
    "clip_sample": False,
    "interpolation_type": "linear",
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "sigma_max": None,
    "sigma_min": None,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "trailing",
    "timestep_type": "discrete",
    "trained_betas": None,
    "use_karras_sigmas": False,
}


def test_sd_turbo_says_itself_that_it_is_turbo(tmp_path: Path) -> None:
    folder = save_tiny_sd_student(tmp_path, 999)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SD_TURBO))
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    index["scheduler"] = ["diffusers", "EulerDiscreteScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index))
    task, named = open_task(Source(folder)), load_model(Source(folder, "turbo"))
    assert task.student.step == named.step
    assert (named.step.kind, named.step.timestep, task.notes) == ("turbo", 999, ())
    stock = StableDiffusionPipeline.from_pretrained(folder)
    cases = draw_cases(task, task.signature(()), rows=1)
    assert close(cases.torch_pictures, cases.stock_pictures)
    drawn = stock_picture(stock, "a red circle", 5)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    assert close(stock_pictures(task.student, ["a red circle"], [noise]), drawn)


def test_dmd2_labels_its_noise_by_the_schedules_end(tmp_path: Path) -> None:
    """SD 1.5 by DMD2's own evaluation, without a scheduler: x0 = (z - sqrt(1-ᾱ) ε) / sqrt(ᾱ)."""
    base = save_tiny_sd_student(tmp_path, 999)
    student = load_model(Source(base / "unet", "dmd2", base))
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    text = torch.randn(1, 77, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        F = student.pipeline.unet(z, 999, text).sample
    alpha = DDIMScheduler(**SCHEDULE).alphas_cumprod[999]
    wanted = (z - (1 - alpha).sqrt() * F) / alpha.sqrt()
    assert (student.step.kind, student.step.timestep) == ("dmd2", 999)
    torch.testing.assert_close(clean_latent(z, F, student.step), wanted, rtol=1e-4, atol=1e-4)


def test_a_file_of_ones_own_keeps_its_timestep(folder: Path, tmp_path: Path) -> None:
    text = "scheduler: lcm\ntimestep: 399\nprediction_type: epsilon\n"
    (tmp_path / "dmd2.yaml").write_text(text)
    student = load_model(Source(folder / "unet", tmp_path / "dmd2.yaml", folder))
    assert (student.step.kind, student.step.timestep) == ("dmd2", 399)


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"in_channels": 9}, "in_channels in the student's unet config is 9, and its vae has"),
        (
            {
                "addition_embed_type": "text",
                "addition_embed_type_num_heads": 4,
                "encoder_hid_dim": 32,
            },
            "only None, that of a StableDiffusionPipeline, is supported",
        ),
    ],
)
def test_a_unet_of_another_kind_is_refused_by_name(tmp_path, other, sentence) -> None:
    with pytest.raises(StudentError, match=sentence):
        load_student(save_tiny_sd_student(tmp_path, **other))


def test_an_encoder_with_a_mask_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    file = copy / "text_encoder" / "config.json"
    config = json.loads(file.read_text("utf-8")) | {"use_attention_mask": True}
    file.write_text(json.dumps(config), "utf-8")
    with pytest.raises(StudentError, match="use_attention_mask in the student's text encoder"):
        load_student(copy)


@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_a_unet_in_a_file_takes_the_rest_from_the_base(
    folder: Path, tmp_path: Path, layout: str
) -> None:
    """As DMD2's of SD 1.5, once it is no pickle."""
    unet = StableDiffusionPipeline.from_pretrained(folder).unet
    unet.conv_out.weight.data.mul_(1.5)
    state = unet.state_dict() if layout == "diffusers" else original_unet(unet)
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "u.safetensors")
    found = load_model(Source(tmp_path / "u.safetensors", "lcm", folder)).pipeline.unet.state_dict()
    assert all(torch.equal(found[key], value) for key, value in unet.state_dict().items())


def test_a_lora_draws_what_stock_draws_with_it(tmp_path: Path) -> None:
    """As the card of Hyper-SD's LoRA for SD 1.5 has it."""
    folder = save_tiny_sd_student(tmp_path / "base", 999)
    stock = StableDiffusionPipeline.from_pretrained(folder)
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    out, into = stock.unet.get_submodule(layer).weight.shape
    stem = f"lora_unet_{layer.replace('.', '_')}"
    state = {
        f"{stem}.lora_down.weight": torch.randn(2, into),
        f"{stem}.lora_up.weight": torch.randn(out, 2),
        f"{stem}.alpha": torch.tensor(1.0),
    }
    file = tmp_path / "Hyper-SD15-1step-lora.safetensors"
    save_file(state, file)
    task = open_task(Source(file, "hyper", folder))
    assert (task.student.step.timestep, task.notes) == (999, ())
    cases = draw_cases(task, task.signature(()), rows=2)
    assert close(cases.torch_pictures, cases.stock_pictures)
    stock.load_lora_weights(tmp_path, weight_name=file.name)
    stock.fuse_lora()
    stock.scheduler = TCDScheduler.from_config(stock.scheduler.config)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    (drawn,) = stock_pictures(task.student, ["a red circle"], [noise])
    assert close(stock_picture(stock, "a red circle", 5), drawn)


def test_a_whole_checkpoint_goes_with_sdxl_alone(folder: Path, tmp_path: Path) -> None:
    state = {"model.diffusion_model.a": torch.zeros(1), "conditioner.b": torch.zeros(1)}
    save_file(state, tmp_path / "whole.safetensors")
    with pytest.raises(StudentError, match="StableDiffusionPipeline; a single file is taken toget"):
        open_task(Source(tmp_path / "whole.safetensors", "lcm", folder))


def test_a_pipeline_of_no_family_is_named_with_those_there_are(folder, tmp_path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    index = json.loads((copy / "model_index.json").read_text("utf-8"))
    index["_class_name"] = "FluxPipeline"
    (copy / "model_index.json").write_text(json.dumps(index), "utf-8")
    match = "holds a FluxPipeline; only StableDiffusionXLPipeline, StableDiffusionP"
    with pytest.raises(StudentError, match=match):
        open_task(Source(copy))
