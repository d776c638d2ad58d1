"""A class-conditional EDM as a teacher: formulas, sampler, the student in stock diffusers."""

import math
from pathlib import Path

import pytest
import torch
from diffusers import CMStochasticIterativeScheduler, DiffusionPipeline, UNet2DModel
from diffusers.pipelines.consistency_models import ConsistencyModelPipeline
from edited import edit
from tiny_classes import CLASSES, save_tiny_edm
from tiny_training import CPU, draw, silent, tiny_recipe
from torch import Tensor

from distill.data import Samples
from distill.features import FeatureExtractor
from distill.run import distil
from distill.student import save_student
from distill.teachers.edm import EdmTeacher, heun, heun_sigmas, preconditioning, timestep
from distill.teachers.opening import load_teacher
from distill.teachers.teacher import TeacherError
from distill.train import run_training

SEEDS = [3, 4, 5]
LABELS = ("0", "3", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_edm(tmp_path_factory.mktemp("edm") / "teacher")


@pytest.fixture(scope="module")
def edm(folder: Path) -> EdmTeacher:
    teacher = load_teacher(folder, CPU)
    assert isinstance(teacher, EdmTeacher)
    return teacher


def test_conditions_are_class_numbers(edm: EdmTeacher) -> None:
    assert edm.encode(LABELS).parts["label"].tolist() == [0, 3, 1]
    assert not edm.prompted


@pytest.mark.parametrize("text", ["4", "-1", "a red circle", "", "1.0", "٣"])
def test_a_class_that_is_none_is_named(edm: EdmTeacher, text: str) -> None:
    with pytest.raises(TeacherError, match=f"^class '{text}' is not .* numbers 0 to 3$"):
        edm.encode(["0", text])


def test_a_student_is_labelled_with_a_sigma_of_the_schedule(edm: EdmTeacher) -> None:
    assert (edm.level(None, None), edm.level(None, 2.5), edm.last_level) == (80.0, 2.5, 80.0)
    with pytest.raises(TeacherError, match=r"^student\.sigma is 81, allowed is above 0, up to 80$"):
        edm.level(None, 81.0)
    with pytest.raises(TeacherError, match=r"^student\.timestep is 399, .* set student\.sigma$"):
        edm.level(399, None)


def test_preconditioning_keeps_unit_variance_and_meets_both_ends() -> None:
    sigma = torch.tensor([1e-6, 0.002, 0.5, 80.0])
    c_skip, c_out, c_in = preconditioning(sigma, 0.5)
    assert torch.allclose(c_in**2 * (sigma**2 + 0.25), torch.ones(4))
    # Clean data y and F of variance 1: D - y has the variance c_out², which no c_skip makes less.
    assert torch.allclose((1 - c_skip) ** 2 * 0.25 + c_skip**2 * sigma**2, c_out**2, rtol=1e-4)
    assert c_skip[0] == 1
    assert timestep(torch.tensor([1.0, math.e**4])).tolist() == [0.0, pytest.approx(1000.0)]


def test_the_denoiser_is_told_the_class_and_the_level(edm: EdmTeacher) -> None:
    x = draw(1, 3, 16, 16)
    one, other = edm.encode(["1"]), edm.encode(["2"])
    with torch.no_grad():
        base = edm.clean(edm.denoiser, x, 1.0, one)
        assert (edm.clean(edm.denoiser, x, 1.0, other) - base).abs().max() > 1e-3
        assert (edm.clean(edm.denoiser, x, 2.0, one) - base).abs().max() > 1e-3
        assert torch.allclose(edm.clean(edm.denoiser, x, 1e-5, one), x, atol=1e-4)


@pytest.mark.parametrize("level", [80.0, 30.0, 0.7])
def test_one_step_is_the_step_of_the_saved_pipeline(
    edm: EdmTeacher, tmp_path: Path, level: float
) -> None:
    save_student(edm, edm.denoiser.state_dict(), level, tmp_path / "student")
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "student")
    assert isinstance(pipe, ConsistencyModelPipeline)
    pipe.set_progress_bar_config(disable=True)
    stock = pipe(
        batch_size=3,
        class_labels=[int(label) for label in LABELS],
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in SEEDS],
        output_type="pt",
    ).images
    with torch.no_grad():
        own = edm.one_step(edm.denoiser, edm.noise(SEEDS), level, edm.encode(LABELS))
    assert own.std() > 0.05
    assert torch.allclose((own / 2 + 0.5).clamp(0, 1), stock, rtol=0, atol=1e-5)


def test_heuns_method_solves_the_flow_of_gaussian_data() -> None:
    s = 0.5
    noise = draw(64, seed=1)

    def error(steps: int) -> float:
        def clean(x: Tensor, sigma: float) -> Tensor:
            return x * s**2 / (s**2 + sigma**2)

        found = heun(clean, noise.double(), heun_sigmas(steps, 0.002, 80.0, 7.0))
        exact = 80.0 * noise.double() * s / math.sqrt(s**2 + 80.0**2)
        return float((found - exact).abs().max() / exact.abs().max())

    assert error(288) < 2e-4
    assert error(72) / error(144) == pytest.approx(4, rel=0.2)  # second order


def test_noise_levels_are_those_of_the_paper() -> None:
    sigmas = heun_sigmas(18, 0.002, 80.0, 7.0)
    assert sigmas[0] == pytest.approx(80.0)
    assert sigmas[9] == pytest.approx(
        ((80 ** (1 / 7)) + 9 / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    )
    assert sigmas[-2:] == [pytest.approx(0.002), 0.0]
    assert heun_sigmas(1, 0.002, 80.0, 7.0) == [80.0, 0.0]


def test_a_sample_depends_on_its_seed_and_class_alone(edm: EdmTeacher) -> None:
    together = edm.sample(edm.encode(LABELS), SEEDS, 4)
    alone = edm.sample(edm.encode(LABELS[1:2]), SEEDS[1:2], 4)
    assert torch.allclose(together[1:2], alone, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-2
    one = edm.sample(edm.encode(LABELS), SEEDS, 1, 0.0)
    with torch.no_grad():
        step = edm.one_step(edm.denoiser, edm.noise(SEEDS), 80.0, edm.encode(LABELS))
    assert torch.allclose(one, step, atol=1e-4)  # x - 80 (x - D)/80, with x of size 80


def test_guidance_is_refused(edm: EdmTeacher) -> None:
    with pytest.raises(TeacherError, match=r"^teacher\.guidance_scale is 5, .*allowed is 0 or 1$"):
        edm.sample(edm.encode(["0"]), [1], 4, 5.0)


def test_a_student_is_no_teacher_to_sample(edm: EdmTeacher, tmp_path: Path) -> None:
    save_student(edm, edm.denoiser.state_dict(), 80.0, tmp_path / "student")
    student = load_teacher(tmp_path / "student", CPU)
    with pytest.raises(TeacherError, match=r"a one-step student \(its sigma_min is 0\), not to be"):
        student.sample(student.encode(["0"]), [1], 4, 1.0)


def test_pictures_are_latents_already(edm: EdmTeacher) -> None:
    levels = torch.arange(256, dtype=torch.uint8).repeat(9)[: 3 * 16 * 16].view(1, 3, 16, 16)
    latents = edm.encode_pictures(levels.float() / 127.5 - 1)
    assert latents.shape[1:] == edm.latent_shape == (3, 16, 16)
    assert torch.equal(edm.decode(latents), levels.permute(0, 2, 3, 1))


def test_features_carry_a_gradient_to_the_picture_and_to_no_weight(edm: EdmTeacher) -> None:
    x = draw(2, 3, 16, 16).requires_grad_(True)
    sigma = torch.tensor([0.05, 0.1])
    run = edm.feature_pass(x, draw(2, 3, 16, 16, seed=1), sigma, edm.encode(["0", "1"]))
    read = FeatureExtractor(
        edm.denoiser, ["down_blocks.1.attentions.0", "mid_block"], 2, edm.hidden
    )
    features = read(run, x)
    assert {name: phi.shape[-1] for name, phi in features.items()} == {
        "down_blocks.1.attentions.0": 32 * 16,
        "mid_block": 32 * 16,
    }
    sum(phi.sum() for phi in features.values()).backward()
    assert x.grad is not None
    assert x.grad.abs().min(0).values.max() > 0
    assert all(p.grad is None for p in edm.denoiser.parameters())


def test_digests_tell_weights_and_noise_levels_apart(edm: EdmTeacher, tmp_path: Path) -> None:
    other = CMStochasticIterativeScheduler(sigma_max=40.0)
    changed = load_teacher(save_tiny_edm(tmp_path / "levels", other), CPU)
    assert changed.sampling_digest() != edm.sampling_digest()
    assert changed.picture_digest() == edm.picture_digest()
    larger = load_teacher(save_tiny_edm(tmp_path / "larger", sample_size=32), CPU)
    assert larger.picture_digest() != edm.picture_digest()


@pytest.mark.parametrize(
    ("scheduler", "unet", "sentence"),
    [
        ({}, {"num_class_embeds": None}, "no num_class_embeds, so it is not class-conditional"),
        ({}, {"in_channels": 4, "out_channels": 4}, "has 4 channels and 'positional'"),
        ({"sigma_data": 0.0}, {}, "has sigma_min 0.002, sigma_max 80 and sigma_data 0; they must"),
    ],
)
def test_a_pipeline_of_another_kind_is_refused(
    tmp_path: Path, scheduler: dict[str, float], unet: dict[str, object], sentence: str
) -> None:
    folder = save_tiny_edm(tmp_path / "teacher", **unet)
    edit(folder / "scheduler" / "scheduler_config.json", **scheduler)
    with pytest.raises(
        TeacherError, match=f"^teacher.model: {folder} cannot be opened: .*{sentence}"
    ):
        load_teacher(folder, CPU)


def test_another_scheduler_is_refused(folder: Path) -> None:
    pipe = ConsistencyModelPipeline.from_pretrained(folder)
    pipe.register_modules(scheduler=pipe.unet)
    with pytest.raises(TypeError, match="its scheduler is UNet2DModel; supported is CMStochastic"):
        EdmTeacher(pipe, CPU)


def test_it_is_distilled_like_any_other(folder: Path, tmp_path: Path) -> None:
    teacher = load_teacher(folder, CPU)
    labels = tuple(str(label) for label in range(CLASSES))
    members = torch.split(torch.arange(CLASSES * 10), 10)
    pictures = draw(CLASSES * 10, 3, 16, 16, seed=5).clamp(-1, 1)
    samples = Samples(labels, teacher.encode(labels), pictures, tuple(members))
    layers = "drift.layers=[down_blocks.1.attentions.0, mid_block, up_blocks.0.attentions.1]"
    recipe = tiny_recipe(tmp_path, folder, "train.steps=3", layers, "student.sigma=60")
    student = run_training(teacher, samples, recipe, silent)
    moved = UNet2DModel.from_pretrained(student / "unet").conv_in.weight
    assert not torch.equal(moved, teacher.denoiser.conv_in.weight)
    assert moved.isfinite().all()
    assert ConsistencyModelPipeline.from_pretrained(student).scheduler.config.sigma_max == 60


def test_a_recipe_of_classes_makes_its_bank_and_its_student(folder: Path, tmp_path: Path) -> None:
    own = ("positives.prompts=classes.txt", "teacher.guidance_scale=1", "train.steps=2")
    layers = "drift.layers=[down_blocks.1.attentions.0, mid_block]"
    recipe = tiny_recipe(tmp_path, folder, *own, layers)
    (tmp_path / "classes.txt").write_text("2\n0\n3\n")
    lines: list[str] = []
    student = distil(recipe, lines.append)
    assert any("3 prompts, 10 teacher samples each" in line for line in lines)
    config = ConsistencyModelPipeline.from_pretrained(student).scheduler.config
    assert (config.sigma_max, config.sigma_min) == (80.0, 0.0)
    (tmp_path / "classes.txt").write_text("2\n4\n")
    with pytest.raises(TeacherError, match=r"^class '4' is not one of"):
        distil(recipe.model_copy(update={"run": tmp_path / "another"}), silent)
    assert not (tmp_path / "another").exists()  # so that a mended file may be used there
