"""Tiny class-conditional models: a `ConsistencyModelPipeline` of random weights, 16x16 px."""

from pathlib import Path
from typing import Any

import torch
from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, UNet2DModel

CLASSES = 4


def save_tiny_edm(folder: Path, scheduler: Any = None, gain: float = 1, **other: object) -> Path:
    """Write the pipeline with EDM's noise levels and return its directory.

    `gain` multiplies the last convolution.
    """
    config = {
        "sample_size": 16,
        "block_out_channels": (16, 32),
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": 16,
        "norm_num_groups": 8,
        "attn_norm_num_groups": 8,
        "resnet_time_scale_shift": "scale_shift",
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "num_class_embeds": CLASSES,
    }
    with torch.random.fork_rng():
        torch.manual_seed(2)
        unet = UNet2DModel(**{**config, **other})
        with torch.no_grad():
            unet.conv_out.weight.mul_(gain)
    scheduler = scheduler or CMStochasticIterativeScheduler(clip_denoised=False)
    ConsistencyModelPipeline(unet, scheduler).save_pretrained(folder)
    return folder


def save_class_student(folder: Path, scheduler: Any = None, **other: object) -> Path:
    """A student with the scheduler of our one step; its pictures use the range, unsaturated."""
    ours = CMStochasticIterativeScheduler(
        sigma_min=0.0, sigma_max=80.0, rho=1.0, clip_denoised=False
    )
    return save_tiny_edm(folder, scheduler or ours, gain=4, **other)
