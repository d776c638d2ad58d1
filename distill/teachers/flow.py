"""Flow matching as a teacher: stock `StableDiffusion3Pipeline` directories (SD 3 and 3.5).

A rectified flow (arXiv 2403.03206, section 2) joins picture and noise by a straight line,
x_s = (1 − s) x0 + s ε, and its transformer answers with the line's velocity v = ε − x0. Hence
x0 = x_s − s v: an Euler step from s down to 0. The transformer is told the time as N s, with N the
scheduler's `num_train_timesteps` (1000).

A recipe's noise level σ is the noise's deviation at the latent's own scale. Dividing x_s by 1 − s
gives x0 + s/(1 − s) ε, so σ = s/(1 − s), that is s = σ/(1 + σ), and x_s = (x0 + σ ε)/(1 + σ).

The student's level is s, and it is 1: a stock `FlowMatchEulerDiscreteScheduler` begins its steps
there whatever its shift (s' = k s/(1 + (k − 1) s) is 1 at s = 1), dynamic or not. Nothing is
magnified there, as an ε prediction is at a schedule's end, so no other level is needed.

A condition's parts: `prompt` [n, T, C] (the tokens of both CLIP encoders side by side, padded to
the width C of T5, then T5's own; zeros in their place where the pipeline has no T5) and `pooled`
[n, E]. L = h/p · w/p patches of p x p latent positions are the transformer's picture tokens.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from torch import Tensor, nn

from distill.features import first_tensor
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

T5_TOKENS = 256  # how many the pipeline reads unless it is told otherwise
BLOCK = re.compile(r"transformer_blocks\.\d+")


class FlowTeacher:
    """The frozen pipeline, read as tensors: conditions, latents, velocities, pictures."""

    part = "transformer"
    prompted = True
    classes = 0
    class_names: tuple[str, ...] = ()

    def __init__(self, pipe: Any, device: torch.device) -> None:
        check_scheduler(pipe.scheduler)
        if pipe.vae.config.shift_factor is None:
            raise TypeError("its VAE's config has no shift_factor, which this pipeline decodes by")
        self.pipe = pipe.to(device)
        self.device = device
        self.denoiser: nn.Module = pipe.transformer
        everyone = (pipe.text_encoder, pipe.text_encoder_2, pipe.text_encoder_3)
        self.encoders: list[nn.Module] = [one for one in everyone if one is not None]
        freeze(pipe.transformer, pipe.vae, *self.encoders)
        size: int = pipe.transformer.config.sample_size
        self.latent_shape: tuple[int, int, int] = (pipe.transformer.config.in_channels, size, size)
        self.size_px: int = size * pipe.vae_scale_factor
        self.timesteps: int = pipe.scheduler.config.num_train_timesteps

    @torch.no_grad()
    def encode(self, texts: Sequence[str], batch: int = 64) -> Condition:
        """Conditions of prompts, on the CPU in float32. TeacherError: one is too long."""
        for text in texts:
            if (error := self.length_error(text)) is not None:
                raise TeacherError(error)
        parts = [self._embed(texts[start : start + batch]) for start in range(0, len(texts), batch)]
        found = Condition.cat(parts).to(torch.device("cpu"))
        return Condition({name: part.float() for name, part in found.parts.items()})

    def _embed(self, prompts: Sequence[str]) -> Condition:
        prompt, _, pooled, _ = self.pipe.encode_prompt(
            list(prompts),
            None,
            None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=T5_TOKENS,
        )
        return Condition({"prompt": prompt, "pooled": pooled})

    def length_error(self, text: str) -> str | None:
        """What is wrong with a text that an encoder would cut short; None: it fits."""
        pipe = self.pipe
        limits = {"tokenizer": pipe.tokenizer_max_length, "tokenizer_2": pipe.tokenizer_max_length}
        for name, limit in {**limits, "tokenizer_3": T5_TOKENS}.items():
            tokenizer = getattr(pipe, name)
            count = 0 if tokenizer is None else len(tokenizer(text).input_ids)
            if count > limit:
                return f"prompt {text[:60]!r}… has {count} tokens; the limit is {limit}"
        return None

    def level(self, timestep: int | None, sigma: float | None) -> float:
        """The s at which the one step begins: 1. TeacherError: another is asked for."""
        if timestep is not None:
            raise TeacherError(
                f"student.timestep is {timestep}, but this teacher counts in sigmas: leave it out"
                " (student.sigma is 1 then)"
            )
        if sigma not in (None, 1.0):
            raise TeacherError(
                f"student.sigma is {sigma:g}, allowed is 1: FlowMatchEulerDiscreteScheduler cannot"
                " begin its one step anywhere else"
            )
        return self.last_level

    @property
    def last_level(self) -> float:
        """Pure noise is s = 1."""
        return 1.0

    def denoise(self, transformer: nn.Module, x: Tensor, s: Tensor, condition: Condition) -> Tensor:
        """The velocity by `transformer` (this teacher's or a student's): x [n, c, h, w], s [n]."""
        velocity: Tensor = transformer(
            hidden_states=x,
            timestep=self.timesteps * s,
            encoder_hidden_states=condition.parts["prompt"],
            pooled_projections=condition.parts["pooled"],
            return_dict=False,
        )[0]
        return velocity

    def one_step(
        self, denoiser: nn.Module, noise: Tensor, level: float, condition: Condition
    ) -> Tensor:
        """Clean latents x0 = x − s v from pure noise in one call: [n, c, h, w] float32."""
        s = torch.full((len(noise),), level, device=noise.device)
        velocity = self.denoise(denoiser, noise, s, condition)
        with torch.autocast(noise.device.type, enabled=False):
            return noise.float() - level * velocity.float()

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Pure noise of seeds, as diffusers draws it: [n, c, h, w], an item by its own seed."""
        return unit_noise(self.latent_shape, seeds, self.device)

    @torch.no_grad()
    def sample(
        self, condition: Condition, seeds: Sequence[int], steps: int, guidance_scale: float
    ) -> Tensor:
        """Latents by the pipeline's own sampler and shift, one seed per item: [n, c, h, w] float32.

        Guidance is away from the empty prompt.
        """
        assert len(seeds) == len(condition), (len(seeds), len(condition))
        given = _embeddings(condition.to(self.device), "")
        if guidance_scale > 1:
            empty = self.encode([""]).repeated(len(seeds))
            given |= _embeddings(empty.to(self.device), "negative_")
        return sampled(self.pipe, given, seeds, steps, guidance_scale, self.size_px)

    @torch.no_grad()
    def encode_pictures(self, pictures: Tensor) -> Tensor:
        """Latents of pictures [n, 3, H, W] in [-1, 1], shifted, then scaled: the posterior's mean.

        -> [n, c, h, w] float32.
        """
        vae = self.pipe.vae
        mean: Tensor = vae.encode(pictures.to(self.device, vae.dtype)).latent_dist.mean
        latents: Tensor = (mean.float() - vae.config.shift_factor) * vae.config.scaling_factor
        return latents

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures of latents [n, c, h, w]: uint8 [n, H, W, 3] on the CPU."""
        vae = self.pipe.vae
        own = latents.to(self.device, vae.dtype) / vae.config.scaling_factor
        return quantized(vae.decode(own + vae.config.shift_factor, return_dict=False)[0])

    def feature_pass(
        self, x0: Tensor, noise: Tensor, sigma: Tensor, condition: Condition
    ) -> Callable[[], Tensor]:
        """A call that runs the teacher on noised samples, for the feature extractor.

        x0, noise [n, c, h, w]; sigma [n], the noise's deviation at the latent's own scale.
        """
        deviation = sigma.float().view(-1, 1, 1, 1)
        x = (x0.float() + deviation * noise.float()) / (1 + deviation)
        s = sigma.float() / (1 + sigma.float())
        return lambda: self.denoise(self.denoiser, x, s, condition)

    def hidden(self, layer: str, output: object) -> Tensor:
        """A layer's picture tokens as a map [n, C, h/p, w/p]; what is no picture as it is.

        A block `transformer_blocks.N` returns (the prompt's tokens or None, the picture's).
        """
        if BLOCK.fullmatch(layer) and isinstance(output, tuple):
            output = output[1]
        tokens = first_tensor(layer, output)
        side = self.latent_shape[1] // self.pipe.transformer.config.patch_size
        if tokens.ndim != 3 or tokens.shape[1] != side * side:
            return tokens
        return tokens.transpose(1, 2).reshape(len(tokens), -1, side, side)

    def student_pipeline(self, denoiser: nn.Module, level: float) -> StableDiffusion3Pipeline:
        """The teacher's pipeline with the student, and a scheduler whose one step is from s = 1.

        Where it has no T5, stock diffusers opens it with text_encoder_3=None, tokenizer_3=None.
        """
        assert level == self.last_level, level
        pipe = self.pipe
        return StableDiffusion3Pipeline(
            transformer=denoiser,
            scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=self.timesteps),
            vae=pipe.vae,
            text_encoder=pipe.text_encoder,
            tokenizer=pipe.tokenizer,
            text_encoder_2=pipe.text_encoder_2,
            tokenizer_2=pipe.tokenizer_2,
            text_encoder_3=pipe.text_encoder_3,
            tokenizer_3=pipe.tokenizer_3,
        )

    def sampling_digest(self) -> str:
        """SHA-256 over transformer, text encoders, scheduler and size."""
        modules = (self.denoiser, *self.encoders)
        return pipeline_digest(self.pipe.scheduler, self.latent_shape, modules)

    def picture_digest(self) -> str:
        """SHA-256 over the VAE's weights, its scale and its shift."""
        config = self.pipe.vae.config
        facts = f"{config.scaling_factor!r} {config.shift_factor!r} "
        digest = hashlib.sha256(facts.encode())
        digest.update(weights_digest(self.pipe.vae.state_dict()).encode())
        return digest.hexdigest()


def check_scheduler(scheduler: Any) -> None:
    """TypeError unless it steps along the flow of this module's head, with its time unturned."""
    name = type(scheduler).__name__
    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        raise TypeError(f"its scheduler is {name}; it must be FlowMatchEulerDiscreteScheduler")
    if scheduler.config.invert_sigmas:
        raise TypeError(f"its scheduler {name} has invert_sigmas, so its time runs backwards")


def _embeddings(condition: Condition, prefix: str) -> dict[str, Tensor]:
    """A condition as the pipeline takes it."""
    return {
        f"{prefix}prompt_embeds": condition.parts["prompt"],
        f"{prefix}pooled_prompt_embeds": condition.parts["pooled"],
    }
