"""A tiny `StableDiffusionXLPipeline` with random weights; every part is real.

Pictures are 64x64 pixels, latents 8x8x4. The two tokenizers know the bytes and a few merges; the
second pads with "!", as SDXL's does. The weights are seeded and the two last convolutions scaled,
so that the UNet's output has unit deviation and pictures use the range without being saturated.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

MERGES = [("r", "e"), ("re", "d</w>"), ("b", "l"), ("bl", "u"), ("blu", "e</w>"), ("a", "n</w>")]
HIDDEN, PROJECTION, TIME_EMBED = 32, 24, 8
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def save_tiny_sdxl(folder: Path, seed: int = 0) -> Path:
    """Write the pipeline with SDXL's own Euler scheduler, and return its directory."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipe = _pipeline()
    pipe.save_pretrained(folder)
    return folder


def save_tiny_student(teacher: Path, folder: Path, timestep: int = 999) -> Path:
    """Write the same pipeline with the scheduler whose single step is ours at `timestep`."""
    pipe = StableDiffusionXLPipeline.from_pretrained(teacher)
    pipe.scheduler = one_step_scheduler(timestep)
    pipe.save_pretrained(folder)
    return folder


def one_step_scheduler(timestep: int, prediction_type: str = "epsilon") -> DDIMScheduler:
    """A stock DDIM scheduler that evaluates x0 at `timestep` when asked for one step."""
    return DDIMScheduler(
        **SCHEDULE,
        prediction_type=prediction_type,
        timestep_spacing="leading",
        steps_offset=timestep,
        set_alpha_to_one=True,
        clip_sample=False,
    )


def _pipeline() -> StableDiffusionXLPipeline:
    tokenizer, tokenizer_2 = tiny_tokenizer("<|endoftext|>"), tiny_tokenizer("!")
    unet, vae = _unet(), vae_of(4, 0.13025)
    _scale(unet, vae)
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text_config(tokenizer)),
        text_encoder_2=CLIPTextModelWithProjection(text_config(tokenizer_2)),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=unet,
        scheduler=EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="leading", steps_offset=1),
        add_watermarker=False,
    )


def tiny_parts() -> tuple[CLIPTokenizer, CLIPTextModel, AutoencoderKL]:
    """A tokenizer, a text encoder and a VAE for a pipeline that has one of each."""
    tokenizer = tiny_tokenizer("<|endoftext|>")
    return tokenizer, CLIPTextModel(text_config(tokenizer)), vae_of(4, 0.13025)


def tiny_tokenizer(pad_token: str) -> CLIPTokenizer:
    """A CLIP tokenizer over the byte alphabet; the special tokens come last, as in CLIP."""
    alphabet = sorted(ByteLevel.alphabet())
    words = alphabet + [c + "</w>" for c in alphabet] + [a + b for a, b in MERGES]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {word: index for index, word in enumerate(words)}
    return CLIPTokenizer(vocab, MERGES, pad_token=pad_token, model_max_length=77)


def text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        projection_dim=PROJECTION,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        cross_attention_dim=2 * HIDDEN,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_EMBED,
        projection_class_embeddings_input_dim=6 * TIME_EMBED + PROJECTION,
    )


def vae_of(latent_channels: int, scaling_factor: float, **kind: Any) -> AutoencoderKL:
    """Random weights; 64x64 pictures, eight pixels a latent."""
    return AutoencoderKL(
        sample_size=64,
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=latent_channels,
        scaling_factor=scaling_factor,
        **kind,
    )


@torch.no_grad()
def _scale(unet: UNet2DConditionModel, vae: AutoencoderKL) -> None:
    """Scale the last convolutions: predictions of deviation 1, pictures of deviation 0.4."""
    noise = torch.randn(4, 4, 8, 8)
    added = {"text_embeds": torch.randn(4, PROJECTION), "time_ids": torch.full((4, 6), 64.0)}
    text = torch.randn(4, 77, 2 * HIDDEN)
    prediction = unet(noise, 999, encoder_hidden_states=text, added_cond_kwargs=added).sample
    unet.conv_out.weight.div_(prediction.std())
    picture = vae.decode(noise / vae.config.scaling_factor).sample
    vae.decoder.conv_out.weight.mul_(0.4 / picture.std())
