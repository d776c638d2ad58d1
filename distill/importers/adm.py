"""The U-Net of the ImageNet-64 EDM teachers (ADM, arXiv 2105.05233), as diffusers' `UNet2DModel`.

Both published checkpoints have this network and name its weights in their own way: levels from fine
to coarse, residual blocks with a scale and a shift from the noise level and the class, residual
blocks that halve and double the map, attention with heads of 64 channels.

A block's place is told by its level (0 is the finest) and by its number in the level.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor

from distill.importers.failure import ImportFailure

HEAD_DIM = 64
GROUPS = 32
SHOWN = 4  # names that a sentence lists


@dataclass(frozen=True)
class Adm:
    """The sizes that tell one such network from another."""

    size_px: int
    colours: int
    widths: tuple[int, ...]  # channels of each level
    blocks: int  # residual blocks of each level on the way down
    attention: tuple[bool, ...]  # of each level
    classes: int

    def config(self) -> dict[str, Any]:
        """The arguments of `UNet2DModel`."""
        levels = len(self.widths)
        return {
            "sample_size": self.size_px,
            "in_channels": self.colours,
            "out_channels": self.colours,
            "layers_per_block": self.blocks,
            "block_out_channels": list(self.widths),
            "down_block_types": [self._kind("Down", level) for level in range(levels)],
            "up_block_types": [self._kind("Up", level) for level in reversed(range(levels))],
            "num_class_embeds": self.classes,
            "attention_head_dim": HEAD_DIM,
            "norm_num_groups": GROUPS,
            "attn_norm_num_groups": GROUPS,
            "resnet_time_scale_shift": "scale_shift",
            "downsample_type": "resnet",
            "upsample_type": "resnet",
        }

    def _kind(self, way: str, level: int) -> str:
        plain = "ResnetDownsampleBlock2D" if way == "Down" else "ResnetUpsampleBlock2D"
        return f"Attn{way}Block2D" if self.attention[level] else plain

    def places(self) -> Iterator[Place]:
        """Every residual block, in the order in which they run."""
        levels = len(self.widths)
        for level in range(levels):
            yield from self._blocks("down", f"down_blocks.{level}", level, self.blocks)
            if level < levels - 1:
                yield Place("shrink", level, 0, f"down_blocks.{level}.downsamplers.0", None)
        yield Place("middle", levels - 1, 0, "mid_block.resnets.0", "mid_block.attentions.0")
        yield Place("middle", levels - 1, 1, "mid_block.resnets.1", None)
        for level in reversed(range(levels)):
            folder = f"up_blocks.{levels - 1 - level}"
            yield from self._blocks("up", folder, level, self.blocks + 1)
            if level > 0:
                yield Place("grow", level, 0, f"{folder}.upsamplers.0", None)

    def _blocks(self, part: str, folder: str, level: int, count: int) -> Iterator[Place]:
        for number in range(count):
            attention = f"{folder}.attentions.{number}" if self.attention[level] else None
            yield Place(part, level, number, f"{folder}.resnets.{number}", attention)


@dataclass(frozen=True)
class Place:
    """A residual block, and the attention that follows it: where they lie in `UNet2DModel`."""

    part: str  # down, shrink, middle, up, grow
    level: int
    number: int
    resnet: str
    attention: str | None


class Weights:
    """A foreign state dict that is moved, name by name, into one of `UNet2DModel`."""

    def __init__(self, foreign: Mapping[str, Tensor]) -> None:
        self.foreign = dict(foreign)
        self.moved: dict[str, Tensor] = {}

    def take(self, name: str) -> Tensor:
        """Takes a tensor out, in float32. ImportFailure: it is not there."""
        if name not in self.foreign:
            raise ImportFailure(f"{name} is missing: it is no class-conditional ADM U-Net")
        return self.foreign.pop(name).float()

    def move(self, old: str, new: str) -> None:
        """Weight, and bias, of a layer that is the same in both."""
        for kind in ("weight", "bias"):
            self.moved[f"{new}.{kind}"] = self.take(f"{old}.{kind}")

    def move_block(self, old: str, new: str, names: Mapping[str, str]) -> None:
        """A residual block: `names` from diffusers' layers to the foreign ones.

        The shortcut exists where the block changes the number of channels.
        """
        for layer, foreign in names.items():
            if layer != "conv_shortcut" or f"{old}.{foreign}.weight" in self.foreign:
                self.move(f"{old}.{foreign}", f"{new}.{layer}")

    def move_attention(self, qkv: tuple[Tensor, Tensor], output: str, new: str) -> None:
        """Queries, keys and values, weight [3, C, C] and bias [3, C]; output a 1x1 convolution."""
        for name, weight, bias in zip("qkv", *qkv, strict=True):
            self.moved[f"{new}.to_{name}.weight"] = weight.clone()
            self.moved[f"{new}.to_{name}.bias"] = bias.clone()
        self.moved[f"{new}.to_out.0.weight"] = self.take(f"{output}.weight").flatten(1)
        self.moved[f"{new}.to_out.0.bias"] = self.take(f"{output}.bias")

    def finished(self, adm: Adm) -> dict[str, Tensor]:
        """What was moved. ImportFailure: something is left over, missing or of another shape."""
        if self.foreign:
            raise ImportFailure(
                f"{listed(self.foreign)} have no place in a class-conditional ADM U-Net"
            )
        with torch.device("meta"):
            expected = UNet2DModel(**adm.config()).state_dict()
        if missing := expected.keys() - self.moved.keys():
            raise ImportFailure(f"nothing in it becomes {listed(missing)}")
        for name, value in self.moved.items():
            if name not in expected or value.shape != expected[name].shape:
                wanted = list(expected[name].shape) if name in expected else "nothing"
                raise ImportFailure(f"{name} has shape {list(value.shape)}, allowed is {wanted}")
        return self.moved


def listed(names: Mapping[str, object] | set[str]) -> str:
    """The first few names, and how many more."""
    first = sorted(names)[:SHOWN]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(first) + more


def width(weights: Mapping[str, Tensor], name: str, axis: int = 0) -> int:
    """A size that a tensor's shape tells. ImportFailure: there is no such tensor."""
    if name not in weights:
        raise ImportFailure(f"{name} is missing: it is no class-conditional ADM U-Net")
    return int(weights[name].shape[axis])
