"""A stock `StableDiffusionPipeline` that is exactly optimal for latents of unit normals.

Of x_t = √ᾱ x0 + √(1 − ᾱ) ε with x0 and ε unit normals, the best v = √ᾱ ε − √(1 − ᾱ) x0 given x_t is
0 for every t: the two expectations cancel. So a U-Net whose last convolution is zero, with a
v-predicting scheduler, is the optimal linear denoiser, x0 = √ᾱ x_t. In noise levels that is
x0 = x(σ) / (1 + σ²), and the probability-flow ODE has the closed form x(0) = x(σ) / √(1 + σ²):
the exact one-step map takes pure noise z = √ᾱ x(σ), at any label t, to z itself. One step of the
teacher gives √ᾱ_t z instead, too narrow by √ᾱ_t; that is where a student begins.

So that a student can be the exact map, its U-Net is linear where it must be: group normalisation
with a large `norm_eps` divides by a constant, and silu(h) − silu(−h) = h, for which the hidden
state is h = (x, −x). Being an isometry of x it is a feature space as good as x itself.
"""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    HeunDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tiny import HIDDEN, SCHEDULE, tiny_parts

CHANNELS, SIDE = 2, 2
WIDTH = 2 * CHANNELS
EPS = 1e4


def save_gaussian_teacher(folder: Path, seed: int = 0) -> Path:
    """Write the pipeline and return its directory."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = linear_unet()
        tokenizer, text_encoder, _ = tiny_parts()
        vae = AutoencoderKL(
            sample_size=8 * SIDE,
            block_out_channels=(4, 4, 4, 4),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=4,
            latent_channels=CHANNELS,
        )
    scheduler = HeunDiscreteScheduler(
        **SCHEDULE, prediction_type="v_prediction", timestep_spacing="leading", steps_offset=1
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


@torch.no_grad()
def linear_unet() -> UNet2DConditionModel:
    """Zero by its last convolution; before that, linear in its input at every t."""
    unet = UNet2DConditionModel(
        sample_size=SIDE,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        block_out_channels=(WIDTH,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        mid_block_type=None,
        layers_per_block=1,
        norm_num_groups=1,
        norm_eps=EPS,
        cross_attention_dim=HIDDEN,
    )
    identity = torch.eye(CHANNELS)
    unet.conv_in.weight.zero_()
    unet.conv_in.weight[:, :, 1, 1] = torch.cat([identity, -identity])
    unet.conv_in.bias.zero_()
    for resnet in (*unet.down_blocks[0].resnets, *unet.up_blocks[0].resnets):
        resnet.conv2.weight.zero_()  # they add nothing yet
        resnet.conv2.bias.zero_()
    for resnet in unet.up_blocks[0].resnets:  # and the skip connection nothing either
        resnet.conv_shortcut.weight.copy_(torch.eye(WIDTH, 2 * WIDTH)[:, :, None, None])
        resnet.conv_shortcut.bias.zero_()
    unet.conv_norm_out.weight.fill_(EPS**0.5)
    unet.conv_out.weight.zero_()
    unet.conv_out.bias.zero_()
    return unet
