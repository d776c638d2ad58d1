"""Hidden states of a frozen network, read by hooks, at no more cost than the layers asked for.

The gradient passes through the network to its input; whoever owns the network freezes its
parameters.
"""

from collections.abc import Callable, Sequence

import torch.nn.functional as fn
from torch import Tensor, nn

SAMPLE = "sample"  # the name of the clean sample itself in a list of layers
LISTED = 24  # names that an error message lists


class _EnoughSeenError(Exception):
    """Raised by the hook of the last layer to end the forward pass; caught by the extractor."""


class FeatureExtractor:
    """Reads `layers` of `model`, dotted module names or `sample`, average-pooled by `pool`.

    ValueError: an unknown, repeated or missing layer name, or a pool below 1.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str], pool: int = 1) -> None:
        check_layers(model, layers)
        if pool < 1:
            raise ValueError(f"pool is {pool}: it must be 1 (no pooling) or more")
        self.layers = tuple(layers)
        self.pool = pool
        self._modules = {name: model.get_submodule(name) for name in layers if name != SAMPLE}

    def __call__(
        self, forward: Callable[[], object], sample: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Run `forward`, which calls the model on n items; stop it after the last layer asked for.

        -> one float32 matrix [n, D_l] per layer, in the order of `layers`. `sample` [n, ...] is
        the clean sample, taken whole and unpooled for the layer `sample`; if that is the only
        layer, `forward` is not called. ValueError: `pool` does not divide a layer's map, or
        a layer is never run (a bare list of blocks, say).
        """
        seen = self._run(forward) if self._modules else {}
        if SAMPLE in self.layers:
            assert sample is not None, f"layers {self.layers} name the sample, but none was given"
            seen[SAMPLE] = sample.float().flatten(1)
        return {name: seen[name] for name in self.layers}

    def _run(self, forward: Callable[[], object]) -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}

        def hook_of(name: str) -> Callable[[nn.Module, object, object], None]:
            def hook(module: nn.Module, inputs: object, output: object) -> None:
                if name not in seen:
                    seen[name] = flat_feature(name, first_tensor(name, output), self.pool)
                if len(seen) == len(self._modules):
                    raise _EnoughSeenError

            return hook

        hooks = [m.register_forward_hook(hook_of(name)) for name, m in self._modules.items()]
        try:
            forward()
        except _EnoughSeenError:
            return seen
        finally:
            for hook in hooks:
                hook.remove()
        silent = ", ".join(name for name in self._modules if name not in seen)
        raise ValueError(f"layers {silent} exist, but the forward pass does not run them")


def first_tensor(layer: str, output: object) -> Tensor:
    """A block's hidden state: its output, or the first of its tuple (hidden, residuals, ...).

    The output classes of diffusers and transformers count as tuples. ValueError: no tensor there.
    """
    if hasattr(output, "to_tuple"):
        output = output.to_tuple()
    first = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(first, Tensor):
        raise ValueError(f"layer {layer!r} returns {type(first).__name__} where a tensor is needed")
    return first


def flat_feature(layer: str, hidden: Tensor, pool: int) -> Tensor:
    """Pool a map [n, C, H, W] by `pool`, leave tokens [n, L, C], flatten: -> [n, D] float32.

    ValueError: `pool` does not divide H and W.
    """
    hidden = hidden.float()
    if hidden.ndim == 4 and pool > 1:
        height, width = hidden.shape[2:]
        if height % pool or width % pool:
            raise ValueError(f"pool is {pool}, but must divide layer {layer!r} of {height}x{width}")
        hidden = fn.avg_pool2d(hidden, pool)
    return hidden.flatten(1)


def check_layers(model: nn.Module, layers: Sequence[str]) -> None:
    """ValueError unless `layers` names at least one layer, each once, and all of them exist."""
    if not layers:
        raise ValueError(f"layers is empty: name some of {listing(model, '')}")
    known = {name for name, _ in model.named_modules() if name} | {SAMPLE}
    for name in layers:
        if name not in known:
            raise ValueError(f"layer {name!r} does not exist; there are {listing(model, name)}")
    repeated = sorted({name for name in layers if list(layers).count(name) > 1})
    if repeated:
        raise ValueError(f"layers names {', '.join(repeated)} more than once")


def listing(model: nn.Module, unknown: str) -> str:
    """The names nearest to an unknown one: blocks of its deepest parent that exists, at most 24."""
    known = dict(model.named_modules())
    parent = unknown
    while parent not in known:
        parent = parent.rpartition(".")[0]
    names = block_names(known[parent], f"{parent}." if parent else "")
    if not names:
        parent, names = "", block_names(model, "")
    names.sort(key=lambda name: "block" not in name)  # stable: blocks first, then as they stand
    names = names if parent else [*names, SAMPLE]
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def block_names(module: nn.Module, prefix: str) -> list[str]:
    """Children by name, a ModuleList replaced by its entries: down_blocks.0, ..., mid_block."""
    names: list[str] = []
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList):
            names.extend(f"{prefix}{name}.{i}" for i in range(len(child)))
        else:
            names.append(f"{prefix}{name}")
    return names
