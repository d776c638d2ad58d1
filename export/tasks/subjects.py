"""What the gate asks for pictures of: texts that take turns, and the graph's inputs they become.

A class is asked for by a text too: its number. N rows, T tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from export.model.families import family_of
from export.signature import CLASS_LABELS, TEXT_INPUTS, TOKENS

Encode = Callable[[Sequence[str]], dict[str, NDArray[np.int64]]]  # texts -> inputs [N, ...] by name

CLASSES = 16  # that take turns, where there are so many
# Ordinary prompts and extreme ones in turn: eight rows already hold most kinds.
PROMPTS = (
    "a small red circle on the left",
    "",
    " ".join("abcdefghijklmnopqrstuvwxyz"[i % 26] for i in range(TOKENS - 2)),  # exactly 77 ids
    "a photograph of an astronaut riding a horse " * 36,  # beyond 256: cut, as diffusers cuts it
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
class Subjects:
    """The texts, and how they become inputs of the graph."""

    texts: tuple[str, ...]
    encode: Encode

    def of_rows(self, rows: int) -> tuple[str, ...]:
        """A text for each of so many rows, round and round."""
        return tuple(self.texts[i % len(self.texts)] for i in range(rows))


def prompts(encode: Encode) -> Subjects:
    """The prompts that every text model is measured with."""
    return Subjects(PROMPTS, encode)


def classes(count: int) -> Subjects:
    """The first, the last, and classes spread evenly between them."""
    between = [round(i * (count - 1) / (CLASSES - 1)) for i in range(1, CLASSES - 1)]
    numbers = dict.fromkeys([0, count - 1, *between])
    return Subjects(tuple(map(str, numbers)), class_labels)


def class_labels(texts: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """Class numbers as the graph takes them, [N]."""
    return {CLASS_LABELS: np.array([int(text) for text in texts], np.int64)}


def subjects_of(folder: Path, manifest: Mapping[str, Any]) -> Subjects:
    """Those of a published version: its classes, or prompts for its tokenizer files."""
    if "classes" in manifest:
        return classes(manifest["classes"]["count"])
    return prompts(file_encoder(folder, manifest["tokenizers"]))


def pipeline_encoder(pipeline: Any) -> Encode:
    """The ids as the student's own tokenizers give them, cut and padded to their lengths."""
    tokenizers = family_of(pipeline).tokenizers_of(pipeline)

    def encode(prompts: Sequence[str]) -> dict[str, NDArray[np.int64]]:
        options = {"padding": "max_length", "truncation": True, "return_tensors": "np"}
        return {
            name: tokenizer(list(prompts), max_length=TEXT_INPUTS[name], **options).input_ids
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
