"""NVlabs' features of the noise level, out of those that `UNet2DModel` computes.

Both networks see a noise level c as cosines and sines of K = C/2 frequencies w_j = 10000^(-j/K),
and a linear layer follows. EDM (arXiv 2206.00364, table 1) gives NVlabs' network c = ln(sigma) / 4,
so that its frequencies go from 1 downwards. In a `ConsistencyModelPipeline` a `UNet2DModel` is
given 1000 c: it has 1000 w_j, from 1000 downwards.

The last quarter of those are the first quarter of the wanted ones. The other three quarters are so
slow that, over all noise levels of use, cos(w c) and sin(w c) are combinations of the quarter that
is there (and a constant): for C = 192 and sigma from 0.001 to 160, with an error of 1e-9 at most
and coefficients whose sizes add to at most 2.2. So the combination is multiplied into the linear
layer, once, and nothing remains to be done when the network runs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SIGMAS = (0.001, 160.0)  # where the features are the wanted ones
PERIOD = 10_000.0
FASTER = 1000.0  # UNet2DModel's frequencies, in units of NVlabs'
POINTS = 2001
CUT = 1e-10  # singular values below this share are left out, which keeps coefficients small


def fold(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """A linear layer on NVlabs' features, weight [E, C], bias [E], as one on `UNet2DModel`'s."""
    mix, constant = combination(weight.shape[1])
    wide = weight.double()
    return (wide @ mix.to(weight.device)).float(), (
        bias.double() + wide @ constant.to(weight.device)
    ).float()


def combination(C: int) -> tuple[Tensor, Tensor]:
    """M [C, C] and b [C] with wanted features = M · features of `UNet2DModel` + b; float64."""
    K = C // 2
    wanted = PERIOD ** (-torch.arange(K, dtype=torch.float64) / K)
    have = FASTER * wanted
    slow = have <= 1 + 1e-9  # faster ones would have to cancel
    low, high = (math.log(sigma) / 4 for sigma in SIGMAS)
    c = torch.linspace(low, high, POINTS, dtype=torch.float64)[:, None]
    ones = torch.ones_like(c)
    cosines = least_squares(torch.cat([torch.cos(c * have[slow]), ones], 1), torch.cos(c * wanted))
    sines = least_squares(torch.sin(c * have[slow]), torch.sin(c * wanted))
    mix = torch.zeros(C, C, dtype=torch.float64)
    constant = torch.zeros(C, dtype=torch.float64)
    first = int((~slow).sum())
    mix[:K, first:K] = cosines[:-1].T
    mix[K:, K + first :] = sines.T
    constant[:K] = cosines[-1]
    return mix, constant


def least_squares(have: Tensor, wanted: Tensor) -> Tensor:
    """X with have · X = wanted, of the smallest size: [points, m], [points, n] -> [m, n]."""
    found: Tensor = torch.linalg.lstsq(have, wanted, rcond=CUT, driver="gelsd").solution
    return found
