"""Tiny `StableDiffusion3Pipeline`s with random weights; every part is real.

Pictures are 64x64 pixels, latents 8x8x16, the transformer's tokens 4x4 patches of 2x2.
"""

import string
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from tiny import PROJECTION, text_config, tiny_tokenizer, vae_of
from transformers import CLIPTextModelWithProjection, T5Config, T5EncoderModel, T5Tokenizer

WIDTH = 72  # of T5, and so of every token of the prompt


def save_tiny_sd3(folder: Path) -> Path:
    """SD 3 with its T5 and a fixed shift of 3."""
    tokenizer = t5_tokenizer()
    config = T5Config(
        vocab_size=len(tokenizer), d_model=WIDTH, d_kv=8, d_ff=64, num_layers=1, num_heads=2
    )
    with torch.random.fork_rng():
        torch.manual_seed(2)
        pipe = _pipeline(
            _transformer(),
            FlowMatchEulerDiscreteScheduler(shift=3.0),
            text_encoder_3=T5EncoderModel(config),
            tokenizer_3=tokenizer,
        )
    pipe.save_pretrained(folder)
    return folder


def save_tiny_sd35(folder: Path) -> Path:
    """SD 3.5 without T5: normalised queries, a block of two attentions, a shift by size."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        pipe = _pipeline(
            _transformer(qk_norm="rms_norm", dual_attention_layers=(0,)),
            FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            text_encoder_3=None,
            tokenizer_3=None,
        )
    pipe.save_pretrained(folder)
    return folder


def save_tiny_flow_student(folder: Path, teacher: Callable[[Path], Path] = save_tiny_sd3) -> Path:
    """One of them with the scheduler that `distill` gives its student."""
    teacher(folder)
    FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    return folder


def t5_tokenizer() -> T5Tokenizer:
    """One token a letter."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    return T5Tokenizer([*pieces, *((letter, -3.0) for letter in string.ascii_lowercase)])


def _pipeline(
    transformer: SD3Transformer2DModel, scheduler: FlowMatchEulerDiscreteScheduler, **t5: object
) -> StableDiffusion3Pipeline:
    tokenizer, tokenizer_2 = tiny_tokenizer("<|endoftext|>"), tiny_tokenizer("!")
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=scheduler,
        vae=_vae(),
        text_encoder=CLIPTextModelWithProjection(text_config(tokenizer)),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(text_config(tokenizer_2)),
        tokenizer_2=tokenizer_2,
        **t5,
    )


def _transformer(**kind: object) -> SD3Transformer2DModel:
    model = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=2 * PROJECTION,
        pos_embed_max_size=8,
        **kind,
    )
    with torch.no_grad():
        velocity = model(
            hidden_states=torch.randn(4, 16, 8, 8),
            timestep=torch.full((4,), 1000.0),
            encoder_hidden_states=torch.randn(4, 9, WIDTH),
            pooled_projections=torch.randn(4, 2 * PROJECTION),
        ).sample
        model.proj_out.weight.div_(velocity.std())
    return model


def _vae() -> AutoencoderKL:
    without = {"use_quant_conv": False, "use_post_quant_conv": False}
    vae = vae_of(16, 1.5305, shift_factor=0.0609, **without)
    with torch.no_grad():
        picture = vae.decode(torch.randn(4, 16, 8, 8)).sample
        vae.decoder.conv_out.weight.mul_(0.4 / picture.std())
    return vae
