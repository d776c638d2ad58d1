"""SDXL as a teacher: stock `StableDiffusionXLPipeline` directories, epsilon or v prediction.

The conventions of SDXL (arXiv 2307.01952) live here and nowhere else in `distill`: two text
encoders whose penultimate hidden states are concatenated, the pooled projection of the second, the
size conditioning.

A condition's parts: `prompt` [n, T, C] (T tokens, C the width of both encoders) and `pooled`
[n, E].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor, nn

from distill.teachers.stable import StableTeacher
from distill.teachers.teacher import Condition


class SdxlTeacher(StableTeacher):
    """The frozen pipeline, read as tensors: conditions, latents, predictions, pictures."""

    encoders = ("text_encoder", "text_encoder_2")
    tokenizers = ("tokenizer", "tokenizer_2")

    def embed(self, prompts: Sequence[str]) -> Condition:
        """Both encoders' penultimate hidden states side by side, and the second's projection."""
        prompt, _, pooled, _ = self.pipe.encode_prompt(
            list(prompts),
            device=self.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
        return Condition({"prompt": prompt, "pooled": pooled})

    def denoise(self, unet: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The raw prediction of `unet` (this teacher's or a student's): x [n, c, h, w], t [n]."""
        size = float(self.size_px)
        time_ids = torch.tensor([size, size, 0.0, 0.0, size, size], device=x.device)
        added = {"text_embeds": condition.parts["pooled"], "time_ids": time_ids.repeat(len(x), 1)}
        prediction: Tensor = unet(
            x,
            t,
            encoder_hidden_states=condition.parts["prompt"],
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        return prediction

    def embeddings(self, condition: Condition, negative: Condition | None) -> dict[str, Tensor]:
        """Conditions as the pipeline takes them."""
        found = {
            "prompt_embeds": condition.parts["prompt"],
            "pooled_prompt_embeds": condition.parts["pooled"],
        }
        if negative is not None:
            found["negative_prompt_embeds"] = negative.parts["prompt"]
            found["negative_pooled_prompt_embeds"] = negative.parts["pooled"]
        return found

    def unconditional(self, n: int) -> Condition:
        """What stands for no prompt: zeros where the pipeline says so, else the empty prompt."""
        empty = self.encode([""]).repeated(n)
        return empty.zeros() if self.pipe.config.force_zeros_for_empty_prompt else empty

    def pipeline_of(self, unet: nn.Module, scheduler: Any) -> StableDiffusionXLPipeline:
        """The same pipeline with another denoiser and scheduler."""
        return StableDiffusionXLPipeline(
            vae=self.pipe.vae,
            text_encoder=self.pipe.text_encoder,
            text_encoder_2=self.pipe.text_encoder_2,
            tokenizer=self.pipe.tokenizer,
            tokenizer_2=self.pipe.tokenizer_2,
            unet=unet,
            scheduler=scheduler,
            force_zeros_for_empty_prompt=self.pipe.config.force_zeros_for_empty_prompt,
            add_watermarker=False,
        )
