"""A diffusers pipeline as one checkpoint in the layout, and under the names, of its publication.

Written from the layouts themselves (SDXL, SD 1.x, SD 2.x), the other way round than the readers
under test.
"""

import re
from typing import Any

import torch

State = dict[str, torch.Tensor]

UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE_NAMES = (
    (r"encoder\.down_blocks\.(\d+)\.resnets", r"encoder.down.\1.block"),
    (r"encoder\.down_blocks\.(\d+)\.downsamplers\.0", r"encoder.down.\1.downsample"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    ("conv_norm_out", "norm_out"),
    ("conv_shortcut", "nin_shortcut"),
    ("group_norm", "norm"),
    (r"to_([qkv])\.", r"\1."),
    (r"to_out\.0", "proj_out"),
)
CLIP_NAMES = (
    (r"^encoder\.layers", "transformer.resblocks"),
    ("final_layer_norm", "ln_final"),
    ("layer_norm", "ln_"),
    ("self_attn", "attn"),
    ("fc1", "c_fc"),
    ("fc2", "c_proj"),
    (r"^embeddings\.token_embedding", "token_embedding"),
    (r"^embeddings\.position_embedding\.weight", "positional_embedding"),
)


def original_checkpoint(pipe: Any) -> State:
    """All weights of the pipeline under their original names."""
    return {
        **original_unet(pipe.unet),
        **original_vae(pipe.vae),
        **{
            f"conditioner.embedders.0.transformer.text_model.{key}": value
            for key, value in pipe.text_encoder.state_dict().items()
        },
        **original_open_clip(pipe.text_encoder_2),
    }


def original_sd1(pipe: Any) -> State:
    """SD 1.x, with what its files hold besides: position numbers, the average, the schedule."""
    clip = "cond_stage_model.transformer.text_model."
    return {
        **original_unet(pipe.unet),
        **original_vae(pipe.vae),
        **{f"{clip}{key}": value for key, value in pipe.text_encoder.state_dict().items()},
        f"{clip}embeddings.position_ids": torch.arange(77)[None],
        "model_ema.decay": torch.tensor(0.9999),
        "alphas_cumprod": pipe.scheduler.alphas_cumprod.clone(),
    }


def original_sd2(pipe: Any) -> State:
    """SD 2.x: its text encoder has a layer and a projection more than the pipeline uses."""
    encoder = pipe.text_encoder
    layers = encoder.config.num_hidden_layers
    named = _open_clip(dict(encoder.state_dict()), layers)
    first = {key: value for key, value in named.items() if ".resblocks.0." in key}
    spare = {key.replace(".0.", f".{layers}."): 2 * value for key, value in first.items()}
    width = encoder.config.hidden_size
    named |= {**spare, "text_projection": torch.eye(width), "logit_scale": torch.tensor(1.0)}
    return {
        **original_unet(pipe.unet),
        **original_vae(pipe.vae),
        **{f"cond_stage_model.model.{key}": value for key, value in named.items()},
    }


def original_unet(unet: Any) -> State:
    layers = unet.config.layers_per_block
    keys = unet.state_dict()
    return {f"model.diffusion_model.{_unet_name(key, layers, keys)}": keys[key] for key in keys}


def original_name(unet: Any, module: str) -> str:
    """A module's name in the original layout, without the prefix of a checkpoint."""
    found = _unet_name(f"{module}.weight", unet.config.layers_per_block, unet.state_dict())
    return found.removesuffix(".weight")


def _unet_name(key: str, layers: int, keys: State) -> str:
    for ours, theirs in UNET_ENDS.items():
        if key.startswith(f"{ours}."):
            return key.replace(ours, theirs)
    block, kind, index, rest = re.match(
        r"((?:down|up)_blocks\.\d+|mid_block)\.(\w+)\.(\d+)\.(.*)", key
    ).groups()
    if kind == "resnets":
        head, tail = rest.split(".", 1)
        rest = f"{UNET_RESNET[head]}.{tail}"
    column = {"resnets": 0, "attentions": 1}.get(kind)
    if block == "mid_block":
        return f"middle_block.{2 * int(index) + column}.{rest}"
    side, number = block.split("_blocks.")
    first = int(number) * (layers + 1)
    if side == "down":
        if kind == "downsamplers":
            return f"input_blocks.{first + layers + 1}.0.{rest.replace('conv', 'op')}"
        return f"input_blocks.{first + int(index) + 1}.{column}.{rest}"
    if kind == "upsamplers":
        attended = any(other.startswith(f"{block}.attentions") for other in keys)
        return f"output_blocks.{first + layers}.{1 + attended}.{rest}"
    return f"output_blocks.{first + int(index)}.{column}.{rest}"


def original_vae(vae: Any) -> State:
    last = len(vae.config.block_out_channels) - 1

    def name(key: str) -> str:
        key = re.sub(r"decoder\.up_blocks\.(\d+)", lambda m: f"decoder.up.{last - int(m[1])}", key)
        key = re.sub(r"(decoder\.up\.\d+)\.resnets", r"\1.block", key)
        key = re.sub(r"(decoder\.up\.\d+)\.upsamplers\.0", r"\1.upsample", key)
        for ours, theirs in VAE_NAMES:
            key = re.sub(ours, theirs, key)
        return f"first_stage_model.{key}"

    def shaped(key: str, value: torch.Tensor) -> torch.Tensor:
        linear = "attentions" in key and value.ndim == 2
        return value[:, :, None, None] if linear else value

    return {name(key): shaped(key, value) for key, value in vae.state_dict().items()}


def original_open_clip(encoder: Any) -> State:
    named = _open_clip(dict(encoder.text_model.state_dict()), encoder.config.num_hidden_layers)
    named["text_projection"] = encoder.text_projection.weight.T.contiguous()
    return {f"conditioner.embedders.1.model.{key}": value for key, value in named.items()}


def _open_clip(state: State, layers: int) -> State:
    for layer in range(layers):
        for kind in ("weight", "bias"):
            parts = [state.pop(f"encoder.layers.{layer}.self_attn.{p}_proj.{kind}") for p in "qkv"]
            state[f"encoder.layers.{layer}.self_attn.in_proj_{kind}"] = torch.cat(parts)
    named = {}
    for key, value in state.items():
        for ours, theirs in CLIP_NAMES:
            key = re.sub(ours, theirs, key)
        named[key] = value
    return named
