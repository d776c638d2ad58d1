"""The cases that the gate draws: a prompt and a seed per row, their token ids and their noise.

N rows, B batch, T tokens, C latent channels, h x w latent size, H x W picture size in pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from export.signature import NOISE, TOKENS, Signature, Size

Pictures = NDArray[np.uint8]  # [N, H, W, 3]
Feeds = Mapping[str, NDArray[np.generic]]  # the graph's inputs by name, [B, ...]
Infer = Callable[[Feeds], Pictures]  # a runtime: a batch of inputs -> its pictures
Encode = Callable[[Sequence[str]], dict[str, NDArray[np.int64]]]  # prompts -> ids [N, T] by input

# Ordinary prompts and extreme ones in turn: eight rows already hold most kinds.
PROMPTS = (
    "a small red circle on the left",
    "",
    " ".join("abcdefghijklmnopqrstuvwxyz"[i % 26] for i in range(TOKENS - 2)),  # exactly 77 ids
    "a photograph of an astronaut riding a horse " * 12,  # beyond 77: cut, as diffusers cuts it
    "two large blue squares 🟦🟦 👩🏽‍🚀 🏳️‍🌈",
    "دائرة حمراء صغيرة, ‏עיגול אדום‎",  # right to left, with its marks
    "Z̷̧̛a͉͗l̴̡g̶̨o, e\u0301, ﬁ, Å, 한글, ½",  # combining, compatibility and composed characters
    "tab\tnew\nline\r\x01\x07\x1b[31mred\x7f\u200b\ufeff\ufffd",  # control characters
    "A landscape in autumn, oil on canvas, 1890!",
    "x",
    "a cat and a dog",
    "赤い円、左に。",
    "!!! ??? ...   ",
    "<|endoftext|> a red <|startoftext|> shape",
    "something green",
    "1234567890 3.14 -7e-5",
)


@dataclass(frozen=True)
class Cases:
    """N rows for pictures of one size, and what each reference draws for them, by its name."""

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


def plan(signature: Signature, encode: Encode, rows: int, size: Size | None = None) -> Cases:
    """Row i has prompt i (round and round) and seed i; `size` is the default one if not given."""
    size = size or signature.sizes[0]
    prompts = tuple(PROMPTS[i % len(PROMPTS)] for i in range(rows))
    seeds = tuple(range(rows))
    noise = np.concatenate([noise_of(seed, signature.noise_shape(size)) for seed in seeds])
    return Cases(size, prompts, seeds, {**encode(prompts), NOISE: noise}, {})


def noise_of(seed: int, shape: Sequence[int]) -> NDArray[np.float32]:
    """The noise of one picture, [1, C, h, w]: torch's own CPU stream of the seed."""
    generator = torch.Generator().manual_seed(seed)
    noise: NDArray[np.float32] = torch.randn((1, *shape), generator=generator).numpy()
    return noise


def pipeline_encoder(pipeline: Any) -> Encode:
    """The ids as the student's own tokenizers give them, cut and padded to 77."""
    tokenizers = {"input_ids": pipeline.tokenizer, "input_ids_2": pipeline.tokenizer_2}

    def encode(prompts: Sequence[str]) -> dict[str, NDArray[np.int64]]:
        options = {"padding": "max_length", "max_length": TOKENS, "truncation": True}
        return {
            name: tokenizer(list(prompts), return_tensors="np", **options).input_ids
            for name, tokenizer in tokenizers.items()
        }

    return encode


def file_encoder(folder: Path, entries: Mapping[str, Mapping[str, Any]]) -> Encode:
    """The ids as the tokenizer files of a version give them; `entries` are its manifest's."""
    tokenizers = {}
    for name, entry in entries.items():
        tokenizer = Tokenizer.from_file(str(folder / entry["file"]))
        tokenizer.enable_truncation(entry["max_length"])
        tokenizers[name] = tokenizer

    def encode(prompts: Sequence[str]) -> dict[str, NDArray[np.int64]]:
        return {
            name: np.array([line.ids for line in tokenizer.encode_batch(list(prompts))], np.int64)
            for name, tokenizer in tokenizers.items()
        }

    return encode
