"""A class-conditional EDM as a teacher: stock `ConsistencyModelPipeline` directories.

EDM (arXiv 2206.00364) in pixel space: the latent is the picture itself, in [-1, 1]. Its network F
is a `UNet2DModel`, given 250 ln(sigma), and

    D(x; σ) = c_skip x + c_out F(c_in x; σ)        (eq. 7, table 1; σ_data, mostly 0.5)

A student's level is the sigma of the noise that it is given. Its pipeline has a
`CMStochasticIterativeScheduler` whose sigma_max is that one and whose sigma_min is 0. Diffusers
subtracts sigma_min from sigma, so that D(x; sigma_min) = x (arXiv 2303.01469, app. C): with 0 the
one step is D.

A condition's one part: `label` [n] int64, a class number, which recipes write as text.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline
from torch import Tensor, nn

from distill.features import first_tensor
from distill.teachers.teacher import (
    Condition,
    TeacherError,
    freeze,
    pipeline_digest,
    quantized,
    unit_noise,
)

STEPS = 18  # of Heun's method, what EDM's own sampler takes unless told otherwise


class EdmTeacher:
    """The frozen pipeline, read as tensors: conditions, pictures, predictions."""

    part = "unet"
    prompted = False
    class_names: tuple[str, ...] = ()

    def __init__(self, pipe: Any, device: torch.device) -> None:
        config = check_network(pipe.unet)
        check_scheduler(pipe.scheduler)
        self.pipe = pipe.to(device)
        self.device = device
        self.denoiser: nn.Module = pipe.unet
        freeze(pipe.unet)
        self.classes: int = config.num_class_embeds
        self.sigma_data: float = pipe.scheduler.config.sigma_data
        self.size_px: int = config.sample_size
        self.latent_shape: tuple[int, int, int] = (config.in_channels, self.size_px, self.size_px)

    def encode(self, texts: Sequence[str], batch: int = 64) -> Condition:
        """Conditions of class numbers, on the CPU. TeacherError: one is none, or out of range."""
        labels = [self._label(text) for text in texts]
        return Condition({"label": torch.tensor(labels, dtype=torch.int64)})

    def _label(self, text: str) -> int:
        plain = text.strip()
        if not (plain.isascii() and plain.isdecimal()) or int(plain) >= self.classes:
            raise TeacherError(
                f"class {text[:60]!r} is not one of this teacher's: allowed are the numbers 0 to"
                f" {self.classes - 1}"
            )
        return int(plain)

    def level(self, timestep: int | None, sigma: float | None) -> float:
        """The sigma of the student's noise. TeacherError: beyond the schedule, or a timestep."""
        if timestep is not None:
            raise TeacherError(
                f"student.timestep is {timestep}, but this teacher counts in noise levels: set"
                " student.sigma"
            )
        chosen = self.last_level if sigma is None else sigma
        if not 0 < chosen <= self.last_level:
            raise TeacherError(
                f"student.sigma is {chosen:g}, allowed is above 0, up to {self.last_level:g}"
            )
        return chosen

    @property
    def last_level(self) -> float:
        """The scheduler's sigma_max."""
        return float(self.pipe.scheduler.config.sigma_max)

    def predict(self, unet: nn.Module, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """F(c_in x; σ) of `unet` (this teacher's or a student's): x [n, c, h, w], sigma [n]."""
        _, _, c_in = preconditioning(sigma, self.sigma_data)
        prediction: Tensor = unet(
            per_item(c_in) * x,
            timestep(sigma),
            class_labels=condition.parts["label"],
            return_dict=False,
        )[0]
        return prediction

    def clean(self, unet: nn.Module, x: Tensor, sigma: float, condition: Condition) -> Tensor:
        """D(x; σ), one level for all items: x [n, c, h, w] -> [n, c, h, w] float32."""
        levels = torch.full((len(x),), sigma, device=x.device, dtype=torch.float64)
        prediction = self.predict(unet, x, levels, condition)
        with torch.autocast(x.device.type, enabled=False):
            c_skip, c_out, _ = preconditioning(levels, self.sigma_data)
            return per_item(c_skip) * x.float() + per_item(c_out) * prediction.float()

    def one_step(
        self, denoiser: nn.Module, noise: Tensor, level: float, condition: Condition
    ) -> Tensor:
        """D(σ z; σ) of unit noise z [n, c, h, w] in one call: [n, c, h, w] float32."""
        return self.clean(denoiser, level * noise, level, condition)

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Unit noise of seeds, as diffusers draws it: [n, c, h, w], an item by its own seed."""
        return unit_noise(self.latent_shape, seeds, self.device)

    @torch.no_grad()
    def sample(
        self,
        condition: Condition,
        seeds: Sequence[int],
        steps: int = STEPS,
        guidance_scale: float = 1.0,
    ) -> Tensor:
        """Pictures by Heun's method (EDM, alg. 1), one seed per item: [n, c, h, w] float32.

        TeacherError: guidance is asked for, or the scheduler ends at no noise, as a student's does.
        """
        assert len(seeds) == len(condition), (len(seeds), len(condition))
        if guidance_scale not in (0, 1):
            raise TeacherError(
                f"teacher.guidance_scale is {guidance_scale:g}, but a class-conditional EDM has no"
                " guidance: allowed is 0 or 1"
            )
        config = self.pipe.scheduler.config
        if not config.sigma_min > 0:
            raise TeacherError("this is a one-step student (its sigma_min is 0), not to be sampled")
        sigmas = heun_sigmas(steps, config.sigma_min, config.sigma_max, config.rho)
        there = condition.to(self.device)
        return heun(
            lambda x, sigma: self.clean(self.denoiser, x, sigma, there), self.noise(seeds), sigmas
        )

    def encode_pictures(self, pictures: Tensor) -> Tensor:
        """Pictures [n, 3, H, W] in [-1, 1] as they are."""
        return pictures.to(self.device).float()

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures [n, c, h, w] as bytes: uint8 [n, H, W, 3] on the CPU."""
        return quantized(latents)

    def feature_pass(
        self, x0: Tensor, noise: Tensor, sigma: Tensor, condition: Condition
    ) -> Callable[[], Tensor]:
        """A call that runs the teacher on x0 + σ noise: x0, noise [n, c, h, w], sigma [n]."""
        x = x0.float() + per_item(sigma) * noise
        return lambda: self.predict(self.denoiser, x, sigma, condition)

    def hidden(self, layer: str, output: object) -> Tensor:
        """A block's hidden state: its output, or the first of its tuple (hidden, residuals)."""
        return first_tensor(layer, output)

    def student_pipeline(self, denoiser: nn.Module, level: float) -> ConsistencyModelPipeline:
        """A pipeline whose one step is D at this level; rho 1 leaves sigma_max as it is given."""
        scheduler = CMStochasticIterativeScheduler(
            sigma_min=0.0,
            sigma_max=level,
            sigma_data=self.sigma_data,
            rho=1.0,
            clip_denoised=False,
        )
        return ConsistencyModelPipeline(denoiser, scheduler)

    def sampling_digest(self) -> str:
        """SHA-256 over denoiser, scheduler and size."""
        return pipeline_digest(self.pipe.scheduler, self.latent_shape, (self.denoiser,))

    def picture_digest(self) -> str:
        """SHA-256 of the pictures' shape: nothing else is between them and the latents."""
        return hashlib.sha256(repr(self.latent_shape).encode()).hexdigest()


def preconditioning(sigma: Tensor, sigma_data: float) -> tuple[Tensor, Tensor, Tensor]:
    """c_skip, c_out and c_in (EDM, table 1): sigma [n] -> [n] each, float32."""
    sigma = sigma.double()
    total = sigma**2 + sigma_data**2
    c_skip, c_out, c_in = sigma_data**2 / total, sigma * sigma_data / total.sqrt(), total.rsqrt()
    return c_skip.float(), c_out.float(), c_in.float()


def timestep(sigma: Tensor) -> Tensor:
    """What the network is told of a noise level, 1000 · ln(σ)/4: [n] -> [n] float32.

    In float64, since float32 would round it in another place than diffusers does.
    """
    return (250 * sigma.double().log()).float()


def per_item(values: Tensor) -> Tensor:
    """[n] -> [n, 1, 1, 1]."""
    return values.view(-1, 1, 1, 1)


def heun_sigmas(steps: int, low: float, high: float, rho: float) -> list[float]:
    """Noise levels from `high` to `low` and then 0 (EDM, eq. 5): `steps` + 1 of them."""
    if steps == 1:
        return [high, 0.0]
    first, last = high ** (1 / rho), low ** (1 / rho)
    ramp = [first + i / (steps - 1) * (last - first) for i in range(steps)]
    return [*(point**rho for point in ramp), 0.0]


def heun(
    clean: Callable[[Tensor, float], Tensor], noise: Tensor, sigmas: Sequence[float]
) -> Tensor:
    """Solves dx/dσ = (x - D(x; σ))/σ by Heun's method (EDM, alg. 1) from unit noise."""
    x = sigmas[0] * noise
    for sigma, after in pairwise(sigmas):
        slope = (x - clean(x, sigma)) / sigma
        step = x + (after - sigma) * slope
        if after > 0:
            slope = (slope + (step - clean(step, after)) / after) / 2
            step = x + (after - sigma) * slope
        x = step
    return x


def check_network(unet: Any) -> Any:
    """The configuration of a `UNet2DModel` of this kind. TypeError: it is another network."""
    config = unet.config
    if not config.get("num_class_embeds"):
        raise TypeError("its unet has no num_class_embeds, so it is not class-conditional")
    if config.get("time_embedding_type") != "positional" or config.in_channels != 3:
        raise TypeError(
            f"its unet has {config.in_channels} channels and"
            f" {config.get('time_embedding_type')!r} time embedding; supported are 3 and"
            " 'positional'"
        )
    return config


def check_scheduler(scheduler: Any) -> None:
    """TypeError unless it states the levels and the data's deviation in a way that makes sense."""
    if not isinstance(scheduler, CMStochasticIterativeScheduler):
        raise TypeError(
            f"its scheduler is {type(scheduler).__name__}; supported is"
            " CMStochasticIterativeScheduler"
        )
    low, high = scheduler.config.sigma_min, scheduler.config.sigma_max
    data = scheduler.config.sigma_data
    if not (0 <= low < high < math.inf and 0 < data < math.inf and scheduler.config.rho > 0):
        raise TypeError(
            f"its scheduler has sigma_min {low:g}, sigma_max {high:g} and sigma_data {data:g}; they"
            " must be 0 <= sigma_min < sigma_max and sigma_data > 0"
        )
