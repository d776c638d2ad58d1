"""What a student's clean latents look like: a few of them, through stock diffusers.

A latent space is scaled to unit deviation. Asked for one step, a many-step model gives the mean of
all the pictures that the noise may become, which is fainter; a wrong prediction type gives back
the noise; a wrong timestep gives too much or too little. Limits: docs/one-step-models.md.
"""

from collections.abc import Iterator, Sequence

import torch

from export.model.stock import stock_latent
from export.model.student import Student

FAINT, STRONG = 0.85, 1.6
NOISY = 0.5


def look_at(student: Student, prompts: Sequence[str]) -> Iterator[str]:
    """Sentences about the latents of `prompts`, with seeds 0, 1, …; none if all looks well."""
    shape = (1, student.latent_channels, student.latent_size, student.latent_size)
    noise = [
        torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        for seed in range(len(prompts))
    ]
    pairs = zip(prompts, noise, strict=True)
    latents = [stock_latent(student, prompt, z).float() for prompt, z in pairs]
    yield from looks_like(torch.cat(noise), torch.cat(latents))


def looks_like(noise: torch.Tensor, latents: torch.Tensor) -> Iterator[str]:
    """What [N, C, h, w] noise and the latents drawn from it say together."""
    deviation = float(latents.std())
    correlation = float(torch.corrcoef(torch.stack([noise.flatten(), latents.flatten()]))[0, 1])
    if abs(correlation) > NOISY:
        yield (
            f"the latents look like the noise they come from (correlation {correlation:.2f}): the "
            f"network seems to predict something else than the recipe says, as many-step models do"
        )
    elif deviation < FAINT:
        yield (
            f"the latents look faint (deviation {deviation:.2f}, about 1 is usual): a many-step "
            f"model's are so in one step, or the timestep is not the one it was distilled for"
        )
    elif deviation > STRONG:
        yield (
            f"the latents look overdriven (deviation {deviation:.2f}, about 1 is usual): the model "
            f"was distilled for another timestep or another kind, if it was distilled at all"
        )
