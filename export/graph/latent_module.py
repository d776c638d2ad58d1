"""What the graphs of text models have in common: a denoiser's one timestep, its step, the decoder.

Each part computes in the type of its own weights; noise, the step, the latents' scaling and the
picture are float32, and every change of type stands here.

B batch, T tokens, D width of the text, C latent channels, h x w latent size, H x W picture size.
"""

from typing import Any

import torch
from torch import Tensor, nn

from export.model.guidance import guidance_embedding
from export.model.one_step import clean_latent, model_input
from export.model.student import Student


class LatentGraph(nn.Module):
    """The parts of a student's pipeline under their own names."""

    text_encoder: Any
    vae: Any
    timestep: Tensor

    def __init__(self, student: Student) -> None:
        super().__init__()
        pipeline = student.pipeline
        for name in student.family.weighted:
            self.add_module(name, getattr(pipeline, name))
        self.step = student.step
        self.pixels_per_latent = pipeline.vae_scale_factor
        self.scaling_factor = float(pipeline.vae.config.scaling_factor)
        self.register_buffer("timestep", torch.tensor(student.step.timestep), persistent=False)
        self.eval()

    def decoded(self, latent: Tensor) -> Tensor:
        """[B, C, h, w] in the VAE's own scale -> [B, 3, H, W] float32."""
        picture: Tensor = self.vae.decode(latent.to(self.vae.dtype), return_dict=False)[0]
        return picture.float()


class UnetGraph(LatentGraph):
    """A graph whose denoiser is a UNet."""

    unet: Any
    guidance: Tensor | None

    def __init__(self, student: Student) -> None:
        super().__init__(student)
        self.register_buffer("guidance", guidance_embedding(student), persistent=False)

    def clean(self, noise: Tensor, text: Tensor, added: dict[str, Tensor] | None = None) -> Tensor:
        """The clean latent [B, C, h, w] float32 of noise and text [B, T, D]; `added` is SDXL's."""
        dtype = self.unet.dtype
        prediction = self.unet(
            model_input(noise, self.step).to(dtype),
            self.timestep,
            timestep_cond=None
            if self.guidance is None
            else self.guidance.to(dtype).expand(noise.shape[0], -1),
            encoder_hidden_states=text.to(dtype),
            added_cond_kwargs=added,
            return_dict=False,
        )[0]  # [B, C, h, w]
        return clean_latent(noise, prediction, self.step)
