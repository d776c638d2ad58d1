"""What SD 1.x, 2.x and SDXL share: a U-Net on VAE latents, and a variance-preserving schedule.

A student's level is the timestep that pure noise is labelled with. Its pipeline has a
`DDIMScheduler` whose only timestep is that one and whose single step (DDIM, arXiv 2010.02502,
eq. 12 with the signal of the next step set to 1) is x0 = (x − √(1 − ᾱ) ε) / √ᾱ.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from torch import Tensor, nn

from distill.features import first_tensor
from distill.noise import NoiseSchedule, check_prediction_type
from distill.teachers.teacher import (
    Condition,
    TeacherError,
    freeze,
    pipeline_digest,
    quantized,
    sampled,
    unit_noise,
    weights_digest,
)

DEFAULT_TIMESTEP = 399  # as DMD2 (arXiv 2405.14867) labels pure noise


class StableTeacher(ABC):
    """A `StableDiffusion…Pipeline`; what tells its kinds apart is left to them."""

    part = "unet"
    prompted = True
    classes = 0
    class_names: tuple[str, ...] = ()
    encoders: tuple[str, ...]  # the names of its text encoders
    tokenizers: tuple[str, ...]

    def __init__(self, pipe: Any, device: torch.device) -> None:
        self.pipe = pipe.to(device)
        self.device = device
        self.denoiser: nn.Module = pipe.unet
        freeze(pipe.unet, pipe.vae, *(getattr(pipe, name) for name in self.encoders))
        if not hasattr(pipe.scheduler, "alphas_cumprod"):
            raise TypeError(
                f"its scheduler {type(pipe.scheduler).__name__} has no alphas_cumprod, as those of"
                " epsilon and v prediction have"
            )
        if not pipe.scheduler.alphas_cumprod.all():
            raise TypeError(
                f"its scheduler {type(pipe.scheduler).__name__} has a zero terminal SNR"
                " (rescale_betas_zero_snr), so its last timestep has no noise level; save it with"
                " EulerDiscreteScheduler in its place, which leaves a signal of 2^-12 there"
            )
        self.prediction_type: str = pipe.scheduler.config.prediction_type
        check_prediction_type(self.prediction_type)
        self.schedule = NoiseSchedule(pipe.scheduler.alphas_cumprod)
        size: int = pipe.unet.config.sample_size
        self.latent_shape: tuple[int, int, int] = (pipe.unet.config.in_channels, size, size)
        self.size_px: int = size * pipe.vae_scale_factor

    @abstractmethod
    def embed(self, prompts: Sequence[str]) -> Condition:
        """Conditions of a few prompts, on the device."""

    @abstractmethod
    def denoise(self, unet: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The raw prediction of `unet` (this teacher's or a student's): x [n, c, h, w], t [n]."""

    @abstractmethod
    def embeddings(self, condition: Condition, negative: Condition | None) -> dict[str, Tensor]:
        """Conditions, and what stands for none, as its pipeline takes them."""

    @abstractmethod
    def unconditional(self, n: int) -> Condition:
        """What stands for no prompt in guidance."""

    @abstractmethod
    def pipeline_of(self, unet: nn.Module, scheduler: Any) -> DiffusionPipeline:
        """The same pipeline with another denoiser and scheduler."""

    @torch.no_grad()
    def encode(self, texts: Sequence[str], batch: int = 64) -> Condition:
        """Conditions of prompts, on the CPU in float32. TeacherError: one is too long."""
        self._check_lengths(texts)
        parts = [self.embed(texts[start : start + batch]) for start in range(0, len(texts), batch)]
        found = Condition.cat(parts).to(torch.device("cpu"))
        return Condition({name: part.float() for name, part in found.parts.items()})

    def _check_lengths(self, prompts: Sequence[str]) -> None:
        for prompt in prompts:
            if (error := self.length_error(prompt)) is not None:
                raise TeacherError(error)

    def length_error(self, text: str) -> str | None:
        """What is wrong with a text that is longer than the tokenizers take; None: it fits."""
        for tokenizer in (getattr(self.pipe, name) for name in self.tokenizers):
            limit: int = tokenizer.model_max_length
            count = len(tokenizer(text).input_ids)
            if count > limit:
                return f"prompt {text[:60]!r}… has {count} tokens; the limit is {limit}"
        return None

    def level(self, timestep: int | None, sigma: float | None) -> float:
        """The timestep that pure noise is labelled with. TeacherError: not one of the schedule."""
        if sigma is not None:
            raise TeacherError(
                f"student.sigma is {sigma:g}, but this teacher counts in timesteps: set"
                " student.timestep"
            )
        chosen = DEFAULT_TIMESTEP if timestep is None else timestep
        if not 0 <= chosen <= self.last_level:
            raise TeacherError(
                f"student.timestep is {chosen}, allowed is 0 to {self.last_level:.0f}"
            )
        return float(chosen)

    @property
    def last_level(self) -> float:
        """The last timestep of the schedule."""
        return float(len(self.schedule.sigmas) - 1)

    def one_step(
        self, denoiser: nn.Module, noise: Tensor, level: float, condition: Condition
    ) -> Tensor:
        """Clean latents from pure noise in one call, labelled `level`: [n, c, h, w] float32."""
        t = torch.full((len(noise),), int(level), device=noise.device)
        prediction = self.denoise(denoiser, noise, t, condition)
        with torch.autocast(noise.device.type, enabled=False):
            return self.schedule.x0_from_prediction(noise, prediction, t, self.prediction_type)

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Pure noise of seeds, as diffusers draws it: [n, c, h, w], an item by its own seed."""
        return unit_noise(self.latent_shape, seeds, self.device)

    @torch.no_grad()
    def sample(
        self, condition: Condition, seeds: Sequence[int], steps: int, guidance_scale: float
    ) -> Tensor:
        """Latents by the pipeline's own sampler, one seed per item: [n, c, h, w] float32.

        An item's noise depends on its seed alone, never on its neighbours.
        """
        assert len(seeds) == len(condition), (len(seeds), len(condition))
        guided = guidance_scale > 1
        negative = self.unconditional(len(seeds)).to(self.device) if guided else None
        given = self.embeddings(condition.to(self.device), negative)
        return sampled(self.pipe, given, seeds, steps, guidance_scale, self.size_px)

    @torch.no_grad()
    def encode_pictures(self, pictures: Tensor) -> Tensor:
        """Scaled latents of pictures [n, 3, H, W] in [-1, 1]: the posterior's mean, float32."""
        vae = self.pipe.vae
        latents: Tensor = vae.encode(pictures.to(self.device, vae.dtype)).latent_dist.mean
        scaled: Tensor = latents.float() * vae.config.scaling_factor
        return scaled

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures of scaled latents [n, c, h, w]: uint8 [n, H, W, 3] on the CPU."""
        vae = self.pipe.vae
        scaled = latents.to(self.device, vae.dtype) / vae.config.scaling_factor
        return quantized(vae.decode(scaled, return_dict=False)[0])

    def feature_pass(
        self, x0: Tensor, noise: Tensor, sigma: Tensor, condition: Condition
    ) -> Callable[[], Tensor]:
        """A call that runs the teacher on noised samples, for the feature extractor.

        x0, noise [n, c, h, w], sigma [n] (noise level, of the latent's own scale).
        """
        t = self.schedule.timestep(sigma)
        x = self.schedule.add_noise(x0, noise, t)
        return lambda: self.denoise(self.denoiser, x, t, condition)

    def hidden(self, layer: str, output: object) -> Tensor:
        """A block's hidden state: its output, or the first of its tuple (hidden, residuals)."""
        return first_tensor(layer, output)

    def student_pipeline(self, denoiser: nn.Module, level: float) -> DiffusionPipeline:
        """The teacher's pipeline with the student, and the scheduler of its one step."""
        return self.pipeline_of(denoiser, self.one_step_scheduler(int(level)))

    def one_step_scheduler(self, timestep: int) -> DDIMScheduler:
        """The scheduler whose only timestep is this one."""
        config = self.pipe.scheduler.config
        return DDIMScheduler(
            num_train_timesteps=config.num_train_timesteps,
            beta_start=config.beta_start,
            beta_end=config.beta_end,
            beta_schedule=config.beta_schedule,
            trained_betas=config.trained_betas,
            rescale_betas_zero_snr=config.get("rescale_betas_zero_snr", False),
            prediction_type=self.prediction_type,
            timestep_spacing="leading",
            steps_offset=timestep,
            set_alpha_to_one=True,
            clip_sample=False,
        )

    def sampling_digest(self) -> str:
        """SHA-256 over denoiser, text encoders, scheduler and size."""
        modules = (self.denoiser, *(getattr(self.pipe, name) for name in self.encoders))
        return pipeline_digest(self.pipe.scheduler, self.latent_shape, modules)

    def picture_digest(self) -> str:
        """SHA-256 of the VAE's weights."""
        return weights_digest(self.pipe.vae.state_dict())
