"""The networks whose features pictures are compared by, from the user's disk: Inception v3, CLIP.

Nothing is downloaded. Inception is TorchScript, which is a program: it runs code of whoever made
the file. CLIP is a directory of transformers, weights only.

Shapes: n pictures of H x W pixels, uint8 [n, H, W, 3]; D or E features.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from distill.picture_shapes import cut_square

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
PREFIX = "A photo depicts "  # of every caption (CLIPScore, arXiv 2104.08718)
CLIP_CONFIG = "preprocessor_config.json"


class NetworkError(ValueError):
    """A feature network that cannot be opened or does not give features; the text names it."""


class Inception:
    """A TorchScript network as StyleGAN2-ADA and StyleGAN3 distribute Inception v3.

    It takes pictures [n, 3, H, W] of values 0 to 255 and `return_features=True`; it resizes and
    scales them itself, and returns [n, 2048].
    """

    def __init__(self, network: torch.jit.ScriptModule, path: Path, device: torch.device) -> None:
        self._network, self._path, self._device = network, path, device
        self.sha256 = file_digest(path)

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        """Features of pictures [n, H, W, 3], uint8 or float in 0 to 255: [n, D] float32.

        NetworkError: what comes back is not [n, D] or not finite.
        """
        planes = pictures.permute(0, 3, 1, 2).to(self._device)
        try:
            features = self._network(planes, return_features=True)
        except RuntimeError as error:
            last = str(error).strip().splitlines()[-1]
            raise NetworkError(
                f"evaluate.inception: {self._path} does not take pictures [n, 3, H, W] and"
                f" return_features=True: {last}"
            ) from None
        if not isinstance(features, Tensor) or features.shape[:1] != planes.shape[:1]:
            raise NetworkError(
                f"evaluate.inception: {self._path} returns no tensor with a row for each picture"
            )
        rows = features.flatten(1).float()
        if not torch.isfinite(rows).all():
            raise NetworkError(f"evaluate.inception: {self._path} returns features not finite")
        return rows


def load_inception(path: Path | None, device: torch.device) -> Inception:
    """Opens a TorchScript file. NetworkError: it is missing or is none."""
    assert path is not None, "the recipe names no network"
    if not path.is_file():
        raise NetworkError(f"evaluate.inception: {path} does not exist; nothing is downloaded")
    try:
        with warnings.catch_warnings():
            # The one format in which this network is distributed.
            warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated", DeprecationWarning)
            network = torch.jit.load(path, map_location=device)  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise NetworkError(
            f"evaluate.inception: {path} is no TorchScript (inception-2015-12-05.pt is; a .pkl is"
            f" refused, for it could run anything): {str(error).splitlines()[0].partition('. ')[0]}"
        ) from None
    return Inception(network.eval(), path, device)


class Clip:
    """A CLIP directory of transformers: pictures and captions as vectors of one space."""

    def __init__(self, model: Any, tokenizer: Any, folder: Path, device: torch.device) -> None:
        self._model, self._tokenizer = model.to(device).eval(), tokenizer
        self._device = device
        self._side_px: int = model.config.vision_config.image_size
        self._mean, self._std = scaling(folder)
        self._length: int = model.config.text_config.max_position_embeddings
        self.sha256 = folder_digest(folder)
        self.cut_captions = 0  # how many were longer than the network reads

    @torch.no_grad()
    def pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Embeddings of pictures, cut to a square and resized (bicubic): [n, E]."""
        side = (self._side_px, self._side_px)
        resized = [cut_square(p).resize(side, Image.Resampling.BICUBIC) for p in pictures]
        pixels = torch.from_numpy(np.stack([np.asarray(p) for p in resized])).permute(0, 3, 1, 2)
        scaled = (pixels / 255 - self._mean) / self._std
        found = self._model.get_image_features(pixel_values=scaled.to(self._device))
        return embedding(found)

    @torch.no_grad()
    def texts(self, captions: Sequence[str]) -> Tensor:
        """Embeddings of captions after the prefix: [n, E]; what is too long is cut and counted."""
        texts = [PREFIX + caption for caption in captions]
        whole = self._tokenizer(texts).input_ids
        self.cut_captions += sum(len(ids) > self._length for ids in whole)
        tokens = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self._length, return_tensors="pt"
        )
        found = self._model.get_text_features(
            input_ids=tokens.input_ids.to(self._device),
            attention_mask=tokens.attention_mask.to(self._device),
        )
        return embedding(found)


def load_clip(folder: Path, device: torch.device) -> Clip:
    """Opens a CLIP directory in float32. NetworkError: it is missing or is none."""
    config = folder / "config.json"
    if not config.is_file():
        raise NetworkError(f"evaluate.clip: {folder} has no config.json; nothing is downloaded")
    try:
        kind = json.loads(config.read_text("utf-8")).get("model_type")
        if kind != "clip":
            raise NetworkError(f"evaluate.clip: {folder} holds a {kind!r}, and must hold a 'clip'")
        model = CLIPModel.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        return Clip(model, tokenizer, folder, device)
    except NetworkError:
        raise
    except (OSError, ValueError, TypeError, AttributeError, SafetensorError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise NetworkError(f"evaluate.clip: {folder} cannot be opened: {first}") from error


def embedding(found: Any) -> Tensor:
    """The projected embedding in what transformers returns: itself, or an output that has it."""
    return cast(Tensor, found if isinstance(found, Tensor) else found.pooler_output).float()


def scaling(folder: Path) -> tuple[Tensor, Tensor]:
    """Mean and deviation of colours by the directory's own settings: [3, 1, 1] each."""
    path = folder / CLIP_CONFIG
    plain = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    mean, std = plain.get("image_mean", CLIP_MEAN), plain.get("image_std", CLIP_STD)
    return torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path) -> str:
    """SHA-256 of the names and bytes of a directory's JSON and safetensors files."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".json", ".safetensors")):
        digest.update(f"{path.name} {file_digest(path)}\n".encode())
    return digest.hexdigest()
