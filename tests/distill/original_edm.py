"""The two published ImageNet-64 EDM networks, written from their papers: weights named as in them.

Both are ADM's U-Net (arXiv 2105.05233, sec. 3 and app. I): residual blocks with adaptive group
norm, blocks that halve (mean of 2x2) and double (nearest) the map, attention with heads of 64. They
differ in names, in the order of attention's channels and in how the noise level is embedded (EDM,
arXiv 2206.00364, table 1).
"""

from __future__ import annotations

import math
import pickle
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as fn
from torch import Tensor, nn

HEAD = 64


def waves(c: Tensor, width: int) -> Tensor:
    """Cosines, then sines, of c [n] times 1 ... 1/10000: [n, width]."""
    half = width // 2
    angles = c.double()[:, None] * 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    return torch.cat([angles.cos(), angles.sin()], 1).float()


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax(q·k / √64) v of [n, heads, 64, positions]."""
    scores = torch.einsum("nhdi,nhdj->nhij", q, k) / math.sqrt(HEAD)
    return torch.einsum("nhij,nhdj->nhdi", scores.softmax(-1), v)


def resample(x: Tensor, way: str) -> Tensor:
    """Half the map, twice the map, or the map."""
    if way == "down":
        return fn.avg_pool2d(x, 2)
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3) if way == "up" else x


class OpenaiBlock(nn.Module):
    def __init__(self, a: int, b: int, emb: int, way: str = "") -> None:
        super().__init__()
        self.way = way
        conv = nn.Conv2d(a, b, 3, padding=1)
        self.in_layers = nn.Sequential(nn.GroupNorm(32, a), nn.SiLU(), conv)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, 2 * b))
        out = nn.Conv2d(b, b, 3, padding=1)
        self.out_layers = nn.Sequential(nn.GroupNorm(32, b), nn.SiLU(), nn.Identity(), out)
        self.skip_connection = nn.Conv2d(a, b, 1) if a != b else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers[2](resample(self.in_layers[:2](x), self.way))
        scale, shift = self.emb_layers(emb)[:, :, None, None].chunk(2, 1)
        h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        return self.skip_connection(resample(x, self.way)) + h


class OpenaiAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        n, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).view(n, 3, c // HEAD, HEAD, h * w).unbind(1)
        return x + self.proj_out(attend(q, k, v).reshape(n, c, h, w))


class OpenaiUNet(nn.Module):
    """Told of sigma as 250 ln(sigma)."""

    def __init__(
        self, widths: Sequence[int], blocks: int, attention: Sequence[bool], classes: int
    ) -> None:
        super().__init__()
        self.width, emb, last = widths[0], 4 * widths[0], len(widths) - 1
        self.time_embed = nn.Sequential(nn.Linear(widths[0], emb), nn.SiLU(), nn.Linear(emb, emb))
        self.label_emb = nn.Embedding(classes, emb)
        down: list[list[nn.Module]] = [[nn.Conv2d(3, widths[0], 3, padding=1)]]
        c, skips = widths[0], [widths[0]]
        for level, width in enumerate(widths):
            for _ in range(blocks):
                more = [OpenaiAttention(width)] if attention[level] else []
                down.append([OpenaiBlock(c, width, emb), *more])
                skips.append(c := width)
            if level < last:
                down.append([OpenaiBlock(c, c, emb, "down")])
                skips.append(c)
        middle = [OpenaiBlock(c, c, emb), OpenaiAttention(c), OpenaiBlock(c, c, emb)]
        up: list[list[nn.Module]] = []
        for level, width in reversed(list(enumerate(widths))):
            for i in range(blocks + 1):
                more = [OpenaiAttention(width)] if attention[level] else []
                grow = [OpenaiBlock(width, width, emb, "up")] if level and i == blocks else []
                up.append([OpenaiBlock(c + skips.pop(), width, emb), *more, *grow])
                c = width
        self.input_blocks = nn.ModuleList(nn.ModuleList(block) for block in down)
        self.middle_block = nn.ModuleList(middle)
        self.output_blocks = nn.ModuleList(nn.ModuleList(block) for block in up)
        out = nn.Conv2d(c, 3, 3, padding=1)
        self.out = nn.Sequential(nn.GroupNorm(32, c), nn.SiLU(), out)

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        told = waves(250 * sigma.double().log(), self.width)
        emb = self.time_embed(told) + self.label_emb(label)
        kept = [x := self.input_blocks[0][0](x)]
        for block in self.input_blocks[1:]:
            for layer in block:
                x = layer(x, emb)
            kept.append(x)
        for layer in self.middle_block:
            x = layer(x, emb)
        for block in self.output_blocks:
            x = torch.cat([x, kept.pop()], 1)
            for layer in block:
                x = layer(x, emb)
        return self.out(x)


class Persistent(nn.Module):
    """A module that is pickled with its source beside it, as torch_utils.persistence does."""

    SOURCE = "raise SystemExit('the source in a pickle was run')"
    NAME = ""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__()
        self._init_args, self._init_kwargs = args, kwargs

    def __reduce__(self) -> Any:
        name = self.NAME or type(self).__name__
        facts = {"type": "class", "version": 6, "module_src": self.SOURCE, "class_name": name}
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (
            {**facts, "state": self.__dict__},
        )


class Linear(Persistent):
    def __init__(self, a: int, b: int, bias: bool = True) -> None:
        super().__init__(init_weight=np.sqrt(1 / 3), bias=bias)
        plain = nn.Linear(a, b, bias=bias)
        self.weight, self.bias = plain.weight, plain.bias

    def forward(self, x: Tensor) -> Tensor:
        return fn.linear(x, self.weight, self.bias)


class Conv2d(Persistent):
    """A convolution, or with kernel 0 a resampling alone."""

    def __init__(self, a: int, b: int, kernel: int, way: str = "") -> None:
        super().__init__(a, b, kernel=kernel)
        self.way = way
        plain = nn.Conv2d(a, b, kernel) if kernel else None
        self.weight, self.bias = (plain.weight, plain.bias) if plain else (None, None)
        self.register_buffer("resample_filter", torch.full((1, 1, 2, 2), 0.25) if way else None)

    def forward(self, x: Tensor) -> Tensor:
        x = resample(x, self.way)
        if self.weight is None:
            return x
        return fn.conv2d(x, self.weight, self.bias, padding=self.weight.shape[-1] // 2)


class GroupNorm(Persistent):
    def __init__(self, width: int) -> None:
        super().__init__(num_channels=width)
        self.groups = min(32, width // 4)
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return fn.group_norm(x, self.groups, self.weight, self.bias, 1e-5)


class NvlabsBlock(Persistent):
    NAME = "UNetBlock"

    def __init__(self, a: int, b: int, emb: int, attention: bool = False, way: str = "") -> None:
        super().__init__(in_channels=a)
        self.norm0, self.conv0 = GroupNorm(a), Conv2d(a, b, 3, way)
        self.affine = Linear(emb, 2 * b)
        self.norm1, self.conv1 = GroupNorm(b), Conv2d(b, b, 3)
        self.skip = Conv2d(a, b, int(a != b), way) if a != b or way else None
        self.attention = attention
        if attention:
            self.norm2, self.qkv, self.proj = GroupNorm(b), Conv2d(b, 3 * b, 1), Conv2d(b, b, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.affine(emb)[:, :, None, None].chunk(2, 1)
        h = self.norm1(self.conv0(fn.silu(self.norm0(x)))) * (1 + scale) + shift
        x = self.conv1(fn.silu(h)) + (self.skip(x) if self.skip is not None else x)
        if not self.attention:
            return x
        n, c, height, width = x.shape
        q, k, v = self.qkv(self.norm2(x)).view(n, c // HEAD, HEAD, 3, height * width).unbind(3)
        return x + self.proj(attend(q, k, v).reshape(n, c, height, width))


class DhariwalUNet(Persistent):
    """Told of sigma as ln(sigma) / 4."""

    def __init__(
        self, px: int, widths: Sequence[int], blocks: int, attention: Sequence[bool], classes: int
    ) -> None:
        super().__init__(img_resolution=px)
        self.width, emb = widths[0], 4 * widths[0]
        self.map_layer0, self.map_layer1 = Linear(widths[0], emb), Linear(emb, emb)
        self.map_label = Linear(classes, emb, bias=False)
        self.classes = classes
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        c, skips = widths[0], []
        for level, width in enumerate(widths):
            side = f"{px >> level}x{px >> level}"
            first = NvlabsBlock(c, c, emb, way="down") if level else Conv2d(3, c, 3)
            self.enc[f"{side}_down" if level else f"{side}_conv"] = first
            skips.append(c)
            for i in range(blocks):
                self.enc[f"{side}_block{i}"] = NvlabsBlock(c, width, emb, attention[level])
                skips.append(c := width)
        for level, width in reversed(list(enumerate(widths))):
            side = f"{px >> level}x{px >> level}"
            if level == len(widths) - 1:
                self.dec[f"{side}_in0"] = NvlabsBlock(c, c, emb, attention=True)
                self.dec[f"{side}_in1"] = NvlabsBlock(c, c, emb)
            else:
                self.dec[f"{side}_up"] = NvlabsBlock(c, c, emb, way="up")
            for i in range(blocks + 1):
                block = NvlabsBlock(c + skips.pop(), width, emb, attention[level])
                self.dec[f"{side}_block{i}"], c = block, width
        self.out_norm, self.out_conv = GroupNorm(c), Conv2d(c, 3, 3)

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        emb = self.map_layer1(fn.silu(self.map_layer0(waves(sigma.double().log() / 4, self.width))))
        emb = fn.silu(emb + self.map_label(fn.one_hot(label, self.classes).float()))
        kept = []
        for block in self.enc.values():
            x = block(x, emb) if isinstance(block, NvlabsBlock) else block(x)
            kept.append(x)
        for name, block in self.dec.items():
            x = block(torch.cat([x, kept.pop()], 1) if "block" in name else x, emb)
        return self.out_conv(fn.silu(self.out_norm(x)))


class EDMPrecond(Persistent):
    def __init__(self, model: nn.Module, sigma_data: float = 0.5) -> None:
        super().__init__(sigma_data=sigma_data)
        self.sigma_min, self.sigma_max, self.sigma_data = 0, float("inf"), sigma_data
        self.model = model


def dump(data: object, path: Path, monkeypatch: Any) -> Path:
    """Pickles `data` as code would in which torch_utils.persistence can be imported."""

    def _reconstruct_persistent_obj(meta: object) -> None:
        raise AssertionError("the original's own loader was called")

    module: Any = types.ModuleType("torch_utils.persistence")
    _reconstruct_persistent_obj.__module__ = module.__name__
    _reconstruct_persistent_obj.__qualname__ = _reconstruct_persistent_obj.__name__
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
        patch.setitem(sys.modules, module.__name__, module)
        path.write_bytes(pickle.dumps(data))
    return path


def shuffled(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network with norms and biases moved off one and zero, so that none goes unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return network.eval().requires_grad_(False)
