"""A tiny class-conditional student: a stock `ConsistencyModelPipeline` of random weights, 16x16 px.

The last convolution is scaled, so that pictures use the range without being saturated.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, UNet2DModel

CLASSES = 4


def save_class_student(folder: Path, scheduler: Any = None, **other: object) -> Path:
    """Write the pipeline with the scheduler of our one step, and return its directory."""
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
            unet.conv_out.weight.mul_(4)
    ours = CMStochasticIterativeScheduler(
        sigma_min=0.0, sigma_max=80.0, rho=1.0, clip_denoised=False
    )
    ConsistencyModelPipeline(unet, scheduler or ours).save_pretrained(folder)
    return folder
