"""SDXL's one graph: token ids and noise in, finished pictures out.

B batch, T tokens, C latent channels, h x w latent size, H x W picture size in pixels, D_1 and D_2
the widths of the two text encoders, P the width of the pooled projection.
"""

from typing import Any

import torch
from torch import Tensor

from export.graph.latent_module import UnetGraph
from export.model.student import Student


class OneStepGraph(UnetGraph):
    """Both text encoders, the UNet at its fixed timestep, the one step, the VAE decoder, uint8."""

    text_encoder_2: Any
    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, student: Student) -> None:
        super().__init__(student)
        mean, std = _latent_statistics(student.pipeline.vae.config, student.latent_channels)
        self.register_buffer("latent_mean", mean, persistent=False)
        self.register_buffer("latent_std", std, persistent=False)

    def forward(self, input_ids: Tensor, input_ids_2: Tensor, noise: Tensor) -> Tensor:
        """[B, T] int64, [B, T] int64, [B, C, h, w] float32 -> [B, H, W, 3] uint8."""
        return to_levels(self.picture(input_ids, input_ids_2, noise))

    def picture(self, input_ids: Tensor, input_ids_2: Tensor, noise: Tensor) -> Tensor:
        """The decoder's output before it is clamped: [B, 3, H, W] float32, nominally in [-1, 1]."""
        return self.decoded(self.latent(input_ids, input_ids_2, noise))

    def latent(self, input_ids: Tensor, input_ids_2: Tensor, noise: Tensor) -> Tensor:
        """What the decoder is given: [B, C, h, w] float32, in the VAE's own scale."""
        text, pooled = self._encode(input_ids, input_ids_2)  # [B, T, D_1 + D_2], [B, P]
        # both in float32: the UNet joins them before it turns them into its own type
        added = {"text_embeds": pooled.float(), "time_ids": self._time_ids(noise)}
        latent = self.clean(noise, text, added)
        return latent * self.latent_std / self.scaling_factor + self.latent_mean

    def _encode(self, input_ids: Tensor, input_ids_2: Tensor) -> tuple[Tensor, Tensor]:
        """Both encoders' penultimate hidden states side by side, and the second's projection."""
        first = self.text_encoder(input_ids, output_hidden_states=True)
        second = self.text_encoder_2(input_ids_2, output_hidden_states=True)
        text = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        return text, second.text_embeds

    def _time_ids(self, noise: Tensor) -> Tensor:
        """SDXL's size conditioning [B, 6]: original size, crop corner, target size, in pixels."""
        height = torch.scalar_tensor(noise.shape[2] * self.pixels_per_latent)
        width = torch.scalar_tensor(noise.shape[3] * self.pixels_per_latent)
        zero = torch.scalar_tensor(0.0)
        # stacked, not listed: a list of sizes becomes a constant when the graph is traced
        sizes = torch.stack([height, width, zero, zero, height, width])
        return sizes.to(noise.device).expand(noise.shape[0], -1)


def to_levels(picture: Tensor) -> Tensor:
    """[B, 3, H, W] in [-1, 1] -> [B, H, W, 3] uint8, rounded half to even as diffusers rounds.

    The cast comes last: TensorRT takes uint8 only as a graph's own input or output.
    """
    unit = (picture * 0.5 + 0.5).clamp(0, 1)
    return (unit * 255).round().permute(0, 2, 3, 1).to(torch.uint8)


def _latent_statistics(vae_config: Any, channels: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation [1, C, 1, 1]: the VAE's own if it has both, else 0 and 1, as diffusers."""
    mean, std = vae_config.get("latents_mean"), vae_config.get("latents_std")
    if mean is None or std is None:
        mean, std = [0.0] * channels, [1.0] * channels
    shape = (1, channels, 1, 1)
    return torch.tensor(mean).view(shape), torch.tensor(std).view(shape)
