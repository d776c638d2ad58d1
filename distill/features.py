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

    A name followed by a slash and a number, mid_block/2, is cut in windows of 2 x 2 positions, each
    of them a feature of its own (Drifting, A.5). `hidden` finds a layer's hidden state, a map or
    tokens, in what it returns; by default it is the first tensor.

    ValueError: an unknown, repeated or missing layer name, or a pool below 1.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        pool: int = 1,
        hidden: Callable[[str, object], Tensor] | None = None,
    ) -> None:
        check_layers(model, layers)
        if pool < 1:
            raise ValueError(f"pool is {pool}: it must be 1 (no pooling) or more")
        self.layers = {layer: split_name(layer) for layer in layers}
        self.pool = pool
        self._hidden = hidden or first_tensor
        names = dict.fromkeys(name for name, _ in self.layers.values())
        self._modules = {name: model.get_submodule(name) for name in names if name != SAMPLE}

    def __call__(
        self, forward: Callable[[], object], sample: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Run `forward`, which calls the model on n items; stop it after the last layer asked for.

        -> float32 [n, L_l, D_l] per layer, in the order of `layers`: L_l = 1 for a whole layer,
        the number of windows for one that is cut. `sample` [n, ...] is the clean sample, unpooled,
        for the layer `sample`; if that is the only one, `forward` is not called. ValueError: `pool`
        or a window does not divide a layer's map, or a layer is never run (a bare list of blocks,
        say).
        """
        found = self._run(forward) if self._modules else {}
        # Not in the hook: a block whose activations are computed again must do the same then.
        seen = {name: pooled(name, hidden, self.pool) for name, hidden in found.items()}
        if any(name == SAMPLE for name, _ in self.layers.values()):
            assert sample is not None, f"layers {[*self.layers]} name the sample: none was given"
            seen[SAMPLE] = sample.float()
        return {
            layer: windows(layer, seen[name], window)
            for layer, (name, window) in self.layers.items()
        }

    def _run(self, forward: Callable[[], object]) -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}

        def hook_of(name: str) -> Callable[[nn.Module, object, object], None]:
            def hook(module: nn.Module, inputs: object, output: object) -> None:
                if name not in seen:
                    seen[name] = self._hidden(name, output)
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


def pooled(layer: str, hidden: Tensor, pool: int) -> Tensor:
    """A map [n, C, H, W] averaged over pool x pool, tokens [n, L, C] as they are: float32.

    ValueError: `pool` does not divide H and W.
    """
    hidden = hidden.float()
    if hidden.ndim == 4 and pool > 1:
        height, width = hidden.shape[2:]
        if height % pool or width % pool:
            raise ValueError(f"pool is {pool}, but must divide layer {layer!r} of {height}x{width}")
        hidden = fn.avg_pool2d(hidden, pool)
    return hidden


def windows(layer: str, hidden: Tensor, window: int | None) -> Tensor:
    """A map [n, C, H, W] whole, [n, 1, D], or cut in windows, [n, L, C·window²] (Drifting, A.5).

    ValueError: `window` does not divide H and W, or the layer has no map.
    """
    if window is None:
        return hidden.flatten(1).unsqueeze(1)
    if hidden.ndim != 4 or hidden.shape[2] % window or hidden.shape[3] % window:
        raise ValueError(
            f"layer {layer!r} is cut in windows of {window}x{window}, which must divide its map:"
            f" it is {'x'.join(map(str, hidden.shape[2:]))}"
        )
    return fn.unfold(hidden, window, stride=window).transpose(1, 2)


def split_name(layer: str) -> tuple[str, int | None]:
    """A layer's module and window: mid_block is read whole, mid_block/2 in windows of 2 x 2.

    ValueError: what follows the slash is not a whole number above 0.
    """
    name, slash, window = layer.partition("/")
    if not slash:
        return name, None
    if not window.isdecimal() or int(window) < 1:
        raise ValueError(f"layer {layer!r}: after the slash stands a window of 1 or more")
    return name, int(window)


def check_layers(model: nn.Module, layers: Sequence[str]) -> None:
    """ValueError unless `layers` names at least one layer, each once, and all of them exist."""
    if not layers:
        raise ValueError(f"layers is empty: name some of {listing(model, '')}")
    known = {name for name, _ in model.named_modules() if name} | {SAMPLE}
    for name, _ in map(split_name, layers):
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
