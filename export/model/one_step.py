"""The one step: which timestep, how the noise enters the UNet, how the clean latent comes out.

Every one-step model is linear in its noise and its prediction:

    input  = c z                 to the UNet, at timestep t
    latent = a z + b F           from its prediction F

Symbols: z standard normal noise, F the UNet's prediction, ᾱ_t the schedule's cumulated alpha,
x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε the noised latent, σ_t = √((1-ᾱ_t)/ᾱ_t). The functions are pure: from a
schedule and a timestep to the three coefficients, computed in float64.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import sqrt

import torch

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
SIGMA_DATA = 0.5  # of the consistency models' boundary condition

Alphas = Sequence[float] | torch.Tensor
Pair = tuple[float, float]


@dataclass(frozen=True)
class Coefficients:
    """c, a and b of the module's two lines."""

    input_scale: float
    noise: float
    prediction: float


@dataclass(frozen=True)
class OneStep:
    """The step of one model; `kind` says whose recipe it is.

    `timestep` is what the network is told: a whole number, but for a consistency model's 250 ln σ.
    """

    kind: str
    timestep: float
    prediction_type: str
    coefficients: Coefficients

    def to_json(self) -> dict[str, object]:
        """Plain values for the manifest."""
        return asdict(self)


def model_input(z: torch.Tensor, step: OneStep) -> torch.Tensor:
    """What the UNet sees, c z, [B, C, h, w] float32."""
    c = step.coefficients.input_scale
    return z if c == 1 else z.float() * c


def clean_latent(z: torch.Tensor, prediction: torch.Tensor, step: OneStep) -> torch.Tensor:
    """a z + b F in float32, [B, C, h, w]; a term whose coefficient is zero is left out.

    At t = 999 both coefficients of an epsilon model are 14.6 and magnify errors: hence float32.
    """
    a, b = step.coefficients.noise, step.coefficients.prediction
    scaled = prediction.float() if b == 1 else prediction.float() * b
    return scaled if a == 0 else z.float() * a + scaled


def denoised(alpha: float, prediction_type: str) -> Pair:
    """(p, q) of x_0 = p x_t + q F (DDIM, 2010.02502, eq. 9; v: 2202.00512, appendix D)."""
    signal, noise = sqrt(alpha), sqrt(1 - alpha)
    if prediction_type == "epsilon":
        return 1 / signal, -noise / signal
    if prediction_type == "v_prediction":
        return signal, -noise
    assert prediction_type == "sample", prediction_type
    return 0.0, 1.0


def noised(alpha: float, prediction_type: str) -> Pair:
    """(p, q) of ε = p x_t + q F: what `denoised` leaves of x_t, over √(1-ᾱ_t)."""
    signal, noise = sqrt(alpha), sqrt(1 - alpha)
    if prediction_type == "epsilon":
        return 0.0, 1.0
    if prediction_type == "v_prediction":
        return noise, signal
    assert prediction_type == "sample", prediction_type
    return 1 / noise, -signal / noise


def ddim(alphas: Alphas, t: int, prediction_type: str) -> Coefficients:
    """The noise is x_t itself: x_0 = p z + q F (DDIM, 2010.02502, eq. 9). Our own students."""
    p, q = denoised(float(alphas[t]), prediction_type)
    return Coefficients(1.0, p, q)


def euler(alphas: Alphas, t: int, prediction_type: str) -> Coefficients:
    """Euler from σ_t to 0, started at σ_t z (2206.00364, algorithm 1 without its correction).

    The UNet sees σ_t z / √(σ_t² + 1) = √(1-ᾱ_t) z, hence x_0 = p √(1-ᾱ_t) z + q F. So the stock
    pipeline runs SDXL-Turbo (2311.17042) and, with F = x_0, SDXL-Lightning (2402.13929).
    """
    alpha = float(alphas[t])
    c = sqrt(1 - alpha)
    p, q = denoised(alpha, prediction_type)
    return Coefficients(c, p * c, q)


def consistency(alphas: Alphas, t: int, prediction_type: str, scaling: float) -> Coefficients:
    """c_skip(t) z + c_out(t) x_0 with x_t = z (LCM, 2310.04378, eq. 9; LCM-LoRA, 2311.05556).

    c_skip = d²/((k t)² + d²) and c_out = k t/√((k t)² + d²), d = `SIGMA_DATA`, k = `scaling`: next
    to 0 and 1 wherever one step starts. DMD2 (2405.14867) and Hyper-SD's UNet (2404.13686) use it.
    """
    p, q = denoised(float(alphas[t]), prediction_type)
    total = (scaling * t) ** 2 + SIGMA_DATA**2
    skip, out = SIGMA_DATA**2 / total, scaling * t / sqrt(total)
    return Coefficients(1.0, out * p + skip, out * q)


def trajectory(alphas: Alphas, t: int, prediction_type: str) -> Coefficients:
    """√ᾱ_s x_0 + √(1-ᾱ_s) ε at s = 0 (TCD, 2402.19159): Hyper-SD's unified LoRA (2404.13686).

    ᾱ_0 is not quite 1 (0.99915 in SDXL's schedule), so the last trace of noise stays.
    """
    alpha, last = float(alphas[t]), float(alphas[0])
    x0, eps = denoised(alpha, prediction_type), noised(alpha, prediction_type)
    signal, noise = sqrt(last), sqrt(1 - last)
    return Coefficients(1.0, signal * x0[0] + noise * eps[0], signal * x0[1] + noise * eps[1])
