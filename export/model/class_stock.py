"""Stock diffusers' own one-step call of a class-conditional student: the graph's reference.

N pictures, H x W picture size in pixels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from export.model.class_student import ClassStudent


def stock_class_pictures(
    student: ClassStudent, labels: Sequence[int], noise: Sequence[torch.Tensor]
) -> NDArray[np.uint8]:
    """One picture at a time, each of its own class and noise [1, 3, H, W]: [N, H, W, 3]."""
    pairs = zip(labels, noise, strict=True)
    return np.concatenate([_call(student, label, latents) for label, latents in pairs])


def _call(student: ClassStudent, label: int, noise: torch.Tensor) -> NDArray[np.uint8]:
    """Its own post-processing up to unit floats; rounded as its `numpy_to_pil` rounds them."""
    unit = student.pipeline(
        class_labels=[label], latents=noise, num_inference_steps=1, output_type="pt"
    ).images  # [1, 3, H, W] in the network's type
    values = unit.float().permute(0, 2, 3, 1).numpy()
    levels: NDArray[np.uint8] = (values * 255).round().astype(np.uint8)
    return levels
