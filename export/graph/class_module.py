"""The one graph of a class-conditional student: class numbers and noise in, pictures out.

It draws pixels: there is neither a text encoder nor a VAE. The network computes in the type of its
weights, everything else in float32. B batch, C channels, H x W picture size in pixels.
"""

import torch
from torch import Tensor, nn

from export.graph.module import to_levels
from export.model.class_student import ClassStudent
from export.model.one_step import clean_latent, model_input


class ClassGraph(nn.Module):
    """The network at its one noise level, the one step, uint8."""

    timestep: Tensor

    def __init__(self, student: ClassStudent) -> None:
        super().__init__()
        self.unet = student.pipeline.unet
        self.step = student.step
        self.register_buffer("timestep", torch.tensor(student.step.timestep), persistent=False)
        self.eval()

    def forward(self, class_labels: Tensor, noise: Tensor) -> Tensor:
        """[B] int64, [B, C, H, W] float32 -> [B, H, W, 3] uint8."""
        return to_levels(self.picture(class_labels, noise))

    def picture(self, class_labels: Tensor, noise: Tensor) -> Tensor:
        """The clean picture before it is clamped: [B, 3, H, W] float32, nominally in [-1, 1]."""
        prediction = self.unet(
            model_input(noise, self.step).to(self.unet.dtype),
            self.timestep,
            class_labels=class_labels,
            return_dict=False,
        )[0]
        return clean_latent(noise, prediction, self.step)
