"""Stock diffusers' own one-step call of a student: the reference that owes nothing to our graph.

N pictures, C latent channels, h x w latent size, H x W picture size in pixels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from export.student import Student


def stock_call(student: Student, prompt: str, noise: torch.Tensor) -> NDArray[np.uint8]:
    """One picture [1, H, W, 3] for noise [1, C, h, w], through the pipeline's own `__call__`."""
    pictures = student.pipeline(
        prompt,
        latents=noise,
        num_inference_steps=1,
        guidance_scale=0.0,
        output_type="np",
    ).images
    levels: NDArray[np.uint8] = (pictures * 255).round().astype(np.uint8)
    return levels


def stock_pictures(
    student: Student, prompts: Sequence[str], noise: Sequence[torch.Tensor]
) -> NDArray[np.uint8]:
    """One picture at a time, each with its own prompt and noise [1, C, h, w]: [N, H, W, 3]."""
    pictures = [
        stock_call(student, prompt, latents) for prompt, latents in zip(prompts, noise, strict=True)
    ]
    return np.concatenate(pictures)
