"""NVlabs' ImageNet-64 EDM teacher: names and orders of `edm-imagenet-64x64-cond-adm.pkl`.

A pickled `EDMPrecond` (EDM, arXiv 2206.00364) around a `DhariwalUNet`, which is ADM's network
(arXiv 2105.05233) with other names: blocks are named by the side of their map, attention is part of
its block, and a class is a one-hot vector times a matrix. It is told of sigma as ln(sigma) / 4,
which `noise_features` makes good.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from distill.importers.adm import GROUPS, HEAD_DIM, Adm, Place, Weights, width
from distill.importers.failure import ImportFailure
from distill.importers.noise_features import fold
from distill.importers.records import Record, only, weights_of

BLOCK = re.compile(r"enc\.(\d+)x\1_block(\d+)\.conv1\.weight")
LAYERS = {
    "norm1": "norm0",
    "conv1": "conv0",
    "time_emb_proj": "affine",
    "norm2": "norm1",
    "conv2": "conv1",
    "conv_shortcut": "skip",
}
NARROWEST = 4 * GROUPS  # a norm's group has 4 channels at least, so narrower maps have fewer groups
TRAINING_ONLY = ("map_augment.weight",)  # of augmented training; not used where nothing augments


def from_nvlabs(data: object) -> tuple[Adm, dict[str, Tensor], float]:
    """Sizes, weights as `UNet2DModel` names them, and sigma_data of a pickle's records.

    Raises:
        ImportFailure: it holds another network, or another preconditioning.
    """
    if not isinstance(data, Mapping) or "ema" not in data:
        raise ImportFailure("it holds no network named ema")
    outer = only("EDMPrecond", data["ema"], "its network")
    modules = outer.state.get("_modules")
    model = modules.get("model") if isinstance(modules, Mapping) else None
    adm, moved = from_dhariwal(weights_of(only("DhariwalUNet", model, "the network in it")))
    return adm, moved, sigma_data_of(outer)


def sigma_data_of(precondition: Record) -> float:
    """The deviation of the data that the preconditioning assumes."""
    found = precondition.state.get("sigma_data")
    if not isinstance(found, float) or not found > 0:
        raise ImportFailure(f"its sigma_data is {found!r}; it must be a number above 0")
    return found


def from_dhariwal(state: Mapping[str, Tensor]) -> tuple[Adm, dict[str, Tensor]]:
    """The network's sizes, and its weights as `UNet2DModel` names them; as `from_nvlabs`."""
    adm = sizes(state)
    weights = Weights({name: state[name] for name in state if name not in TRAINING_ONLY})
    drop_box_filters(weights)
    weight, bias = fold(weights.take("map_layer0.weight"), weights.take("map_layer0.bias"))
    weights.moved["time_embedding.linear_1.weight"] = weight
    weights.moved["time_embedding.linear_1.bias"] = bias
    weights.move("map_layer1", "time_embedding.linear_2")
    weights.moved["class_embedding.weight"] = weights.take("map_label.weight").T.contiguous()
    weights.move(f"enc.{square(adm, 0)}_conv", "conv_in")
    for place in adm.places():
        block = name_of(adm, place)
        weights.move_block(block, place.resnet, LAYERS)
        if place.attention is not None:
            weights.move(f"{block}.norm2", f"{place.attention}.group_norm")
            weights.move_attention(
                queries_keys_values(weights, f"{block}.qkv"), f"{block}.proj", place.attention
            )
    weights.move("out_norm", "conv_norm_out")
    weights.move("out_conv", "conv_out")
    return adm, weights.finished(adm)


def sizes(state: Mapping[str, Tensor]) -> Adm:
    """The network's sizes, by the names and shapes of its weights."""
    found = [match for name in state if (match := BLOCK.fullmatch(name))]
    sides = sorted({int(match[1]) for match in found}, reverse=True)
    if not sides or sides != [sides[0] >> level for level in range(len(sides))]:
        raise ImportFailure(f"its blocks are of {sides} px; each must be half of the one before")
    widths = tuple(width(state, f"enc.{s}x{s}_block0.conv1.weight") for s in sides)
    if min(widths) < NARROWEST:
        raise ImportFailure(
            f"its levels have {list(widths)} channels; supported are {NARROWEST} and more, since"
            f" below that its norms have fewer than {GROUPS} groups"
        )
    return Adm(
        size_px=sides[0],
        colours=width(state, f"enc.{sides[0]}x{sides[0]}_conv.weight", 1),
        widths=widths,
        blocks=len(found) // len(sides),
        attention=tuple(f"enc.{s}x{s}_block0.qkv.weight" in state for s in sides),
        classes=width(state, "map_label.weight", 1),
    )


def square(adm: Adm, level: int) -> str:
    """A level's map as it is named here: 64x64."""
    side = adm.size_px >> level
    return f"{side}x{side}"


def name_of(adm: Adm, place: Place) -> str:
    """What a block is called here; its attention is called the same."""
    if place.part == "shrink":
        return f"enc.{square(adm, place.level + 1)}_down"
    if place.part == "grow":
        return f"dec.{square(adm, place.level - 1)}_up"
    if place.part == "middle":
        return f"dec.{square(adm, place.level)}_in{place.number}"
    way = "enc" if place.part == "down" else "dec"
    return f"{way}.{square(adm, place.level)}_block{place.number}"


def queries_keys_values(weights: Weights, name: str) -> tuple[Tensor, Tensor]:
    """Weight [3, C, C] and bias [3, C] of a 1x1 convolution whose channels are [heads, 64, 3]."""
    weight, bias = weights.take(f"{name}.weight"), weights.take(f"{name}.bias")
    channels = weight.shape[1]
    by_head = weight.view(-1, HEAD_DIM, 3, channels).permute(2, 0, 1, 3)
    return by_head.reshape(3, -1, channels), bias.view(-1, HEAD_DIM, 3).permute(2, 0, 1).reshape(
        3, -1
    )


def drop_box_filters(weights: Weights) -> None:
    """Takes out the filters that halve and double maps, once they are the 2x2 mean of ADM."""
    for name in [name for name in weights.foreign if name.endswith(".resample_filter")]:
        kernel = weights.take(name)
        box = kernel.shape == (1, 1, 2, 2) and (kernel.is_meta or bool(torch.all(kernel == 1 / 4)))
        if not box:
            raise ImportFailure(f"{name} is not the mean of 2x2: {kernel.flatten().tolist()[:8]}")
