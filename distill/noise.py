"""The variance-preserving noise schedule, its noise levels, and what a network's output means.

x_t = √ᾱ_t x0 + √(1 − ᾱ_t) ε with integer timesteps t, as in DDPM (arXiv 2006.11239); v as in
Progressive Distillation (arXiv 2202.00512). The noise level is σ = √((1 − ᾱ)/ᾱ), the deviation of
the noise once the picture is scaled back to its own size. All conversions are done in float32: at
t = 999 of SDXL's schedule x0 from ε magnifies an error 14.6 times.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
REDRAWS = 8


class NoiseSchedule:
    """√ᾱ, √(1 − ᾱ) and σ of every timestep, made from a scheduler's `alphas_cumprod` [T]."""

    def __init__(self, alphas_cumprod: Tensor | Sequence[float]) -> None:
        abar = torch.as_tensor(alphas_cumprod, dtype=torch.float64, device="cpu")
        if abar.ndim != 1 or len(abar) == 0 or not bool(((abar > 0) & (abar < 1)).all()):
            raise ValueError(
                f"alphas_cumprod of shape {list(abar.shape)} must be a list of numbers strictly"
                " between 0 and 1 (a zero terminal SNR has no noise level sigma)"
            )
        self.signal = abar.sqrt()  # [T] float64
        self.noise = (1 - abar).sqrt()  # [T] float64
        self.sigmas = self.noise / self.signal  # [T] float64

    def sigma(self, t: Tensor) -> Tensor:
        """Noise level of timesteps: integers of any shape -> float32 of that shape."""
        return self._at(self.sigmas, t)

    def timestep(self, sigma: Tensor) -> Tensor:
        """The timestep whose noise level is nearest in ratio: float, any shape -> int64."""
        log_ratio = sigma.detach().double().cpu().log()[..., None] - self.sigmas.log()
        return log_ratio.abs().argmin(dim=-1).to(sigma.device)

    def add_noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t = √ᾱ x0 + √(1 − ᾱ) ε: x0, eps [n, ...], t [n] -> [n, ...] float32."""
        signal, noise = self._factors(x0, t)
        return signal * x0.float() + noise * eps.float()

    def x0_from_eps(self, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x0 = (x − √(1 − ᾱ) ε) / √ᾱ: x, eps [n, ...], t [n] -> [n, ...] float32."""
        signal, noise = self._factors(x, t)
        return (x.float() - noise * eps.float()) / signal

    def x0_from_v(self, x: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """x0 = √ᾱ x − √(1 − ᾱ) v: x, v [n, ...], t [n] -> [n, ...] float32."""
        signal, noise = self._factors(x, t)
        return signal * x.float() - noise * v.float()

    def eps_from_x0(self, x: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """ε = (x − √ᾱ x0) / √(1 − ᾱ): x, x0 [n, ...], t [n] -> [n, ...] float32."""
        signal, noise = self._factors(x, t)
        return (x.float() - signal * x0.float()) / noise

    def x0_from_prediction(self, x: Tensor, prediction: Tensor, t: Tensor, kind: str) -> Tensor:
        """x0 from a network's output of prediction type `kind`; ValueError if unknown."""
        check_prediction_type(kind)
        if kind == "epsilon":
            return self.x0_from_eps(x, prediction, t)
        if kind == "v_prediction":
            return self.x0_from_v(x, prediction, t)
        return prediction.float()

    def target(self, x0: Tensor, eps: Tensor, t: Tensor, kind: str) -> Tensor:
        """What a network of prediction type `kind` should answer at x_t: [n, ...] float32."""
        check_prediction_type(kind)
        if kind == "epsilon":
            return eps.float()
        if kind == "v_prediction":
            signal, noise = self._factors(x0, t)
            return signal * eps.float() - noise * x0.float()
        return x0.float()

    def _factors(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        assert t.shape == x.shape[:1], f"timesteps {t.shape} for samples {x.shape}"
        shape = (-1, *[1] * (x.ndim - 1))
        return self._at(self.signal, t).view(shape), self._at(self.noise, t).view(shape)

    def _at(self, table: Tensor, t: Tensor) -> Tensor:
        assert not t.is_floating_point(), f"timesteps are {t.dtype}, not integers"
        return table.float().to(t.device)[t]


def check_prediction_type(kind: str) -> None:
    """ValueError unless `kind` is one of diffusers' prediction types."""
    if kind not in PREDICTION_TYPES:
        raise ValueError(f"prediction type {kind!r} is not one of {', '.join(PREDICTION_TYPES)}")


def sample_sigma(
    generator: torch.Generator,
    B: int,
    mean: float = -1.2,
    std: float = 1.2,
    low: float = 0.02,
    high: float = 0.1,
) -> Tensor:
    """One noise level per group: log-normal, redrawn up to 8 times until in range, then clamped.

    -> [B] float32 on the generator's device. The generator is advanced by the same amount whatever
    is drawn; low == high gives that constant. ValueError: not 0 < low <= high, or a negative std.
    """
    if not 0 < low <= high:
        raise ValueError(f"sigma range is [{low:g}, {high:g}]: it needs 0 < low <= high")
    if std < 0:
        raise ValueError(f"sigma std is {std:g}: it must not be negative")
    z = torch.randn(1 + REDRAWS, B, generator=generator, device=generator.device)
    draws = (mean + std * z).exp()  # [1 + REDRAWS, B]
    inside = (draws >= low) & (draws <= high)
    inside[-1] = True  # the last draw stands, clamped
    first = inside.int().argmax(dim=0, keepdim=True)  # [1, B]
    return draws.gather(0, first)[0].clamp(low, high)
