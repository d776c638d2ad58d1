"""One-step models of other people, in every form they are published in."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from micro import micro_unet, save_micro_sdxl
from original_layout import original_checkpoint, original_unet
from safetensors.torch import save_file

from export.errors import StudentError
from export.model.foreign import Source
from export.model.looks import name_of
from export.model.student import Student, load_model
from export.options import Options
from export.origin import origin_of

Save = Callable[..., Path]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_micro_sdxl(tmp_path_factory.mktemp("micro") / "base")


@pytest.fixture(scope="module")
def whole(base: Path) -> Any:
    """The base with a UNet of other weights: what every form must come down to."""
    pipe = StableDiffusionXLPipeline.from_pretrained(base, unet=micro_unet(seed=9))
    with torch.no_grad():
        for part in (pipe.vae.decoder, pipe.text_encoder, pipe.text_encoder_2):
            next(part.parameters()).mul_(1.25)
    return pipe


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Write a state dict as a safetensors file."""

    def write(state: dict[str, torch.Tensor], name: str = "model.safetensors") -> Path:
        save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / name)
        return tmp_path / name

    return write


def assert_same(left: Any, right: Any) -> None:
    ours, theirs = left.state_dict(), right.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_unet_directory_takes_the_rest_from_the_base(base: Path, tmp_path: Path) -> None:
    unet = micro_unet(seed=9)
    unet.save_pretrained(tmp_path)
    student = load_model(Source(tmp_path, "dmd2", base))
    assert_same(student.pipeline.unet, unet)
    assert (student.step.kind, student.step.timestep, student.size_px) == ("dmd2", 399, 16)
    assert type(student.pipeline.scheduler).__name__ == "LCMScheduler"
    assert student.notes == ()


@pytest.mark.parametrize("layout", ["diffusers", "original", "bare original"])
def test_a_unet_file_is_read_in_all_three_layouts(base: Path, save: Save, layout: str) -> None:
    unet = micro_unet(seed=9)
    state = unet.state_dict() if layout == "diffusers" else original_unet(unet)
    if layout == "bare original":
        state = {key.removeprefix("model.diffusion_model."): value for key, value in state.items()}
    student = load_model(Source(save(state), "hyper", base))
    assert_same(student.pipeline.unet, unet)
    assert student.step.timestep == 800


def test_a_whole_checkpoint_of_the_original_layout(base: Path, save: Save, whole: Any) -> None:
    student = load_model(Source(save(original_checkpoint(whole)), "lightning", base))
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        assert_same(getattr(student.pipeline, part), getattr(whole, part))
    assert student.step.prediction_type == "sample"


def test_a_checkpoint_without_a_vae_takes_the_bases(base: Path, save: Save, whole: Any) -> None:
    state = original_checkpoint(whole)
    file = save({key: value for key, value in state.items() if "first_stage_model" not in key})
    pipeline = load_model(Source(file, "lightning", base, vae_dtype=torch.bfloat16)).pipeline
    for part in ("unet", "text_encoder", "text_encoder_2"):
        assert_same(getattr(pipeline, part), getattr(whole, part))
    assert_same(pipeline.vae, AutoencoderKL.from_pretrained(base / "vae", dtype=torch.bfloat16))


def test_parts_are_loaded_in_the_types_asked_for(base: Path, save: Save, whole: Any) -> None:
    file = save(original_checkpoint(whole))
    for model in (base, file):
        source = Source(model, "dmd2", base, dtype=torch.float16, vae_dtype=torch.bfloat16)
        pipeline = load_model(source).pipeline
        halves = (pipeline.unet, pipeline.text_encoder, pipeline.text_encoder_2)
        assert {p.dtype for part in halves for p in part.parameters()} == {torch.float16}
        assert {p.dtype for p in pipeline.vae.parameters()} == {torch.bfloat16}
        assert not any(p.requires_grad for p in pipeline.unet.parameters())


def test_a_guided_unet_file_brings_its_guidance_embedding(base: Path, save: Save) -> None:
    file = save(micro_unet(seed=9, time_cond_proj_dim=6).state_dict())
    student = load_model(Source(file, "lcm", base))
    assert student.pipeline.unet.config.time_cond_proj_dim == 6
    assert student.recipe.guidance_scale == 8
    with pytest.raises(
        StudentError, match="is 6: it takes a guidance scale, and the recipe 'dmd2'"
    ):
        load_model(Source(file, "dmd2", base))


@pytest.mark.parametrize(
    ("dropped", "sentence"),
    [
        ("first_stage_model.decoder.conv_in.weight", "AutoencoderKL .* it lacks 1 of 124 tensors"),
        ("conditioner.embedders.1.model.ln_final.weight", "lacks 1 of 37 .* text_encoder_2: text_"),
        ("model.diffusion_model.label_emb.0.0.weight", "lacks the tensor label_emb.0.0.weight"),
        ("model.diffusion_model.out.2.bias", "UNet.* lacks 1 of 212 tensors: conv_out.bias"),
        (
            "conditioner.embedders.0.transformer.text_model.embeddings.position_embedding.weight",
            "cannot be loaded: .* valid CLIP model",
        ),
    ],
)
def test_a_checkpoint_that_lacks_a_tensor_is_refused_by_name(
    base: Path, save: Save, whole: Any, dropped: str, sentence: str
) -> None:
    state = original_checkpoint(whole)
    del state[dropped]
    with pytest.raises(StudentError, match=sentence):
        load_model(Source(save(state), "dmd2", base))


def test_missing_unknown_and_misshapen_tensors_are_all_told(base: Path, save: Save) -> None:
    state = micro_unet(seed=9).state_dict()
    missing = [key for key in state if key.startswith("mid_block")]
    state = {key: value for key, value in state.items() if key not in missing}
    state["conv_in.bias"], state["foreign"] = torch.zeros(3), torch.zeros(1)
    sentence = rf"lacks {len(missing)} of 212 .*, …; .* unknown 1 .* foreign; .*bias \[3\] instead"
    with pytest.raises(StudentError, match=sentence):
        load_model(Source(save(state), "dmd2", base))


@pytest.mark.parametrize(
    ("name", "state", "sentence"),
    [
        ("sd1", {"cond_stage_model.a": 1, "model.diffusion_model.b": 1}, "Stable Diffusion 1 or 2"),
        (
            "sd_turbo",
            {"conditioner.embedders.0.model.ln_final.bias": 1, "model.diffusion_model.b": 1},
            "looks like Stable Diffusion 2, as SD-Turbo's file, or like SDXL's refiner",
        ),
        (
            "no text",
            {"first_stage_model.a": 1, "model.diffusion_model.b": 1},
            "has a UNet and a VAE, but no text encoders .* or a UNet alone with the VAE by --vae",
        ),
        (
            "vae",
            {"encoder.conv": 1, "decoder.conv": 1},
            "neither .* 2 tensors named decoder.conv, enc",
        ),
    ],
)
def test_a_file_of_another_kind_is_refused(
    base: Path, save: Save, name: str, state: dict[str, int], sentence: str
) -> None:
    tensors = {key: torch.zeros(value) for key, value in state.items()}
    with pytest.raises(StudentError, match=sentence):
        load_model(Source(save(tensors, f"{name}.safetensors"), "dmd2", base))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("dmd2_sdxl_1step_unet_fp16.bin", "is a pickle, which can run code .* convert it"),
        ("model.ckpt", "is a pickle"),
        ("model.gguf", "ends in '.gguf'; a single file must be .safetensors"),
        ("cut.safetensors", "cut.safetensors is not a whole safetensors file"),
    ],
)
def test_a_pickle_or_a_broken_file_is_refused_unopened(
    tmp_path: Path, name: str, sentence: str
) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(StudentError, match=sentence):
        load_model(Source(tmp_path / name, "dmd2", tmp_path))


def test_what_is_no_whole_pipeline_needs_a_base(base: Path, tmp_path: Path, save: Save) -> None:
    file = save(micro_unet(seed=9).state_dict())
    with pytest.raises(StudentError, match="is a single file; --base must name"):
        load_model(Source(file, "dmd2"))
    with pytest.raises(StudentError, match=r"the pipeline directory .*nothing does not exist"):
        load_model(Source(file, "dmd2", tmp_path / "nothing"))
    with pytest.raises(StudentError, match=r"has no model_index.json; it is no pipeline directory"):
        load_model(Source(file, "dmd2", base / "unet"))
    with pytest.raises(StudentError, match="is a UNet; --base must name"):
        load_model(Source(base / "unet", "dmd2"))


def test_a_unet_directory_without_weights_is_refused(base: Path, tmp_path: Path) -> None:
    shutil.copy(base / "unet" / "config.json", tmp_path)
    with pytest.raises(StudentError, match=f"the student {tmp_path} cannot be loaded"):
        load_model(Source(tmp_path, "dmd2", base))


def test_an_unknown_kind_is_refused_with_those_there_are(base: Path) -> None:
    with pytest.raises(StudentError, match="'magic'; allowed are turbo, lightning, dmd2, hyper"):
        load_model(Source(base, "magic"))


def test_a_many_step_model_without_a_kind_is_refused(base: Path) -> None:
    with pytest.raises(StudentError, match=r"'leading' .* looks like a many-step model"):
        load_model(Source(base))


def notes(model: Path, kind: str, base: Path | None = None) -> str:
    return "; ".join(load_model(Source(model, kind, base)).notes)


def test_a_model_that_looks_like_another_is_noted(base: Path, save: Save, tmp_path: Path) -> None:
    state = micro_unet(seed=9).state_dict()
    four = save(state, "sdxl_lightning_4step_unet.safetensors")
    assert "looks like a 4-step model by its name" in notes(four, "lightning", base)
    one = save(state, "sdxl_lightning_1step_unet_x0.safetensors")
    assert notes(one, "lightning", base) == ""
    assert "looks like lightning by its name; it is exported as dmd2" in notes(one, "dmd2", base)
    assert "has timestep_spacing='leading', and SDXL-Turbo's has" in notes(base, "turbo")
    assert "looks like the base's own, a many-step model" in notes(base / "unet", "dmd2", base)


def test_a_checkpoint_marked_for_another_prediction_is_noted(
    base: Path, save: Save, whole: Any
) -> None:
    marks = {"v_pred": torch.zeros(1), "edm_mean": torch.ones(1)}
    found = notes(save({**original_checkpoint(whole), **marks}), "dmd2", base)
    assert (
        "the prediction_type v_prediction by its tensor 'v_pred'; it is exported with eps" in found
    )
    assert "the noise schedule EDM's by its tensor 'edm_mean'; it is exported with SDXL's" in found


def test_the_name_is_that_of_the_link_in_a_hubs_cache(base: Path, save: Save) -> None:
    blob = save(micro_unet(seed=9).state_dict(), "0f.safetensors").rename(base.parent / "0f")
    link = base.parent / "snapshots" / "abc" / "sdxl_lightning_4step_unet.safetensors"
    link.parent.mkdir(parents=True)
    link.symlink_to(blob)
    assert "sdxl_lightning_4step_unet.safetensors looks like a 4-step" in notes(link, "dmd2", base)
    origin = origin_of(Source(link, "lightning", base), Options())
    assert (origin["student"], origin["base"]) == (link.name, base.name)


def test_a_snapshot_of_a_hubs_cache_has_its_repositorys_name(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--stabilityai--sdxl-turbo" / "snapshots" / "71153311"
    assert name_of(snapshot) == "sdxl-turbo"
    assert name_of(snapshot / "unet") == "unet"
    assert name_of(tmp_path / "a" / ".." / "b") == "b"
    assert name_of(tmp_path / "a" / "..") == tmp_path.name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_bases_own_unet_is_noted_in_whatever_type(
    base: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    both = shutil.copytree(base, tmp_path / "both")
    own = UNet2DConditionModel.from_pretrained(base / "unet", dtype=torch.float16)
    own.save_pretrained(both / "unet", variant="fp16")
    own.save_pretrained(tmp_path / "half")
    for model in (base / "unet", tmp_path / "half"):
        for folder in (base, both):
            (note,) = load_model(Source(model, "dmd2", folder, dtype=dtype)).notes
            assert "looks like the base's own" in note
    micro_unet(seed=9).save_pretrained(tmp_path / "other")
    assert load_model(Source(tmp_path / "other", "dmd2", both, dtype=dtype)).notes == ()


def test_a_saved_turbo_pipeline_is_recognised(base: Path, tmp_path: Path) -> None:
    load_model(Source(base, "turbo")).pipeline.save_pretrained(tmp_path)
    student: Student = load_model(Source(tmp_path))
    assert (student.step.kind, student.step.timestep) == ("turbo", 999)
    assert student.step.coefficients.input_scale == pytest.approx(0.99767, abs=1e-5)
    np.testing.assert_allclose(student.step.coefficients.noise, 14.61464, rtol=1e-5)
