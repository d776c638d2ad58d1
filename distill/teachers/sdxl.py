"""SDXL as a teacher: stock `StableDiffusionXLPipeline` directories, epsilon or v prediction.

The conventions of SDXL (arXiv 2307.01952) live here and nowhere else in `distill`: two text
encoders whose penultimate hidden states are concatenated, the pooled projection of the second, the
size conditioning, latents scaled by the VAE's factor.

Shapes: n items, T tokens, C width of both encoders, E pooled width, c x h x w latent.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from safetensors import SafetensorError
from torch import Tensor, nn

from distill.noise import NoiseSchedule, check_prediction_type

PIPELINE = "StableDiffusionXLPipeline"
PARTS = ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "unet", "vae", "scheduler")


class TeacherError(ValueError):
    """A teacher directory that is missing or is not what it must be."""


@dataclass(frozen=True)
class Condition:
    """What the denoiser is told of each item: `prompt` [n, T, C] and `pooled` [n, E]."""

    prompt: Tensor
    pooled: Tensor

    def __getitem__(self, index: Tensor | slice) -> Condition:
        return Condition(self.prompt[index], self.pooled[index])

    def repeated(self, times: int) -> Condition:
        """Each item `times` times in a row: [n, ...] -> [n * times, ...]."""
        return Condition(
            self.prompt.repeat_interleave(times, 0), self.pooled.repeat_interleave(times, 0)
        )

    def to(self, device: torch.device) -> Condition:
        return Condition(self.prompt.to(device), self.pooled.to(device))


class SdxlTeacher:
    """The frozen pipeline, read as tensors: conditions, latents, predictions, pictures."""

    def __init__(self, pipe: StableDiffusionXLPipeline, device: torch.device) -> None:
        self.pipe = pipe.to(device)
        self.device = device
        self.unet: nn.Module = pipe.unet
        for part in (pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
            part.requires_grad_(False).eval()
        if not hasattr(pipe.scheduler, "alphas_cumprod"):
            raise TypeError(
                f"its scheduler {type(pipe.scheduler).__name__} has no alphas_cumprod, as those of"
                " epsilon and v prediction have"
            )
        self.prediction_type: str = pipe.scheduler.config.prediction_type
        check_prediction_type(self.prediction_type)
        self.schedule = NoiseSchedule(pipe.scheduler.alphas_cumprod)
        size: int = pipe.unet.config.sample_size
        self.latent_shape: tuple[int, int, int] = (pipe.unet.config.in_channels, size, size)
        self.size_px: int = size * pipe.vae_scale_factor

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str], batch: int = 64) -> Condition:
        """Conditions of prompts, on the CPU in float32. TeacherError: one is too long."""
        self._check_lengths(prompts)
        parts = []
        for start in range(0, len(prompts), batch):
            prompt, _, pooled, _ = self.pipe.encode_prompt(
                list(prompts[start : start + batch]),
                device=self.device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=False,
            )
            parts.append((prompt.float().cpu(), pooled.float().cpu()))
        return Condition(torch.cat([p for p, _ in parts]), torch.cat([p for _, p in parts]))

    def _check_lengths(self, prompts: Sequence[str]) -> None:
        for tokenizer in (self.pipe.tokenizer, self.pipe.tokenizer_2):
            limit: int = tokenizer.model_max_length
            for prompt in prompts:
                count = len(tokenizer(prompt).input_ids)
                if count > limit:
                    raise TeacherError(
                        f"prompt {prompt[:60]!r}… has {count} tokens; the limit is {limit}"
                    )

    def denoise(self, unet: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The raw prediction of `unet` (this teacher's or a student's): x [n, c, h, w], t [n]."""
        size = float(self.size_px)
        time_ids = torch.tensor([size, size, 0.0, 0.0, size, size], device=x.device)
        added = {"text_embeds": condition.pooled, "time_ids": time_ids.repeat(len(x), 1)}
        prediction: Tensor = unet(
            x, t, encoder_hidden_states=condition.prompt, added_cond_kwargs=added, return_dict=False
        )[0]
        return prediction

    def one_step(
        self, unet: nn.Module, noise: Tensor, timestep: int, condition: Condition
    ) -> Tensor:
        """Clean latents from pure noise in one call, labelled `timestep`: [n, c, h, w] float32."""
        t = torch.full((len(noise),), timestep, device=noise.device)
        prediction = self.denoise(unet, noise, t, condition)
        with torch.autocast(noise.device.type, enabled=False):
            return self.schedule.x0_from_prediction(noise, prediction, t, self.prediction_type)

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Pure noise of seeds, as diffusers draws it: [n, c, h, w], an item by its own seed."""
        drawn = [
            torch.randn(self.latent_shape, generator=torch.Generator("cpu").manual_seed(seed))
            for seed in seeds
        ]
        return torch.stack(drawn).to(self.device)

    @torch.no_grad()
    def sample(
        self, condition: Condition, seeds: Sequence[int], steps: int, guidance_scale: float
    ) -> Tensor:
        """Latents by the pipeline's own sampler, one seed per item: [n, c, h, w] float32.

        An item's noise depends on its seed alone, never on its neighbours.
        """
        assert len(seeds) == len(condition.pooled), (len(seeds), len(condition.pooled))
        nothing = Condition(torch.zeros_like(condition.prompt), torch.zeros_like(condition.pooled))
        guided: dict[str, Any] = {}
        if guidance_scale > 1:
            nothing = self._unconditional(len(seeds)).to(self.device)
            guided = {
                "negative_prompt_embeds": nothing.prompt,
                "negative_pooled_prompt_embeds": nothing.pooled,
            }
        condition = condition.to(self.device)
        self.pipe.set_progress_bar_config(disable=True)
        out = self.pipe(
            prompt_embeds=condition.prompt,
            pooled_prompt_embeds=condition.pooled,
            **guided,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            height=self.size_px,
            width=self.size_px,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            output_type="latent",
        )
        latents: Tensor = out.images
        return latents.float()

    def _unconditional(self, n: int) -> Condition:
        """What stands for no prompt: zeros where the pipeline says so, else the empty prompt."""
        empty = self.encode_prompts([""]).repeated(n)
        if self.pipe.config.force_zeros_for_empty_prompt:
            return Condition(torch.zeros_like(empty.prompt), torch.zeros_like(empty.pooled))
        return empty

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
        pictures: Tensor = vae.decode(scaled, return_dict=False)[0].float()
        pixels = ((pictures / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).cpu()

    def feature_pass(
        self, x0: Tensor, noise: Tensor, sigma: Tensor, condition: Condition
    ) -> Callable[[], Tensor]:
        """A call that runs the teacher on noised samples, for the feature extractor.

        x0, noise [n, c, h, w], sigma [n] (noise level, of the latent's own scale).
        """
        t = self.schedule.timestep(sigma)
        x = self.schedule.add_noise(x0, noise, t)
        return lambda: self.denoise(self.unet, x, t, condition)


def load_teacher(folder: Path, device: torch.device) -> SdxlTeacher:
    """Opens a diffusers directory in float32.

    Raises:
        TeacherError: no such directory, another pipeline class, a part that is missing or broken,
            or a scheduler that is not one of SDXL's kind.
    """
    check_index(folder)
    try:
        pipe = StableDiffusionXLPipeline.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, add_watermarker=False
        )
        return SdxlTeacher(pipe, device)
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise TeacherError(f"teacher.model: {folder} cannot be opened: {reason}") from error


def check_index(folder: Path) -> None:
    """TeacherError unless a directory's `model_index.json` names a whole pipeline of this class."""
    index_file = folder / "model_index.json"
    if not folder.is_dir():
        raise TeacherError(
            f"teacher.model: {folder} does not exist; it must be a diffusers directory"
        )
    if not index_file.is_file():
        raise TeacherError(f"teacher.model: {folder} has no model_index.json, so it is no pipeline")
    try:
        index = json.loads(index_file.read_text("utf-8"))
    except ValueError as error:
        raise TeacherError(
            f"teacher.model: {folder} cannot be opened: model_index.json is not JSON ({error})"
        ) from error
    name = index.get("_class_name")
    if name != PIPELINE:
        raise TeacherError(f"teacher.model: {folder} holds {name}; supported so far: {PIPELINE}")
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise TeacherError(f"teacher.model: {folder} cannot be opened: no {', '.join(missing)}")
