"""The teacher against stock diffusers, and the directories that it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from edited import edit
from tiny_training import CPU, PROMPTS, draw

from distill.teachers.opening import load_teacher
from distill.teachers.sdxl import SdxlTeacher
from distill.teachers.teacher import Condition, TeacherError


@pytest.fixture
def copy(tiny_sdxl: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_sdxl, tmp_path / "teacher")


def stock_latents(teacher: SdxlTeacher, prompt: str, seed: int, guidance: float) -> torch.Tensor:
    latents: torch.Tensor = teacher.pipe(
        prompt,
        num_inference_steps=3,
        guidance_scale=guidance,
        generator=torch.Generator("cpu").manual_seed(seed),
        output_type="latent",
    ).images
    return latents


def test_a_frozen_teacher_in_float32_is_loaded(teacher: SdxlTeacher) -> None:
    assert (teacher.latent_shape, teacher.size_px) == ((4, 8, 8), 64)
    assert teacher.prediction_type == "epsilon"
    for part in (teacher.denoiser, teacher.pipe.vae, teacher.pipe.text_encoder_2):
        assert not part.training
        assert all(p.dtype == torch.float32 and not p.requires_grad for p in part.parameters())


def test_a_teacher_in_half_precision_becomes_float32(teacher: SdxlTeacher, copy: Path) -> None:
    half = UNet2DConditionModel.from_pretrained(copy / "unet", dtype=torch.float16)
    half.save_pretrained(copy / "unet")
    weights, own = load_teacher(copy, CPU).denoiser.state_dict(), teacher.denoiser.state_dict()
    assert all(value.dtype == torch.float32 for value in weights.values())
    assert torch.allclose(weights["conv_in.weight"], own["conv_in.weight"], atol=1e-3)


@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.5])
def test_samples_are_those_of_the_stock_pipeline(teacher: SdxlTeacher, guidance: float) -> None:
    condition = teacher.encode(PROMPTS)
    made = teacher.sample(condition, [7, 8, 9], 3, guidance)
    assert made.dtype == torch.float32
    for row, (prompt, seed) in enumerate(zip(PROMPTS, (7, 8, 9), strict=True)):
        stock = stock_latents(teacher, prompt, seed, guidance)
        assert torch.allclose(made[row], stock[0], atol=1e-4)


def test_the_empty_prompt_guides_where_the_pipeline_says_so(
    teacher: SdxlTeacher, copy: Path
) -> None:
    edit(copy / "model_index.json", force_zeros_for_empty_prompt=False)
    other = load_teacher(copy, CPU)
    made = other.sample(other.encode(["blue"]), [7], 3, 4.0)
    assert torch.allclose(made, stock_latents(other, "blue", 7, 4.0), atol=1e-4)
    assert not torch.allclose(made, stock_latents(teacher, "blue", 7, 4.0), atol=1e-2)


def test_a_sample_depends_on_its_own_seed_and_prompt_alone(teacher: SdxlTeacher) -> None:
    made = teacher.sample(teacher.encode(["blue", "red", "blue"]), [3, 4, 3], 2, 2.0)
    assert torch.allclose(made[0], made[2], atol=1e-5)
    assert not torch.allclose(made[0], made[1], atol=0.1)


def test_conditions_are_picked_and_repeated_by_item() -> None:
    condition = Condition({"prompt": draw(3, 5, 2), "pooled": draw(3, 4)})
    twice = condition.repeated(2)
    assert torch.equal(twice.parts["prompt"], condition.parts["prompt"][[0, 0, 1, 1, 2, 2]])
    assert torch.equal(twice.parts["pooled"], condition.parts["pooled"][[0, 0, 1, 1, 2, 2]])
    assert torch.equal(condition[torch.tensor([2])].parts["pooled"], condition.parts["pooled"][2:])


def test_conditions_do_not_depend_on_the_batch(teacher: SdxlTeacher) -> None:
    together, apart = teacher.encode(PROMPTS), teacher.encode(PROMPTS, batch=1)
    assert together.parts["prompt"].shape == (3, 77, 64)
    assert together.parts["pooled"].shape == (3, 24)
    assert torch.allclose(together.parts["prompt"], apart.parts["prompt"], atol=1e-5)
    assert torch.allclose(together.parts["pooled"], apart.parts["pooled"], atol=1e-5)


def test_a_prompt_over_the_token_limit_is_named(teacher: SdxlTeacher) -> None:
    teacher.encode(["q" * 75])  # 75 tokens and the two that enclose them
    with pytest.raises(TeacherError) as error:
        teacher.encode(["blue", "q" * 76])
    assert str(error.value) == f"prompt {'q' * 60!r}… has 78 tokens; the limit is 77"


def test_the_second_tokenizers_count_is_looked_at_too(copy: Path) -> None:
    edit(copy / "tokenizer_2" / "tokenizer_config.json", model_max_length=5)
    with pytest.raises(TeacherError, match=r"prompt 'a green.* tokens; the limit is 5"):
        load_teacher(copy, CPU).encode(["a green square"])


def test_pictures_are_encoded_to_the_scaled_mean_and_decoded_as_stock_does(
    teacher: SdxlTeacher,
) -> None:
    vae, pictures = teacher.pipe.vae, draw(2, 3, 64, 64).clamp(-1, 1)
    with torch.no_grad():
        mean = vae.encode(pictures).latent_dist.mode() * 0.13025
    latents = teacher.encode_pictures(pictures)
    assert torch.equal(latents, mean)
    decoded = teacher.decode(4 * draw(2, 4, 8, 8))
    with torch.no_grad():
        stock = vae.decode(4 * draw(2, 4, 8, 8) / 0.13025).sample
    expected = teacher.pipe.image_processor.postprocess(stock, output_type="pil")
    assert decoded.shape == (2, 64, 64, 3)
    for own, image in zip(decoded, expected, strict=True):
        assert own.numpy().tobytes() == image.tobytes()


def test_the_feature_pass_noises_each_sample_to_its_level(teacher: SdxlTeacher) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    hook = teacher.denoiser.register_forward_pre_hook(lambda _, args: seen.append(args))
    x0, noise, sigma = draw(2, 4, 8, 8), draw(2, 4, 8, 8, seed=1), torch.tensor([0.05, 1.16])
    prediction = teacher.feature_pass(x0, noise, sigma, teacher.encode(PROMPTS[:2]))()
    hook.remove()
    ((x, t),) = seen
    abar = teacher.pipe.scheduler.alphas_cumprod[t.long()].view(-1, 1, 1, 1)
    assert torch.allclose(x, abar.sqrt() * x0 + (1 - abar).sqrt() * noise, atol=1e-6)
    assert torch.allclose(((1 - abar) / abar).sqrt().flatten(), sigma, rtol=0.1)
    assert prediction.shape == x0.shape


def no_directory(folder: Path) -> None:
    shutil.rmtree(folder)


def no_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def torn_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("{")


def no_denoiser(folder: Path) -> None:
    shutil.rmtree(folder / "unet")


def torn_weights(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def torn_text_encoder(folder: Path) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def another_pipeline(folder: Path) -> None:
    edit(folder / "model_index.json", _class_name="StableDiffusionXLImg2ImgPipeline")


def flow_scheduler(folder: Path) -> None:
    name = "FlowMatchEulerDiscreteScheduler"
    edit(folder / "model_index.json", scheduler=["diffusers", name])
    config = {"_class_name": name, "num_train_timesteps": 1000}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))


def odd_prediction(folder: Path) -> None:
    edit(folder / "scheduler" / "scheduler_config.json", prediction_type="score")


REFUSED = [
    (no_directory, "does not exist; it must be a diffusers directory"),
    (no_index, "has no model_index.json, so it is no pipeline"),
    (torn_index, "cannot be opened: .*model_index.json"),
    (no_denoiser, "cannot be opened: no unet"),
    (torn_weights, "cannot be opened: .*unet/diffusion_pytorch_model.safetensors"),
    (torn_text_encoder, "cannot be opened: Error while deserializing"),
    (another_pipeline, "holds StableDiffusionXLImg2ImgPipeline; supported so far: Consist"),
    (flow_scheduler, "scheduler FlowMatchEulerDiscreteScheduler has no alphas_cumprod"),
    (odd_prediction, "prediction type 'score' is not one of epsilon, v_prediction, sample"),
]


@pytest.mark.parametrize(("damage", "sentence"), REFUSED)
def test_a_directory_that_is_no_teacher_is_named_with_the_reason(
    copy: Path, damage: Callable[[Path], None], sentence: str
) -> None:
    damage(copy)
    with pytest.raises(TeacherError, match=sentence) as error:
        load_teacher(copy, CPU)
    assert str(error.value).startswith(f"teacher.model: {copy} ")
    assert "\n" not in str(error.value)


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("")
    with pytest.raises(TeacherError, match="it must be a diffusers directory"):
        load_teacher(tmp_path / "model", CPU)


def test_a_student_is_labelled_with_a_timestep_of_the_schedule(teacher: SdxlTeacher) -> None:
    assert (teacher.level(None, None), teacher.level(700, None)) == (399, 700)
    with pytest.raises(TeacherError, match=r"^student\.timestep is 1000, allowed is 0 to 999$"):
        teacher.level(1000, None)
    with pytest.raises(TeacherError, match=r"^student\.sigma is 80, but .* set student\.timestep$"):
        teacher.level(None, 80.0)
