"""A still smaller random SDXL, 16x16 pixels, whose two text encoders differ in width as SDXL's do.

It stands for other people's models: the base, and a UNet of the same shape with other weights.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tiny import SCHEDULE, tiny_tokenizer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

WIDTHS, PROJECTION, TIME_EMBED = (16, 24), 24, 8


def save_micro_sdxl(folder: Path) -> Path:
    """Write the pipeline with SDXL's own Euler scheduler, and return its directory."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        tokenizer, tokenizer_2 = tiny_tokenizer("<|endoftext|>"), tiny_tokenizer("!")
        pipe = StableDiffusionXLPipeline(
            vae=_vae(),
            text_encoder=CLIPTextModel(_text_config(tokenizer, WIDTHS[0])),
            text_encoder_2=CLIPTextModelWithProjection(_text_config(tokenizer_2, WIDTHS[1])),
            tokenizer=tokenizer,
            tokenizer_2=tokenizer_2,
            unet=micro_unet(seed=4),
            scheduler=EulerDiscreteScheduler(
                **SCHEDULE, timestep_spacing="leading", steps_offset=1
            ),
            add_watermarker=False,
        )
    pipe.save_pretrained(folder)
    return folder


def micro_unet(seed: int, **changes: Any) -> UNet2DConditionModel:
    """Random weights; predictions of about unit deviation."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            cross_attention_dim=sum(WIDTHS),
            addition_embed_type="text_time",
            addition_time_embed_dim=TIME_EMBED,
            projection_class_embeddings_input_dim=6 * TIME_EMBED + PROJECTION,
            **changes,
        )
    with torch.no_grad():
        unet.conv_out.weight.mul_(3)
    return unet.eval()


def _vae() -> AutoencoderKL:
    vae = AutoencoderKL(
        sample_size=16,
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.13025,
    )
    with torch.no_grad():
        vae.decoder.conv_out.weight.mul_(2)
    return vae


def _text_config(tokenizer: Any, width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=PROJECTION,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
