"""The one graph: token ids and noise in, finished pictures out.

Each part computes in the type of its own weights; noise, the step, the latents' scaling and the
picture are float32, and every change of type stands here.

B batch, T tokens, C latent channels, h x w latent size, H x W picture size in pixels, D_1 and D_2
the widths of the two text encoders, P the width of the pooled projection.
"""

from typing import Any

import torch
from torch import Tensor, nn

from export.model.guidance import guidance_embedding
from export.model.one_step import clean_latent, model_input
from export.model.student import Student


class OneStepGraph(nn.Module):
    """Both text encoders, the UNet at its fixed timestep, the one step, the VAE decoder, uint8."""

    timestep: Tensor
    latent_mean: Tensor
    latent_std: Tensor
    guidance: Tensor | None

    def __init__(self, student: Student) -> None:
        super().__init__()
        pipeline = student.pipeline
        self.text_encoder = pipeline.text_encoder
        self.text_encoder_2 = pipeline.text_encoder_2
        self.unet = pipeline.unet
        self.vae = pipeline.vae
        self.step = student.step
        self.pixels_per_latent = pipeline.vae_scale_factor
        self.scaling_factor = float(pipeline.vae.config.scaling_factor)
        mean, std = _latent_statistics(pipeline.vae.config, student.latent_channels)
        self.register_buffer("timestep", torch.tensor(student.step.timestep), persistent=False)
        self.register_buffer("latent_mean", mean, persistent=False)
        self.register_buffer("latent_std", std, persistent=False)
        self.register_buffer("guidance", guidance_embedding(student), persistent=False)
        self.eval()

    def forward(self, input_ids: Tensor, input_ids_2: Tensor, noise: Tensor) -> Tensor:
        """[B, T] int64, [B, T] int64, [B, C, h, w] float32 -> [B, H, W, 3] uint8."""
        return to_levels(self.picture(input_ids, input_ids_2, noise))

    def picture(self, input_ids: Tensor, input_ids_2: Tensor, noise: Tensor) -> Tensor:
        """The decoder's output before it is clamped: [B, 3, H, W] float32, nominally in [-1, 1]."""
        latent = self.latent(input_ids, input_ids_2, noise)
        picture: Tensor = self.vae.decode(latent.to(self.vae.dtype), return_dict=False)[0]
        return picture.float()

    def latent(self, input_ids: Tensor, input_ids_2: Tensor, noise: Tensor) -> Tensor:
        """What the decoder is given: [B, C, h, w] float32, in the VAE's own scale."""
        text, pooled = self._encode(input_ids, input_ids_2)  # [B, T, D_1 + D_2], [B, P]
        dtype = self.unet.dtype
        prediction = self.unet(
            model_input(noise, self.step).to(dtype),
            self.timestep,
            timestep_cond=None
            if self.guidance is None
            else self.guidance.to(dtype).expand(noise.shape[0], -1),
            encoder_hidden_states=text.to(dtype),
            # both in float32: the UNet joins them before it turns them into its own type
            added_cond_kwargs={"text_embeds": pooled.float(), "time_ids": self._time_ids(noise)},
            return_dict=False,
        )[0]  # [B, C, h, w]
        latent = clean_latent(noise, prediction, self.step)
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
