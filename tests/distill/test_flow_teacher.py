"""SD 3 as a teacher, against stock diffusers; the student runs in it with one step."""

from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from tiny_flow import WIDTH, save_tiny_sd3, save_tiny_sd35
from tiny_training import CPU, PROMPTS, draw, silent, tiny_recipe, tiny_samples
from torch import Tensor, nn

from distill.features import FeatureExtractor
from distill.student import make_student, save_student
from distill.teachers.flow import FlowTeacher
from distill.teachers.opening import load_teacher
from distill.teachers.teacher import TeacherError
from distill.train import run_training

LAYERS = ("transformer_blocks.0/2", "transformer_blocks.2")


@pytest.fixture(scope="module", params=[save_tiny_sd3, save_tiny_sd35], ids=["3", "3.5"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return request.param(tmp_path_factory.mktemp("sd3"))


@pytest.fixture(scope="module")
def flow(folder: Path) -> FlowTeacher:
    """Open on the CPU; read only."""
    return load_teacher(folder, CPU)


def stock(pipe: StableDiffusion3Pipeline, prompt: str, seed: int, **how: object) -> Tensor:
    """One picture's latents by the pipeline alone: [1, c, h, w]."""
    generator = torch.Generator("cpu").manual_seed(seed)
    pipe.set_progress_bar_config(disable=True)
    latents: Tensor = pipe(prompt, generator=generator, output_type="latent", **how).images
    return latents


def reopened(folder: Path, teacher: FlowTeacher) -> StableDiffusion3Pipeline:
    """A student's directory in stock diffusers, which must be told where there is no T5."""
    missing = {} if teacher.pipe.text_encoder_3 else {"text_encoder_3": None, "tokenizer_3": None}
    return StableDiffusion3Pipeline.from_pretrained(folder, **missing)


def test_a_frozen_teacher_in_float32_is_loaded(flow: FlowTeacher) -> None:
    assert (flow.latent_shape, flow.size_px, flow.part) == ((16, 8, 8), 64, "transformer")
    assert len(flow.encoders) == (3 if flow.pipe.text_encoder_3 else 2)
    for part in (flow.denoiser, flow.pipe.vae, *flow.encoders):
        assert not part.training
        assert all(p.dtype == torch.float32 and not p.requires_grad for p in part.parameters())


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_samples_are_those_of_the_stock_pipeline(flow: FlowTeacher, guidance: float) -> None:
    made = flow.sample(flow.encode(PROMPTS), [7, 8, 9], 3, guidance)
    assert made.dtype == torch.float32
    for row, (prompt, seed) in enumerate(zip(PROMPTS, (7, 8, 9), strict=True)):
        alone = stock(flow.pipe, prompt, seed, num_inference_steps=3, guidance_scale=guidance)
        assert torch.allclose(made[row], alone[0], atol=1e-4)


def test_guidance_moves_samples(flow: FlowTeacher) -> None:
    condition = flow.encode(["blue"])
    assert not torch.allclose(
        flow.sample(condition, [7], 3, 1.0), flow.sample(condition, [7], 3, 3.0), atol=1e-3
    )


def test_conditions_do_not_depend_on_the_batch(flow: FlowTeacher) -> None:
    together, apart = flow.encode(PROMPTS), flow.encode(PROMPTS, batch=1)
    assert together.parts["prompt"].shape == (3, 77 + 256, WIDTH)
    assert together.parts["pooled"].shape == (3, 48)
    for name, part in together.parts.items():
        assert torch.allclose(part, apart.parts[name], atol=1e-5)
    has_t5 = flow.pipe.text_encoder_3 is not None
    assert bool(together.parts["prompt"][:, 77:].any()) == has_t5


def test_a_prompt_over_clips_limit_is_named_with_its_count(flow: FlowTeacher) -> None:
    flow.encode(["q" * 75])
    with pytest.raises(TeacherError) as error:
        flow.encode(["blue", "q" * 76])
    assert str(error.value) == f"prompt {'q' * 60!r}… has 78 tokens; the limit is 77"


def test_a_prompt_over_t5s_limit_is_named_with_its_count(flow: FlowTeacher) -> None:
    words = "blue " * 60  # a token each for CLIP, five for this T5
    if flow.pipe.tokenizer_3 is None:
        assert len(flow.encode([words])) == 1
        return
    with pytest.raises(TeacherError, match=r"^prompt 'blue .*… has 301 tokens; the limit is 256$"):
        flow.encode([words])


def test_one_step_is_the_step_of_the_saved_pipeline(flow: FlowTeacher, tmp_path: Path) -> None:
    weights = {k: v + 0.02 * draw(*v.shape) for k, v in flow.denoiser.state_dict().items()}
    student = make_student(flow).eval()
    student.load_state_dict(weights)
    save_student(flow, weights, flow.level(None, None), tmp_path / "student")
    pipe = reopened(tmp_path / "student", flow)
    alone = stock(pipe, PROMPTS[0], 3, num_inference_steps=1, guidance_scale=1.0)
    with torch.no_grad():
        own = flow.one_step(student, flow.noise([3]), 1.0, flow.encode(PROMPTS[:1]))
    assert torch.allclose(own, alone, atol=1e-5)
    assert not torch.allclose(own, flow.noise([3]), atol=0.5)


def test_the_students_scheduler_steps_once_from_pure_noise(flow: FlowTeacher) -> None:
    scheduler = flow.student_pipeline(flow.denoiser, 1.0).scheduler
    scheduler.set_timesteps(1)
    assert scheduler.sigmas.tolist() == [1.0, 0.0]
    assert scheduler.timesteps.tolist() == [1000.0]


class PointMass(nn.Module):
    """The velocity of data that is one latent `m`: on its line, v = (x_s − m)/s."""

    def __init__(self, m: Tensor) -> None:
        super().__init__()
        self.m = m

    def forward(self, hidden_states: Tensor, timestep: Tensor, **_: object) -> tuple[Tensor]:
        return ((hidden_states - self.m) / (timestep / 1000).view(-1, 1, 1, 1),)


@pytest.mark.parametrize("level", [1.0, 0.7, 0.1])
def test_data_of_one_point_is_reached_in_one_step_from_any_level(
    flow: FlowTeacher, level: float
) -> None:
    m, condition = draw(1, *flow.latent_shape, seed=4), flow.encode(["blue", "a"])
    made = flow.one_step(PointMass(m), flow.noise([1, 2]), level, condition)
    assert torch.allclose(made, m.expand_as(made), atol=1e-5)


def test_the_feature_pass_noises_at_the_latents_own_scale(flow: FlowTeacher) -> None:
    seen: list[dict[str, Tensor]] = []
    hook = flow.denoiser.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True
    )
    x0, noise = draw(3, *flow.latent_shape), draw(3, *flow.latent_shape, seed=1)
    sigma = torch.tensor([0.02, 0.25, 3.0])
    velocity = flow.feature_pass(x0, noise, sigma, flow.encode(PROMPTS))()
    hook.remove()
    ((x, timestep),) = ((one["hidden_states"], one["timestep"]) for one in seen)
    signal = 1 - timestep.view(-1, 1, 1, 1) / 1000  # 1 − s
    assert torch.allclose(timestep, torch.tensor([19.6078, 200.0, 750.0]), atol=1e-3)
    assert torch.allclose(x / signal - x0, sigma.view(-1, 1, 1, 1) * noise, atol=1e-5)
    assert velocity.shape == x0.shape


def test_pictures_are_shifted_and_scaled_as_stock_decodes_them(flow: FlowTeacher) -> None:
    vae, pictures = flow.pipe.vae, draw(2, 3, 64, 64).clamp(-1, 1)
    with torch.no_grad():
        mean = vae.encode(pictures).latent_dist.mode()
        decoded = vae.decode(draw(2, 16, 8, 8) / 1.5305 + 0.0609).sample
    assert torch.allclose(flow.encode_pictures(pictures), (mean - 0.0609) * 1.5305)
    expected = flow.pipe.image_processor.postprocess(decoded, output_type="pil")
    own = flow.decode(draw(2, 16, 8, 8))
    assert own.shape == (2, 64, 64, 3)
    assert [one.numpy().tobytes() for one in own] == [image.tobytes() for image in expected]
    assert own.float().std() > 10


def hidden_map(flow: FlowTeacher, layer: str, x0: Tensor) -> tuple[object, Tensor]:
    """What a layer returns for latents [n, c, h, w], and the hidden state found in it."""
    seen: list[object] = []
    module = flow.denoiser.get_submodule(layer)
    hook = module.register_forward_hook(lambda _, args, output: seen.append(output))
    condition = flow.encode(["blue"]).repeated(len(x0))
    with torch.no_grad():
        flow.feature_pass(x0, torch.zeros_like(x0), torch.full((len(x0),), 0.1), condition)()
    hook.remove()
    return seen[0], flow.hidden(layer, seen[0])


def test_a_blocks_hidden_state_is_the_pictures_and_not_the_prompts(flow: FlowTeacher) -> None:
    for number in range(3):
        layer = f"transformer_blocks.{number}"
        output, found = hidden_map(flow, layer, draw(2, 16, 8, 8))
        assert isinstance(output, tuple)
        assert (output[0] is None) == (number == 2)  # the last one has no use for the prompt's
        assert found.shape == (2, 32, 4, 4)
        assert torch.equal(found.flatten(2).transpose(1, 2), output[1])


def test_what_is_no_picture_stays_tokens(flow: FlowTeacher) -> None:
    assert hidden_map(flow, "context_embedder", draw(1, 16, 8, 8))[1].shape == (1, 333, 32)
    assert hidden_map(flow, "time_text_embed", draw(1, 16, 8, 8))[1].shape == (1, 32)
    attention = hidden_map(flow, "transformer_blocks.1.attn", draw(1, 16, 8, 8))[1]
    assert attention.shape == (1, 32, 4, 4)  # it returns the picture's first


def test_a_maps_places_are_those_of_the_latent(flow: FlowTeacher) -> None:
    x0 = draw(1, 16, 8, 8)
    moved = x0.clone()
    moved[..., 2:4, 6:8] += 1  # the patch in row 1, column 3
    _, before = hidden_map(flow, "pos_embed", x0)
    _, after = hidden_map(flow, "pos_embed", moved)
    changed = (before != after).any(dim=1)[0]
    assert changed.nonzero().tolist() == [[1, 3]]


def test_the_gradient_reaches_the_sample_through_the_teacher_alone(flow: FlowTeacher) -> None:
    extractor = FeatureExtractor(flow.denoiser, LAYERS, 2, flow.hidden)
    x0 = draw(2, 16, 8, 8).requires_grad_()
    condition = flow.encode(["blue", "a"])
    run = flow.feature_pass(x0, draw(2, 16, 8, 8, seed=1), torch.tensor([0.1, 0.05]), condition)
    features = extractor(run, x0)
    assert [tuple(phi.shape) for phi in features.values()] == [(2, 1, 128), (2, 1, 128)]
    sum(phi.square().sum() for phi in features.values()).backward()
    assert x0.grad is not None
    assert bool((x0.grad.abs().amax(dim=(0, 1)) > 0).all())
    assert all(parameter.grad is None for parameter in flow.denoiser.parameters())


WAYS = ["train.checkpointing=true", "student.lora={rank: 2}"]


@pytest.mark.parametrize("way", WAYS)
def test_it_is_distilled_like_any_other(folder: Path, tmp_path: Path, way: str) -> None:
    teacher = load_teacher(folder, CPU)
    layers = f"drift.layers=[{', '.join(LAYERS)}]"
    short = ("train.steps=2", "train.accumulate=1", "train.precision=bf16")
    recipe = tiny_recipe(tmp_path, folder, *short, layers, way)
    student = run_training(teacher, tiny_samples(teacher), recipe, silent)
    made = SD3Transformer2DModel.from_pretrained(student / "transformer")
    weights, own = made.state_dict(), teacher.denoiser.state_dict()
    assert weights.keys() == own.keys()
    assert all(value.isfinite().all() for value in weights.values())
    assert any(not torch.equal(value, own[name]) for name, value in weights.items())
    pipe = reopened(student, teacher)
    latents = stock(pipe, "blue", 0, num_inference_steps=1, guidance_scale=1.0)
    with torch.no_grad():
        expected = teacher.one_step(made, teacher.noise([0]), 1.0, teacher.encode(["blue"]))
    assert torch.allclose(latents, expected, atol=1e-5)
