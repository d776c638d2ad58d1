"""Feature networks that are small, random and real: a TorchScript file and a CLIP directory."""

import json
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tiny import tiny_tokenizer
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

FEATURES = 6


class TinyInception(nn.Module):
    """Takes pictures as Inception does, 0 to 255, and returns as many features as it has filters.

    `spoilt` makes what it returns no number.
    """

    def __init__(self, features: int = FEATURES, spoilt: bool = False) -> None:
        super().__init__()
        self.filters = nn.Conv2d(3, features, 5, stride=8)
        self.spoilt = spoilt

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        assert return_features
        found = self.filters(img.float() / 127.5 - 1).relu().mean((2, 3))
        return found / 0 if self.spoilt else found


class Plain(nn.Module):
    """A network that knows no `return_features`."""

    def forward(self, img: Tensor) -> Tensor:
        return img


class Sum(nn.Module):
    """A network that returns one number for all pictures."""

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        return img.sum()


def tiny_inception(seed: int = 0) -> TinyInception:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TinyInception().eval()


def save_network(network: nn.Module, path: Path) -> Path:
    """As TorchScript."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        torch.jit.script(network).save(path)
    return path


def save_tiny_clip(folder: Path, seed: int = 0) -> Path:
    """A CLIP directory of 32 px pictures and 20 tokens, with settings of its own for colours."""
    tokenizer = tiny_tokenizer("<|endoftext|>")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 20, "num_attention_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    vision = {"image_size": 32, "patch_size": 8, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**small, **text, **ends, "pad_token_id": tokenizer.pad_token_id},
        vision_config={**small, **vision},
        projection_dim=12,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    colours = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25]}
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps({**colours, **sizes}))
    return folder


def random_pictures(count: int, width: int, height: int, seed: int = 0) -> list[Image.Image]:
    """Smooth pictures, each of colours of its own."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, 4, 4, 3), np.uint8)
    return [Image.fromarray(p).resize((width, height), Image.Resampling.BICUBIC) for p in small]


def save_pictures(folder: Path, pictures: list[Image.Image]) -> Path:
    """As PNG files, every second one in a folder of its own kind."""
    for number, picture in enumerate(pictures):
        place = folder / ("even", "odd")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        picture.save(place / f"{number:03}.png")
    return folder
