"""Stock diffusers' own one-step call of a student: the reference that owes nothing to our graph.

N pictures, C latent channels, h x w latent size, H x W picture size in pixels.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.model.student import Student
from export.quiet import quiet

# "The first timestep is not 999": that is what the recipe asks for.
SCHEDULER_LOGS = ("diffusers.schedulers.scheduling_lcm", "diffusers.schedulers.scheduling_tcd")

# What a denoiser is given by name in the encoders' type; a UNet gets its latents first and unnamed.
TOLD = ("hidden_states", "encoder_hidden_states", "pooled_projections")


def stock_call(student: Student, prompt: str, noise: torch.Tensor) -> NDArray[np.uint8]:
    """One picture [1, H, W, 3] for noise [1, C, h, w], through the pipeline's own `__call__`."""
    levels: NDArray[np.uint8] = (_call(student, prompt, noise, "np") * 255).round().astype(np.uint8)
    return levels


def stock_latent(student: Student, prompt: str, noise: torch.Tensor) -> torch.Tensor:
    """The clean latent [1, C, h, w] of the same call, before the VAE's scaling."""
    latent: torch.Tensor = _call(student, prompt, noise, "latent")
    return latent


def stock_pictures(
    student: Student, prompts: Sequence[str], noise: Sequence[torch.Tensor]
) -> NDArray[np.uint8]:
    """One picture at a time, each with its own prompt and noise [1, C, h, w]: [N, H, W, 3]."""
    pictures = [
        stock_call(student, prompt, latents) for prompt, latents in zip(prompts, noise, strict=True)
    ]
    return np.concatenate(pictures)


def _call(student: Student, prompt: str, noise: torch.Tensor, output_type: str) -> Any:
    """The call that the model's card prescribes; height and width are those of the noise.

    Stock draws its noise in the type of the text encoders, and hands the denoiser's type to the
    VAE; where the VAE has another one, its callback after the step is the place to say so.
    """
    recipe, pipeline, denoiser = student.recipe, student.pipeline, student.denoiser

    def for_the_vae(_pipe: Any, _step: int, _t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": tensors["latents"].to(pipeline.vae.dtype)}

    # the pipeline of a flow takes no timesteps
    how = {} if recipe.timestep is None else {"timesteps": [recipe.timestep]}
    with quiet(*SCHEDULER_LOGS), _told_in_its_type(denoiser):
        return pipeline(
            prompt,
            **how,
            height=noise.shape[2] * pipeline.vae_scale_factor,
            width=noise.shape[3] * pipeline.vae_scale_factor,
            latents=noise.to(denoiser.dtype),
            num_inference_steps=1,
            guidance_scale=recipe.guidance_scale,
            output_type=output_type,
            callback_on_step_end=for_the_vae,
        ).images


@contextmanager
def _told_in_its_type(denoiser: Any) -> Iterator[None]:
    """Stock hands it the encoders' type, whatever its own; here it is turned on the way."""

    def turn(_denoiser: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        told = {name: kwargs[name].to(denoiser.dtype) for name in TOLD if name in kwargs}
        return args, {**kwargs, **told}

    hook = denoiser.register_forward_pre_hook(turn, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
