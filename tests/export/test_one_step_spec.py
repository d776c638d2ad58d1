"""A recipe file of the user's own: what it means, and every way in which it can be wrong."""

from pathlib import Path

import pytest
import torch
from micro import micro_unet, save_micro_sdxl
from safetensors.torch import save_file

from export.errors import StudentError
from export.model.foreign import Source
from export.model.measured_look import look_at, looks_like
from export.model.one_step import clean_latent
from export.model.spec import read_spec
from export.model.stock import stock_latent
from export.model.student import load_model

LIGHTNING = "scheduler: euler\ntimestep: 999\nprediction_type: sample\ninput_scale: sigma\n"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_micro_sdxl(tmp_path_factory.mktemp("micro") / "base")


def written(folder: Path, text: str) -> Path:
    (folder / "mine.yaml").write_text(text)
    return folder / "mine.yaml"


def test_a_file_can_say_what_a_kind_says(base: Path, tmp_path: Path) -> None:
    ours = load_model(Source(base, str(written(tmp_path, LIGHTNING)))).step
    named = load_model(Source(base, "lightning")).step
    assert (ours.kind, ours.timestep, ours.prediction_type) == ("mine", 999, "sample")
    assert ours.coefficients == named.coefficients


@pytest.mark.parametrize(
    "text",
    [
        LIGHTNING,
        "scheduler: euler\ntimestep: 700\nprediction_type: v_prediction",
        "scheduler: ddim\ntimestep: 650\nprediction_type: v_prediction",
        "scheduler: lcm\ntimestep: 249\nprediction_type: epsilon",
        "scheduler: tcd\ntimestep: 800\nprediction_type: epsilon",
    ],
)
def test_every_scheduler_of_a_file_is_called_as_stock_calls_it(
    base: Path, tmp_path: Path, text: str
) -> None:
    student = load_model(Source(base, written(tmp_path, text)))
    seen: list[torch.Tensor] = []
    student.pipeline.unet.register_forward_hook(lambda _, x, y: seen.append(y[0]))
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    latent = stock_latent(student, "x", z)
    ours = clean_latent(z, seen[0], student.step)
    torch.testing.assert_close(ours, latent, rtol=1e-5, atol=2e-5)
    assert f"timestep: {student.step.timestep}\n" in text


def test_a_guidance_scale_needs_a_unet_that_takes_one(base: Path, tmp_path: Path) -> None:
    file = written(tmp_path, LIGHTNING + "guidance_scale: 3")
    with pytest.raises(StudentError, match="guidance_scale of the recipe 'mine' is 3, and the"):
        load_model(Source(base, file))
    save_file(micro_unet(seed=9, time_cond_proj_dim=4).state_dict(), tmp_path / "u.safetensors")
    student = load_model(Source(tmp_path / "u.safetensors", file, base))
    assert student.recipe.guidance_scale == 3


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (LIGHTNING + "steps: 1", "unknown key 'steps'; allowed are scheduler, timestep"),
        ("scheduler: lcm\ntimestep: 5", "mine.yaml: the key 'prediction_type' is missing"),
        (LIGHTNING.replace("euler", "heun"), "scheduler is 'heun': .*'ddim', 'euler', 'lcm'"),
        (LIGHTNING.replace("999", "-1"), "timestep is -1: .* greater than or equal to 0"),
        (LIGHTNING.replace("999", "'999'"), "timestep is '999': .* valid integer"),
        (LIGHTNING.replace("euler", "lcm"), "input_scale is 'sigma' with scheduler 'lcm'; only"),
        (LIGHTNING + "guidance_scale: .nan", "guidance_scale is nan"),
        ("a: [", r"mine.yaml is not valid YAML"),
        ("", "the file is None"),
    ],
)
def test_a_faulty_file_is_refused_in_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(StudentError, match=sentence):
        read_spec(written(tmp_path, text))


def test_a_missing_file_and_a_timestep_beyond_the_schedule(base: Path, tmp_path: Path) -> None:
    with pytest.raises(StudentError, match=r"none.yaml', and there is no such file"):
        load_model(Source(base, "none.yaml"))
    file = written(tmp_path, LIGHTNING.replace("999", "1000").replace("euler", "lcm")[:-19])
    with pytest.raises(StudentError, match=r"the recipe 'mine' is 1000; .* between 0 and 999"):
        load_model(Source(base, file))


NOISE = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1))
OTHER = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("latents", "sentence"),
    [
        (NOISE, "look like the noise they come from (correlation 1.00)"),
        (0.5 * OTHER, "look faint (deviation 0.49"),
        (3 * OTHER, "look overdriven (deviation 2.95"),
    ],
)
def test_latents_that_no_one_step_model_has_are_noted(latents: torch.Tensor, sentence: str) -> None:
    (note,) = looks_like(NOISE, latents)
    assert sentence in note
    assert list(looks_like(NOISE, OTHER)) == []


def test_the_shapes_teacher_given_as_one_step_looks_like_a_many_step_model() -> None:
    teacher = Path(__file__).parents[2] / "examples" / "shapes" / "teacher"
    prompts = ["a small red circle on the left", "a red shape", "a large blue square", ""]
    for kind, word in (("lightning", "the noise"), ("dmd2", "faint"), ("hyper", "faint")):
        (note,) = look_at(load_model(Source(teacher, kind)), prompts)
        assert word in note
