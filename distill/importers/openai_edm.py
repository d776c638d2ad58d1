"""OpenAI's ImageNet-64 EDM teacher: names and orders of `edm_imagenet64_ema.pt`.

A state dict of ADM's own network (arXiv 2105.05233), published with Consistency Models (arXiv
2303.01469). Blocks are numbered through: input_blocks.0 is the first convolution, and a block that
halves or doubles the map counts as one. The network is told of sigma as 250 ln(sigma), just as
`UNet2DModel` is in a `ConsistencyModelPipeline`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from distill.importers.adm import Adm, Place, Weights, width
from distill.importers.failure import ImportFailure

COARSEST_PX = 8  # the coarsest map of every ADM network
GROWING = re.compile(r"output_blocks\.\d+\.[12]\.in_layers\.2\.weight")
LAYERS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def from_openai(state: Mapping[str, Tensor]) -> tuple[Adm, dict[str, Tensor]]:
    """The network's sizes, and its weights as `UNet2DModel` names them.

    Raises:
        ImportFailure: it is not the state dict of a class-conditional ADM network.
    """
    adm = sizes(state)
    weights = Weights(state)
    weights.move("time_embed.0", "time_embedding.linear_1")
    weights.move("time_embed.2", "time_embedding.linear_2")
    weights.moved["class_embedding.weight"] = weights.take("label_emb.weight")
    weights.move("input_blocks.0.0", "conv_in")
    for place in adm.places():
        block, attention = names(adm, place)
        weights.move_block(block, place.resnet, LAYERS)
        if place.attention is not None:
            weights.move(f"{attention}.norm", f"{place.attention}.group_norm")
            weights.move_attention(
                queries_keys_values(weights, f"{attention}.qkv"),
                f"{attention}.proj_out",
                place.attention,
            )
    weights.move("out.0", "conv_norm_out")
    weights.move("out.2", "conv_out")
    return adm, weights.finished(adm)


def sizes(state: Mapping[str, Tensor]) -> Adm:
    """The network's sizes, by the names and shapes of its weights."""
    levels = 1 + sum(GROWING.fullmatch(name) is not None for name in state)
    count = len({name.split(".")[1] for name in state if name.startswith("input_blocks.")})
    if count < 2 * levels or count % levels:
        raise ImportFailure(
            f"it has {count} input_blocks for {levels} levels: it is no ADM U-Net that halves and"
            " doubles its maps by residual blocks"
        )
    first = [1 + level * (count // levels) for level in range(levels)]
    return Adm(
        size_px=COARSEST_PX * 2 ** (levels - 1),
        colours=width(state, "input_blocks.0.0.weight", 1),
        widths=tuple(width(state, f"input_blocks.{i}.0.out_layers.3.weight") for i in first),
        blocks=count // levels - 1,
        attention=tuple(f"input_blocks.{i}.1.qkv.weight" in state for i in first),
        classes=width(state, "label_emb.weight"),
    )


def names(adm: Adm, place: Place) -> tuple[str, str]:
    """What a block and its attention are called here."""
    if place.part == "middle":
        return f"middle_block.{2 * place.number}", "middle_block.1"
    per_level = adm.blocks + 1
    if place.part in ("down", "shrink"):
        number = adm.blocks if place.part == "shrink" else place.number
        folder = f"input_blocks.{1 + place.level * per_level + number}"
        return f"{folder}.0", f"{folder}.1"
    above = (len(adm.widths) - 1 - place.level) * per_level
    if place.part == "grow":
        after = 2 if adm.attention[place.level] else 1
        return f"output_blocks.{above + adm.blocks}.{after}", ""
    folder = f"output_blocks.{above + place.number}"
    return f"{folder}.0", f"{folder}.1"


def queries_keys_values(weights: Weights, name: str) -> tuple[Tensor, Tensor]:
    """Weight [3, C, C] and bias [3, C] of a 1x1 convolution whose channels are [3, heads, 64]."""
    weight, bias = weights.take(f"{name}.weight"), weights.take(f"{name}.bias")
    return weight.view(3, -1, weight.shape[1]), bias.view(3, -1)
