"""The graph of every kind draws what stock diffusers draws when the model card is followed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionXLPipeline,
    TCDScheduler,
)
from micro import micro_unet, save_micro_sdxl
from numpy.typing import NDArray
from original_layout import original_name
from safetensors.torch import save_file

from export.errors import StudentError
from export.gate.session import open_session
from export.graph.module import OneStepGraph
from export.graph.to_onnx import write_onnx
from export.model.foreign import Source
from export.model.one_step import clean_latent, model_input
from export.model.stock import stock_latent, stock_pictures
from export.model.student import Student, load_model
from export.signature import TOKENS, text_to_image

PROMPTS = ("a small red circle", "", "two blue squares, 1890!")
ONCE = {"num_inference_steps": 1, "guidance_scale": 0.0}

# kind, time_cond_proj_dim of the UNet, the scheduler and the call as the model's card has them
CARDS: list[tuple[str, int | None, Callable[..., object], dict[str, object]]] = [
    (
        "turbo",
        None,
        lambda c: EulerAncestralDiscreteScheduler.from_config(c, timestep_spacing="trailing"),
        ONCE,
    ),
    (
        "lightning",
        None,
        lambda c: EulerDiscreteScheduler.from_config(
            c, timestep_spacing="trailing", prediction_type="sample"
        ),
        ONCE,
    ),
    ("dmd2", None, LCMScheduler.from_config, {**ONCE, "timesteps": [399]}),
    ("hyper", None, LCMScheduler.from_config, {**ONCE, "timesteps": [800]}),
    ("lcm", None, LCMScheduler.from_config, ONCE),
    ("lcm", 6, LCMScheduler.from_config, {**ONCE, "guidance_scale": 8.0}),
]
IDS = ["turbo", "lightning", "dmd2", "hyper", "lcm-lora", "lcm"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_micro_sdxl(tmp_path_factory.mktemp("micro") / "base")


def noise() -> list[torch.Tensor]:
    return [torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)]


def followed_card(pipe, scheduler, call, output_type="np") -> NDArray[np.generic] | torch.Tensor:
    """Stock diffusers alone, one picture at a time, without any of our code."""
    pipe.scheduler = scheduler(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    drawn = [
        pipe(prompt, latents=z, output_type=output_type, **call).images
        for prompt, z in zip(PROMPTS, noise(), strict=True)
    ]
    return torch.cat(drawn) if output_type == "latent" else np.concatenate(drawn)


def feeds(student: Student) -> dict[str, NDArray[np.generic]]:
    tokenizers = (student.pipeline.tokenizer, student.pipeline.tokenizer_2)
    ids = [
        t(list(PROMPTS), padding="max_length", max_length=TOKENS, return_tensors="np").input_ids
        for t in tokenizers
    ]
    return {"input_ids": ids[0], "input_ids_2": ids[1], "noise": torch.cat(noise()).numpy()}


def graph_pictures(student: Student) -> NDArray[np.uint8]:
    with torch.no_grad():
        inputs = [torch.from_numpy(array) for array in feeds(student).values()]
        return OneStepGraph(student)(*inputs).numpy()


def assert_within_one_level(left: NDArray[np.uint8], right: NDArray[np.generic]) -> None:
    levels = (right * 255).round() if right.dtype != np.uint8 else right
    gap = np.abs(left.astype(int) - levels.astype(int))
    assert gap.max() <= 1
    assert left.std() > 20  # of a picture, not of a flat colour


@pytest.mark.parametrize(("kind", "guidance", "scheduler", "call"), CARDS, ids=IDS)
def test_the_graph_draws_what_the_model_card_draws(
    base: Path, tmp_path: Path, kind: str, guidance: int | None, scheduler, call
) -> None:
    unet = micro_unet(seed=9, time_cond_proj_dim=guidance)
    unet.save_pretrained(tmp_path)
    student = load_model(Source(tmp_path, kind, base))
    stock = StableDiffusionXLPipeline.from_pretrained(base, unet=unet)
    pictures = followed_card(stock, scheduler, call)
    assert_within_one_level(graph_pictures(student), pictures)
    assert_within_one_level(stock_pictures(student, PROMPTS, noise()), pictures)


@pytest.mark.parametrize(("kind", "guidance", "scheduler", "call"), CARDS, ids=IDS)
def test_the_clean_latent_is_stocks_to_float32_rounding(
    base: Path, tmp_path: Path, kind: str, guidance: int | None, scheduler, call
) -> None:
    unet = micro_unet(seed=9, time_cond_proj_dim=guidance)
    unet.save_pretrained(tmp_path)
    student = load_model(Source(tmp_path, kind, base))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    student.pipeline.unet.register_forward_hook(lambda _, x, y: seen.append((x[0], y[0])))
    for prompt, z in zip(PROMPTS, noise(), strict=True):
        latent = stock_latent(student, prompt, z)
        x, prediction = seen.pop()
        torch.testing.assert_close(model_input(z, student.step), x, rtol=1e-6, atol=1e-6)
        ours = clean_latent(z, prediction, student.step)
        scale = max(1.0, float(latent.abs().max()))
        assert float((ours - latent).abs().max()) <= 1e-6 * max(scale, 15)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_stock_is_called_in_mixed_precision_too(base: Path, dtype: torch.dtype) -> None:
    exact = stock_pictures(load_model(Source(base, "lightning")), PROMPTS, noise())
    mixed = load_model(Source(base, "lightning", dtype=dtype))
    assert mixed.pipeline.vae.dtype == torch.float32
    gap = np.abs(stock_pictures(mixed, PROMPTS, noise()).astype(int) - exact)
    assert 0 < gap.mean() < 3  # rounded, not lost


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "guidance", "scheduler", "call"), CARDS, ids=IDS)
def test_the_exported_file_draws_what_the_model_card_draws(
    base: Path, tmp_path: Path, kind: str, guidance: int | None, scheduler, call
) -> None:
    unet = micro_unet(seed=9, time_cond_proj_dim=guidance)
    unet.save_pretrained(tmp_path / "unet")
    student = load_model(Source(tmp_path / "unet", kind, base))
    signature = text_to_image(student.latent_channels, student.latent_size, student.size_px)
    write_onnx(OneStepGraph(student), signature, tmp_path / "model.onnx")
    got = open_session(tmp_path / "model.onnx", 1)(feeds(student))
    stock = StableDiffusionXLPipeline.from_pretrained(base, unet=unet)
    assert_within_one_level(got, followed_card(stock, scheduler, call))


def lora(
    unet: torch.nn.Module, style: str
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A LoRA of rank 2 on every attention, and the change of weights that it means."""
    generator, state, change = torch.Generator().manual_seed(5), {}, {}
    for name, module in unet.named_modules():
        if name.endswith((".to_q", ".to_k", ".to_v", ".to_out.0")):
            out, into = module.weight.shape
            A, B = (torch.randn(s, generator=generator) / 4 for s in ((2, into), (out, 2)))
            change[f"{name}.weight"] = B @ A
            if style == "peft":
                keys = (f"unet.{name}.lora_A.weight", f"unet.{name}.lora_B.weight")
            else:
                stem = f"lora_unet_{name.replace('.', '_')}"
                keys = (f"{stem}.lora_down.weight", f"{stem}.lora_up.weight")
                state[f"{stem}.alpha"] = torch.tensor(2.0)
            state |= dict(zip(keys, (A, B), strict=True))
    return state, change


@pytest.mark.parametrize("style", ["peft", "kohya"])
def test_a_lora_is_fused_at_its_scale_and_leaves_no_trace(
    base: Path, tmp_path: Path, style: str
) -> None:
    own = StableDiffusionXLPipeline.from_pretrained(base).unet
    state, change = lora(own, style)
    save_file(state, tmp_path / "lora.safetensors")
    student = load_model(Source(tmp_path / "lora.safetensors", "hyper", base, lora_scale=0.7))
    fused, before = student.pipeline.unet.state_dict(), own.state_dict()
    assert fused.keys() == before.keys()
    for key, weight in before.items():
        wanted = weight + 0.7 * change[key] if key in change else weight
        torch.testing.assert_close(fused[key], wanted, rtol=0, atol=1e-6)
    assert (student.step.kind, student.step.timestep) == ("hyper", 999)


def test_a_fused_lora_draws_what_stock_draws_with_it(base: Path, tmp_path: Path) -> None:
    stock = StableDiffusionXLPipeline.from_pretrained(base)
    save_file(lora(stock.unet, "peft")[0], tmp_path / "Hyper-SDXL-1step-lora.safetensors")
    student = load_model(Source(tmp_path / "Hyper-SDXL-1step-lora.safetensors", "hyper", base))
    stock.load_lora_weights(tmp_path, weight_name="Hyper-SDXL-1step-lora.safetensors")
    stock.fuse_lora()
    pictures = followed_card(stock, TCDScheduler.from_config, {**ONCE, "eta": 1.0})
    assert_within_one_level(graph_pictures(student), pictures)
    assert student.notes == ()


PAIR = ("lora_A.weight", "lora_B.weight")


@pytest.mark.parametrize(
    ("module", "into", "sentence"),
    [
        ("nowhere.to_q", 16, "does not fit --base: Target modules .*nowhere.to_q"),
        ("mid_block.attentions.0.proj_in", 99, "does not fit --base: .* size mismatch for mid"),
    ],
)
def test_a_lora_for_another_architecture_is_refused(
    base: Path, tmp_path: Path, module: str, into: int, sentence: str
) -> None:
    A, B = torch.ones(2, into), torch.ones(16, 2)
    state = dict(zip([f"unet.{module}.{end}" for end in PAIR], (A, B), strict=True))
    save_file(state, tmp_path / "lora.safetensors")
    with pytest.raises(StudentError, match=sentence):
        load_model(Source(tmp_path / "lora.safetensors", "lcm", base))


def test_a_lora_that_is_not_applied_in_full_is_refused(base: Path, tmp_path: Path) -> None:
    state, _ = lora(StableDiffusionXLPipeline.from_pretrained(base).unet, "peft")
    state |= {f"unet.nowhere.to_q.{end}": torch.ones(2, 2) for end in PAIR}
    save_file(state, tmp_path / "lora.safetensors")
    with pytest.raises(StudentError, match=r"32 of the 33 layers that it changes are there"):
        load_model(Source(tmp_path / "lora.safetensors", "lcm", base))
    half = {key: value for key, value in state.items() if "lora_A" in key}
    save_file(half, tmp_path / "lora.safetensors")
    with pytest.raises(StudentError, match="has 33 matrices down and 0 matrices up"):
        load_model(Source(tmp_path / "lora.safetensors", "lcm", base))


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("lora_unet_mid_block_attentions_0_proj_in.dora_scale", "DoRA"),
        ("unet.mid_block.attentions.0.proj_in.lora_magnitude_vector", "DoRA"),
        ("lora_unet_mid_block_attentions_0_proj_in.lokr_w1", "LoKr"),
        ("lora_unet_mid_block_attentions_0_proj_in.hada_w1_a", "LoHa"),
    ],
)
def test_what_is_more_than_a_lora_is_refused(
    base: Path, tmp_path: Path, key: str, kind: str
) -> None:
    state, _ = lora(StableDiffusionXLPipeline.from_pretrained(base).unet, "kohya")
    save_file({**state, key: torch.ones(16, 1)}, tmp_path / "lora.safetensors")
    with pytest.raises(StudentError, match=rf"is a {kind} \({key}\); only a plain LoRA"):
        load_model(Source(tmp_path / "lora.safetensors", "hyper", base))


@pytest.mark.parametrize("names", ["diffusers", "original"])
def test_a_lora_as_lcms_changes_convolutions_and_has_its_alpha(
    base: Path, tmp_path: Path, names: str
) -> None:
    """Kohya's names over diffusers' blocks, as LCM-LoRA has them, or over the original ones."""
    own = StableDiffusionXLPipeline.from_pretrained(base).unet
    state, change = kohya(own, names)
    assert any(value.ndim == 4 for value in change.values())
    save_file(state, tmp_path / "lora.safetensors")
    fused = load_model(Source(tmp_path / "lora.safetensors", "lcm", base)).pipeline.unet
    for key, weight in own.state_dict().items():
        wanted = weight + change[key] if key in change else weight
        torch.testing.assert_close(fused.state_dict()[key], wanted, rtol=0, atol=1e-5)


def kohya(
    unet: torch.nn.Module, names: str
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Rank 2 and alpha 1 on attentions, projections, residual blocks; and what it means."""
    generator, state, change = torch.Generator().manual_seed(6), {}, {}
    ends = (".to_q", ".to_out.0", ".proj_in", ".net.2", ".conv1", ".conv", ".time_emb_proj")
    for name, module in unet.named_modules():
        if name.endswith(ends) and hasattr(module, "weight"):
            out, into, *kernel = module.weight.shape
            A = torch.randn(2, into, *kernel, generator=generator) / 4
            B = torch.randn(out, 2, *[1 for _ in kernel], generator=generator) / 4
            flat = B.flatten(1) @ A.flatten(1) / 2
            change[f"{name}.weight"] = flat.reshape(module.weight.shape)
            key = original_name(unet, name) if names == "original" else name
            stem = f"lora_unet_{key.replace('.', '_')}"
            state |= {f"{stem}.lora_down.weight": A, f"{stem}.lora_up.weight": B}
            state[f"{stem}.alpha"] = torch.tensor(1.0)
    return state, change


def test_a_lora_needs_a_base_and_peft(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file({f"unet.a.{end}": torch.ones(2, 2) for end in PAIR}, tmp_path / "l.safetensors")
    with pytest.raises(StudentError, match="is a LoRA; --base must name"):
        load_model(Source(tmp_path / "l.safetensors", "lcm"))
    monkeypatch.setattr("export.model.lora.is_peft_available", lambda: False)
    with pytest.raises(StudentError, match="takes the library peft: pip install peft"):
        load_model(Source(tmp_path / "l.safetensors", "lcm", base))
