"""What `distill` asks of a teacher: one protocol, to which each foreign convention is adapted once.

A *level* says how noisy the student's input is labelled, in the teacher's own unit: a timestep
(`StableDiffusionXLPipeline`, `StableDiffusionPipeline`) or a sigma (EDM, flow matching).

Shapes: n items, c x h x w latent (of a model in pixel space, the picture itself).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class TeacherError(ValueError):
    """A teacher that is missing, is not what it must be, or cannot do what it is asked for."""


@dataclass(frozen=True)
class Condition:
    """What the denoiser is told of each item: tensors by name, each [n, ...]."""

    parts: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.parts.values())))

    def __getitem__(self, index: Tensor | slice) -> Condition:
        return Condition({name: part[index] for name, part in self.parts.items()})

    def repeated(self, times: int) -> Condition:
        """Each item `times` times in a row: [n, ...] -> [n * times, ...]."""
        return Condition(
            {name: part.repeat_interleave(times, 0) for name, part in self.parts.items()}
        )

    def to(self, device: torch.device) -> Condition:
        return Condition({name: part.to(device) for name, part in self.parts.items()})

    def zeros(self) -> Condition:
        """The same shapes, all zero."""
        return Condition({name: torch.zeros_like(part) for name, part in self.parts.items()})

    @classmethod
    def cat(cls, conditions: Sequence[Condition]) -> Condition:
        """One after the other."""
        names = conditions[0].parts
        return cls({name: torch.cat([one.parts[name] for one in conditions]) for name in names})


class Teacher(Protocol):
    """A frozen pipeline, read as tensors: conditions, latents, predictions, pictures."""

    device: torch.device
    denoiser: nn.Module  # frozen; a student is a copy of it
    part: str  # the denoiser's folder in a pipeline directory
    latent_shape: tuple[int, int, int]  # c, h, w
    size_px: int
    prompted: bool  # conditions are prompts; else class numbers
    classes: int  # 0 where it is prompted
    class_names: tuple[str, ...]  # one for each class, or none

    def encode(self, texts: Sequence[str], batch: int = 64) -> Condition:
        """Conditions of prompts, or of class numbers, on the CPU in float32.

        TeacherError: a prompt is too long, a class number is none or out of range.
        """

    def level(self, timestep: int | None, sigma: float | None) -> float:
        """The level that a recipe's `student` section asks for; its own default if both are None.

        TeacherError: the one that this teacher does not have is given, or it is out of range.
        """

    @property
    def last_level(self) -> float:
        """The level of pure noise by the teacher's own schedule."""

    def one_step(
        self, denoiser: nn.Module, noise: Tensor, level: float, condition: Condition
    ) -> Tensor:
        """Clean latents from unit noise [n, c, h, w] in one call: [n, c, h, w] float32."""

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Unit noise of seeds, as diffusers draws it: [n, c, h, w], an item by its own seed."""

    def sample(
        self, condition: Condition, seeds: Sequence[int], steps: int, guidance_scale: float
    ) -> Tensor:
        """Latents by the teacher's own sampler, one seed per item: [n, c, h, w] float32.

        An item depends on its seed and condition alone, never on its neighbours.
        """

    def encode_pictures(self, pictures: Tensor) -> Tensor:
        """Latents of pictures [n, 3, H, W] in [-1, 1]: [n, c, h, w] float32."""

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures of latents [n, c, h, w]: uint8 [n, H, W, 3] on the CPU."""

    def feature_pass(
        self, x0: Tensor, noise: Tensor, sigma: Tensor, condition: Condition
    ) -> Callable[[], object]:
        """A call that runs the denoiser on noised samples, for the feature extractor.

        x0, noise [n, c, h, w]; sigma [n], the noise's deviation at the latent's own scale.
        """

    def hidden(self, layer: str, output: object) -> Tensor:
        """The hidden state in a layer's output: a map [n, C, H, W], or tokens [n, L, C].

        ValueError: there is none.
        """

    def student_pipeline(self, denoiser: nn.Module, level: float) -> Any:
        """A stock diffusers pipeline whose single step is `one_step` at this level."""

    def sampling_digest(self) -> str:
        """SHA-256 of all that its latents depend on: denoiser, conditions' encoders, sampler."""

    def picture_digest(self) -> str:
        """SHA-256 of all that the way between pictures and latents depends on."""


def unit_noise(shape: tuple[int, ...], seeds: Sequence[int], device: torch.device) -> Tensor:
    """Noise as diffusers draws it on the CPU, an item by its own seed: [n, *shape]."""
    drawn = [
        torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)) for seed in seeds
    ]
    return torch.stack(drawn).to(device)


def sampled(
    pipe: Any,
    given: Mapping[str, object],
    seeds: Sequence[int],
    steps: int,
    guidance_scale: float,
    size_px: int,
) -> Tensor:
    """Latents by a pipeline's own sampler, an item by its own seed: [n, c, h, w] float32.

    `given` are the embeddings, as the pipeline takes them.
    """
    pipe.set_progress_bar_config(disable=True)
    out = pipe(
        **given,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        height=size_px,
        width=size_px,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        output_type="latent",
    )
    latents: Tensor = out.images
    return latents.float()


def quantized(pictures: Tensor) -> Tensor:
    """Pictures [n, 3, H, W] in [-1, 1] as uint8 [n, H, W, 3] on the CPU, as diffusers rounds."""
    pixels = ((pictures.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu()


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names and bytes of tensors."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(
            value.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()


def pipeline_digest(scheduler: Any, facts: object, modules: Sequence[nn.Module]) -> str:
    """SHA-256 of a scheduler's settings, of `facts`, and of the weights of modules."""
    settings = {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
    described = (type(scheduler).__name__, sorted(settings.items()), facts)
    digest = hashlib.sha256(repr(described).encode())
    for module in modules:
        digest.update(weights_digest(module.state_dict()).encode())
    return digest.hexdigest()


def freeze(*modules: nn.Module) -> None:
    """No gradients to their parameters, no dropout."""
    for module in modules:
        module.requires_grad_(False).eval()


def first_line(error: BaseException) -> str:
    """The first line of what a library says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def check_parts(folder: Path, parts: Sequence[str]) -> None:
    """TeacherError unless the pipeline directory has these sub-folders."""
    missing = [part for part in parts if not (folder / part).is_dir()]
    if missing:
        raise TeacherError(f"teacher.model: {folder} cannot be opened: no {', '.join(missing)}")
