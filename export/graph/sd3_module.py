"""The one graph of SD 3 and 3.5: two CLIPs' hidden states, T5's or zeros behind them, a flow.

B batch, T tokens of CLIP, D_1 and D_2 the widths of the two CLIPs, S tokens of T5 and D its width,
P the width of both pooled projections, C latent channels, h x w latent size, H x W picture size.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from export.graph.latent_module import LatentGraph
from export.graph.module import to_levels
from export.model.one_step import clean_latent, model_input
from export.model.student import Student
from export.signature import T5_TOKENS


class FlowGraph(LatentGraph):
    """The transformer at its fixed timestep, the one step, the VAE's scale and shift."""

    text_encoder_2: Any
    transformer: Any

    def __init__(self, student: Student) -> None:
        super().__init__(student)
        self.shift_factor = float(student.pipeline.vae.config.shift_factor)

    def conditioned(self, ids: Tensor, ids_2: Tensor, t5: Tensor, noise: Tensor) -> Tensor:
        """What the decoder is given, [B, C, h, w] float32; `t5` is [B, S, D]."""
        first = self.text_encoder(ids, output_hidden_states=True)
        second = self.text_encoder_2(ids_2, output_hidden_states=True)
        clip = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        clip = pad(clip, (0, t5.shape[-1] - clip.shape[-1]))  # [B, T, D_1 + D_2] -> [B, T, D]
        pooled = torch.cat([first.text_embeds, second.text_embeds], dim=-1)  # [B, P]
        dtype = self.transformer.dtype
        velocity = self.transformer(
            hidden_states=model_input(noise, self.step).to(dtype),
            timestep=self.timestep.expand(noise.shape[0]),
            encoder_hidden_states=torch.cat([clip, t5], dim=-2).to(dtype),  # [B, T + S, D]
            pooled_projections=pooled.to(dtype),
            return_dict=False,
        )[0]  # [B, C, h, w]
        return clean_latent(noise, velocity, self.step) / self.scaling_factor + self.shift_factor


class Sd3Graph(FlowGraph):
    """Where the pipeline has no T5, stock diffusers gives the transformer zeros in its place."""

    def forward(self, input_ids: Tensor, input_ids_2: Tensor, noise: Tensor) -> Tensor:
        """[B, T] int64, [B, T] int64, [B, C, h, w] float32 -> [B, H, W, 3] uint8."""
        return to_levels(self.picture(input_ids, input_ids_2, noise))

    def picture(self, input_ids: Tensor, input_ids_2: Tensor, noise: Tensor) -> Tensor:
        """The decoder's output before it is clamped: [B, 3, H, W] float32, nominally in [-1, 1]."""
        return self.decoded(self.latent(input_ids, input_ids_2, noise))

    def latent(self, input_ids: Tensor, input_ids_2: Tensor, noise: Tensor) -> Tensor:
        """What the decoder is given: [B, C, h, w] float32, in the VAE's own scale."""
        width = self.transformer.config.joint_attention_dim
        zeros = torch.zeros(noise.shape[0], T5_TOKENS, width, dtype=self.text_encoder.dtype)
        return self.conditioned(input_ids, input_ids_2, zeros, noise)


class Sd3T5Graph(FlowGraph):
    """T5 reads the same prompt, of which it takes more tokens; it is given no mask."""

    text_encoder_3: Any

    def forward(
        self, input_ids: Tensor, input_ids_2: Tensor, input_ids_3: Tensor, noise: Tensor
    ) -> Tensor:
        """[B, T], [B, T], [B, S] int64, [B, C, h, w] float32 -> [B, H, W, 3] uint8."""
        return to_levels(self.picture(input_ids, input_ids_2, input_ids_3, noise))

    def picture(
        self, input_ids: Tensor, input_ids_2: Tensor, input_ids_3: Tensor, noise: Tensor
    ) -> Tensor:
        """The decoder's output before it is clamped: [B, 3, H, W] float32, nominally in [-1, 1]."""
        return self.decoded(self.latent(input_ids, input_ids_2, input_ids_3, noise))

    def latent(
        self, input_ids: Tensor, input_ids_2: Tensor, input_ids_3: Tensor, noise: Tensor
    ) -> Tensor:
        """What the decoder is given: [B, C, h, w] float32, in the VAE's own scale."""
        t5 = self.text_encoder_3(input_ids_3)[0]  # the last hidden states, [B, S, D]
        return self.conditioned(input_ids, input_ids_2, t5, noise)
