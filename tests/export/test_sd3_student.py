"""Students of SD 3 and 3.5, with T5 and without: the graph in torch, and what is refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from edited import edit
from safetensors.torch import save_file
from test_decoder import other_vae, tiny_vae
from tiny_flow import save_tiny_flow_student, save_tiny_sd3, save_tiny_sd35, t5_tokenizer
from tokenizers import Tokenizer

from export.errors import DecoderError, SizeError, StudentError
from export.export import export_student
from export.gate.verify import draw_cases
from export.graph.precision import Precision
from export.graph.sd3_module import Sd3Graph, Sd3T5Graph
from export.model.flow import read_flow_step
from export.model.foreign import Source
from export.model.student import load_student
from export.options import Options
from export.repository.describe import describe
from export.repository.tokenizers_json import write_tokenizer
from export.tasks.opening import open_task

KINDS = {"3": (save_tiny_sd3, Sd3T5Graph), "3.5": (save_tiny_sd35, Sd3Graph)}
HALF, FULL = torch.float16, torch.float32


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A student of each; read only."""
    root = tmp_path_factory.mktemp("sd3")
    return {kind: save_tiny_flow_student(root / kind, save) for kind, (save, _) in KINDS.items()}


@pytest.fixture
def copy(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A student with T5 that a test may change."""
    return shutil.copytree(folders["3"], tmp_path / "copy")


def gap(cases) -> np.ndarray:
    """Levels between ours and stock diffusers'."""
    return np.abs(cases.torch_pictures.astype(int) - cases.stock_pictures)


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_draws_the_pictures_of_one_stock_step(folders, kind: str) -> None:
    task = open_task(Source(folders[kind]))
    assert type(task.graph) is KINDS[kind][1]
    assert task.graph.step.timestep == 1000
    cases = draw_cases(task, task.signature(()), rows=4)  # the last is cut by every encoder
    assert gap(cases).max() <= 1
    assert (cases.torch_pictures[0] != cases.torch_pictures[1]).any()


def test_the_step_is_the_schedulers_own_from_noise_to_the_clean_latent(folders) -> None:
    scheduler = load_student(folders["3"]).pipeline.scheduler
    step = read_flow_step(scheduler)
    z, v = torch.randn(2, 1, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    scheduler.set_timesteps(1)
    stock = scheduler.step(v, scheduler.timesteps[0], z).prev_sample
    c = step.coefficients
    assert torch.equal(c.noise * z + c.prediction * v, stock)
    assert (c.input_scale, step.prediction_type) == (1.0, "flow_prediction")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("text", "denoiser"), [(HALF, HALF), (FULL, HALF), (HALF, FULL)])
def test_each_part_has_its_number_type_and_stock_agrees(folders, kind, text, denoiser) -> None:
    task = open_task(Source(folders[kind]), Precision(text, denoiser, FULL))
    named = {HALF: "float16", FULL: "float32"}
    assert task.facts()["precision"] == {
        "text": named[text],
        "transformer": named[denoiser],
        "vae": "float32",
    }
    assert gap(draw_cases(task, task.signature(()), rows=2)).mean() < 0.5


def test_what_t5_keeps_in_float32_beside_float16_stays_so(folders) -> None:
    pipeline = open_task(Source(folders["3"]), Precision(HALF, FULL, FULL)).student.pipeline
    state = pipeline.text_encoder_3.state_dict()
    wide = {name for name, value in state.items() if value.dtype == FULL}
    assert wide == {name for name in state if name.endswith(".wo.weight")} != set()
    whole = load_student(folders["3"]).pipeline.text_encoder_3.state_dict()
    assert all(torch.equal(state[name], whole[name]) for name in wide)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [HALF, torch.bfloat16])
def test_a_16_bit_version_passes_the_gate(folders, tmp_path: Path, dtype: torch.dtype) -> None:
    options = Options(max_batch=2, precision=Precision(dtype, dtype, dtype))
    made = export_student(folders["3"], tmp_path, "sd3", options, report=lambda line: None)
    assert made.parity.level == "bitwise"


@pytest.mark.slow
def test_one_file_draws_several_sizes(folders, tmp_path: Path) -> None:
    options = Options(max_batch=2, sizes=((64, 64), (96, 64)))
    made = export_student(folders["3.5"], tmp_path, "sd3", options, report=lambda line: None)
    assert {batch.size for batch in made.parity.batches} == {(64, 64), (96, 64)}
    assert made.parity.level == "bitwise"


def test_several_sizes_are_multiples_of_a_patch_within_the_positions(folders) -> None:
    task = open_task(Source(folders["3.5"]))
    signature = task.signature(((64, 64), (80, 128)))
    assert signature.inputs[-1].shape == (16, None, None)
    cases = draw_cases(task, signature, rows=2, size=(80, 128))
    assert cases.torch_pictures.shape == (2, 128, 80, 3)
    assert gap(cases).max() <= 1
    for sizes, sentence in (
        (((72, 64),), "size 72x64 does not suit .* must be multiples of 16"),
        (((144, 64),), "size 144x64 is too large; a side is at most 128"),
        (((64, 64), (128, 128)), "have 64 as their common divisor.* 3 of it.* at most 128; add"),
    ):
        with pytest.raises(SizeError, match=sentence):
            task.signature(sizes)


@pytest.mark.parametrize("make", [tiny_vae, other_vae])
def test_another_decoder_is_taken_with_its_scale_and_its_shift(folders, tmp_path, make) -> None:
    shift = {"shift_factor": 0.25}
    vae = make(tmp_path, latent_channels=16, **shift)
    task = open_task(Source(folders["3"]), vae=vae)
    assert task.facts()["decoder"]["shift_factor"] == 0.25
    assert gap(draw_cases(task, task.signature(()), rows=1)).max() <= 1
    edit(vae / "config.json", shift_factor=None)
    with pytest.raises(DecoderError, match=r"shift_factor in the config of vae .* is None; the st"):
        open_task(Source(folders["3"]), vae=vae)


@pytest.mark.parametrize(
    ("part", "changes", "sentence"),
    [
        ("scheduler", {"shift": 3.0}, "shift .* is 3.0; .* needs 1.0: it looks like a many-step"),
        ("scheduler", {"use_dynamic_shifting": True}, "needs False: it looks like a many-step"),
        ("scheduler", {"invert_sigmas": True}, "invert_sigmas .* is True; .* needs False$"),
        ("vae", {"shift_factor": None}, "shift_factor in the student's vae config is None"),
        ("transformer", {"sample_size": [8, 8]}, "cannot be loaded: unsupported operand type"),
    ],
)
def test_settings_the_graph_would_not_honour_are_refused(copy, part, changes, sentence) -> None:
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    edit(copy / part / name, **changes)
    with pytest.raises(StudentError, match=sentence):
        load_student(copy)


def test_another_scheduler_is_refused_by_name(copy: Path) -> None:
    DDIMScheduler().save_pretrained(copy / "scheduler")
    index = copy / "model_index.json"
    edit(index, scheduler=["diffusers", "DDIMScheduler"])
    with pytest.raises(StudentError, match="is a DDIMScheduler; a student of a flow has a FlowM"):
        load_student(copy)


def test_half_a_t5_is_no_t5(copy: Path) -> None:
    edit(copy / "model_index.json", tokenizer_3=[None, None])
    with pytest.raises(StudentError, match="has no tokenizer_3; a one-step graph needs tokenizer,"):
        load_student(copy)


def test_what_goes_with_a_unet_is_refused_by_name(folders, tmp_path: Path) -> None:
    with pytest.raises(StudentError, match=r"--one-step is 'turbo', but .* leave --one-step out"):
        open_task(Source(folders["3"], "turbo"))
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    with pytest.raises(StudentError, match="holds a StableDiffusion3Pipeline; a UNet is taken"):
        open_task(Source(tmp_path, "turbo", folders["3"]))
    file = tmp_path / "sd3.safetensors"
    save_file({"model.diffusion_model.joint_blocks.0.weight": torch.zeros(1)}, file)
    with pytest.raises(StudentError, match="looks like Stable Diffusion 3, which is taken as a pi"):
        open_task(Source(file, "turbo", folders["3"]))


def test_its_directory_is_described(folders, tmp_path: Path) -> None:
    words = describe(folders["3"])
    assert "64x64 px, latents 16x8x8" in words
    assert "timestep 1000, predicts the flow (FlowMatchEulerDiscreteScheduler)" in words
    teacher = describe(save_tiny_sd3(tmp_path))
    assert "not one of this project's: FlowMatchEulerDiscreteScheduler, with a shift" in teacher


@pytest.mark.parametrize("text", ["", "a red circle", "  Two\n</s> 日本 <pad> x", "blue " * 51])
def test_the_file_gives_the_ids_of_t5s_tokenizer(tmp_path: Path, text: str) -> None:
    stock = t5_tokenizer()
    write_tokenizer(stock, tmp_path / "tokenizer.json", 256)
    plain = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids
    assert plain == stock(text, padding="max_length", max_length=256).input_ids
    assert len(plain) == 256
