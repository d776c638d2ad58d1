"""The cases that the gate draws: a subject and a seed per row, their inputs and their noise.

N rows, B batch, C latent channels, h x w latent size, H x W picture size in pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from export.signature import NOISE, Signature, Size
from export.tasks.subjects import Subjects

Pictures = NDArray[np.uint8]  # [N, H, W, 3]
Feeds = Mapping[str, NDArray[np.generic]]  # the graph's inputs by name, [B, ...]
Infer = Callable[[Feeds], Pictures]  # a runtime: a batch of inputs -> its pictures


@dataclass(frozen=True)
class Cases:
    """N rows for pictures of one size, and what each reference draws for them, by its name.

    A row's prompt is what asks for its picture: of a class-conditional model the class's number.
    """

    size: Size
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    feeds: Feeds
    pictures: Mapping[str, Pictures]

    @property
    def torch_pictures(self) -> Pictures:
        """What the graph's own module draws."""
        return self.pictures["torch"]

    @property
    def stock_pictures(self) -> Pictures:
        """What stock diffusers' own call draws."""
        return self.pictures["stock"]


def plan(signature: Signature, subjects: Subjects, rows: int, size: Size | None = None) -> Cases:
    """Row i has text i (round and round) and seed i; `size` is the default one if not given."""
    size = size or signature.sizes[0]
    prompts = subjects.of_rows(rows)
    seeds = tuple(range(rows))
    noise = np.concatenate([noise_of(seed, signature.noise_shape(size)) for seed in seeds])
    return Cases(size, prompts, seeds, {**subjects.encode(prompts), NOISE: noise}, {})


def noise_of(seed: int, shape: Sequence[int]) -> NDArray[np.float32]:
    """The noise of one picture, [1, C, h, w]: torch's own CPU stream of the seed."""
    generator = torch.Generator().manual_seed(seed)
    noise: NDArray[np.float32] = torch.randn((1, *shape), generator=generator).numpy()
    return noise
