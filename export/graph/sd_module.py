"""The one graph of Stable Diffusion 1.x and 2.x: one text encoder's last hidden states, no sizes.

B batch, T tokens, D width of the text, C latent channels, h x w latent size, H x W picture size.
"""

from torch import Tensor

from export.graph.latent_module import UnetGraph
from export.graph.module import to_levels


class SdGraph(UnetGraph):
    """The text encoder, the UNet at its fixed timestep, the one step, the VAE decoder, uint8."""

    def forward(self, input_ids: Tensor, noise: Tensor) -> Tensor:
        """[B, T] int64, [B, C, h, w] float32 -> [B, H, W, 3] uint8."""
        return to_levels(self.picture(input_ids, noise))

    def picture(self, input_ids: Tensor, noise: Tensor) -> Tensor:
        """The decoder's output before it is clamped: [B, 3, H, W] float32, nominally in [-1, 1]."""
        return self.decoded(self.latent(input_ids, noise))

    def latent(self, input_ids: Tensor, noise: Tensor) -> Tensor:
        """What the decoder is given: [B, C, h, w] float32, in the VAE's own scale."""
        text = self.text_encoder(input_ids)[0]  # the last hidden states, [B, T, D]
        return self.clean(noise, text) / self.scaling_factor
