"""Stable Diffusion 1.x and 2.x as a teacher: stock `StableDiffusionPipeline` directories.

One CLIP text encoder (Latent Diffusion, arXiv 2112.10752), whose last hidden states condition the
U-Net; epsilon prediction in 1.x and the base models of 2.x, v prediction in the others of 2.x.

A condition's one part: `prompt` [n, T, C] (T tokens, C the encoder's width).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor, nn

from distill.teachers.stable import StableTeacher
from distill.teachers.teacher import Condition


class SdTeacher(StableTeacher):
    """The frozen pipeline, read as tensors: conditions, latents, predictions, pictures."""

    encoders = ("text_encoder",)
    tokenizers = ("tokenizer",)

    def embed(self, prompts: Sequence[str]) -> Condition:
        """The encoder's last hidden states."""
        prompt, _ = self.pipe.encode_prompt(
            list(prompts),
            device=self.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
        return Condition({"prompt": prompt})

    def denoise(self, unet: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The raw prediction of `unet` (this teacher's or a student's): x [n, c, h, w], t [n]."""
        prediction: Tensor = unet(
            x, t, encoder_hidden_states=condition.parts["prompt"], return_dict=False
        )[0]
        return prediction

    def embeddings(self, condition: Condition, negative: Condition | None) -> dict[str, Tensor]:
        """Conditions as the pipeline takes them."""
        found = {"prompt_embeds": condition.parts["prompt"]}
        if negative is not None:
            found["negative_prompt_embeds"] = negative.parts["prompt"]
        return found

    def unconditional(self, n: int) -> Condition:
        """The empty prompt."""
        return self.encode([""]).repeated(n)

    def one_step_scheduler(self, timestep: int) -> DDIMScheduler:
        """A schedule that ends at this timestep, where "trailing" puts a single step.

        `StableDiffusionPipeline` sets any other `steps_offset` back to 1, so SDXL's way is closed.
        """
        betas = self.pipe.scheduler.betas[: timestep + 1].double().tolist()
        return DDIMScheduler(
            num_train_timesteps=timestep + 1,
            trained_betas=betas,
            prediction_type=self.prediction_type,
            timestep_spacing="trailing",
            steps_offset=1,
            set_alpha_to_one=True,
            clip_sample=False,
        )

    def pipeline_of(self, unet: nn.Module, scheduler: Any) -> StableDiffusionPipeline:
        """The same pipeline with another denoiser and scheduler; without a safety checker."""
        return StableDiffusionPipeline(
            vae=self.pipe.vae,
            text_encoder=self.pipe.text_encoder,
            tokenizer=self.pipe.tokenizer,
            unet=unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
