"""One step of a stock text pipeline, as a student's user takes it."""

from typing import Any

import numpy as np
import torch


def stock_picture(pipeline: Any, prompt: str, seed: int) -> np.ndarray:
    """[H, W, 3] uint8 through the pipeline's own call."""
    pipeline.set_progress_bar_config(disable=True)
    (picture,) = pipeline(
        prompt,
        num_inference_steps=1,
        guidance_scale=0.0,
        generator=torch.Generator().manual_seed(seed),
    ).images
    return np.asarray(picture)
