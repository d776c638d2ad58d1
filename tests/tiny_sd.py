"""A tiny Stable Diffusion 1.x or 2.x of random weights, 64x64 px, and its one-step student."""

from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tiny import HIDDEN, SCHEDULE, tiny_parts


def save_tiny_sd_student(
    folder: Path, timestep: int = 399, prediction_type: str = "epsilon", **other: Any
) -> Path:
    """Write the pipeline with the scheduler that `distill` gives such a student."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        tokenizer, text_encoder, vae = tiny_parts()
        unet = UNet2DConditionModel(
            **{
                "sample_size": 8,
                "block_out_channels": (16, 32),
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
                "layers_per_block": 1,
                "norm_num_groups": 8,
                "attention_head_dim": 4,
                "cross_attention_dim": HIDDEN,
                **other,
            }
        )
        with torch.no_grad():
            unet.conv_out.weight.mul_(2)
            vae.decoder.conv_out.weight.mul_(2)
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=one_step_scheduler(timestep, prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def one_step_scheduler(timestep: int, prediction_type: str) -> DDIMScheduler:
    """A schedule that ends at this timestep, where "trailing" puts a single step."""
    betas = DDIMScheduler(**SCHEDULE).betas[: timestep + 1].double().tolist()
    return DDIMScheduler(
        num_train_timesteps=timestep + 1,
        trained_betas=betas,
        prediction_type=prediction_type,
        timestep_spacing="trailing",
        steps_offset=1,
        set_alpha_to_one=True,
        clip_sample=False,
    )
