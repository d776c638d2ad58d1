"""What one micro-batch costs, counted while it runs on fake tensors: FLOPs, and bytes alive.

`measure_step` runs the method's own code on an outline (`outline`). Multiply-adds count as two
FLOPs, matrix products, convolutions and attention alone (torch's counter); the rest is below 1 %.
Bytes are those of every tensor that an operation made and that something still refers to: what a
caching allocator has to hold, but for its own fragments.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as fn
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from distill.feature_cache import is_stored
from distill.features import FeatureExtractor
from distill.losses import tfd_loss
from distill.outline import outlined_condition
from distill.recipe import Recipe
from distill.step import Randomness, features, generate, step_sigma
from distill.teachers.teacher import Teacher

ATEN = torch.ops.aten
ATTENTION, NORMS = "scaled_dot_product_attention", ("group_norm", "layer_norm")


@contextmanager
def as_on_gpu() -> Iterator[None]:
    """Has tensors on a CPU kept as a GPU keeps them, while it lasts, in all of torch.

    Attention without a mask is one fused operation; and under autocast norms answer in float32, as
    torch's list of a GPU's autocast says, which that of a CPU does not.
    """
    replaced = {name: getattr(fn, name) for name in (ATTENTION, *NORMS)}

    def attention(query: Tensor, key: Tensor, value: Tensor, *others: Any, **named: Any) -> Any:
        if others or any(named.get(name) for name in ("is_causal", "dropout_p", "enable_gqa")):
            return replaced[ATTENTION](query, key, value, *others, **named)
        if named.get("attn_mask") is not None:
            return replaced[ATTENTION](query, key, value, **named)
        if torch.is_autocast_enabled("cpu"):
            query, key, value = (x.to(torch.bfloat16) for x in (query, key, value))
        return ATEN._scaled_dot_product_flash_attention_for_cpu(query, key, value)[0]

    def norm(plain: Any) -> Any:
        def precise(x: Tensor, *others: Any, **named: Any) -> Any:
            return plain(x.float() if torch.is_autocast_enabled("cpu") else x, *others, **named)

        return precise

    try:
        setattr(fn, ATTENTION, attention)
        for name in NORMS:
            setattr(fn, name, norm(replaced[name]))
        yield
    finally:
        for name, function in replaced.items():
            setattr(fn, name, function)


@contextmanager
def counting_flops() -> Iterator[FlopCounterMode]:
    """torch's counter, to which a CPU's fused attention is added: the same products as a GPU's."""
    forward = ATEN._scaled_dot_product_flash_attention_for_cpu
    backward = ATEN._scaled_dot_product_flash_attention_for_cpu_backward
    added: Any = {forward: attention_flops, backward: attention_backward_flops}
    with FlopCounterMode(display=False, custom_mapping=added) as counter:
        yield counter


def attention_flops(query: Any, key: Any, value: Any, *others: Any, **named: Any) -> int:
    """Of a fused attention, by the shapes of its arguments."""
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def attention_backward_flops(
    grad: Any, query: Any, key: Any, value: Any, *others: Any, **named: Any
) -> int:
    """Of its backward pass, which computes the affinities again."""
    return int(sdpa_backward_flop_count(grad, query, key, value))  # type: ignore[no-untyped-call]


class Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the storages made inside and still referred to: now, and at the most."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now_bytes = 0
        self.peak_bytes = 0
        self._seen: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = [x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if is_tensor(x)]
        out = func(*args, **(kwargs or {}))
        for made in tree_leaves(out):
            if is_tensor(made) and made.untyped_storage()._cdata not in given:
                self._add(made.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._seen:
            return
        self._seen[key] = weakref.ref(storage, partial(self._gone, key, storage.nbytes()))
        self.now_bytes += storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self.now_bytes)

    def _gone(self, key: int, size_bytes: int, _: object) -> None:
        if self._seen.pop(key, None) is not None:
            self.now_bytes -= size_bytes

    def leave_out(self, tensor: Tensor) -> None:
        """Counts a tensor no longer, though it lives on: it is accounted for elsewhere."""
        reference = self._seen.pop(tensor.untyped_storage()._cdata, None)
        if reference is not None:
            self.now_bytes -= tensor.untyped_storage().nbytes()


def is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


@dataclass(frozen=True)
class StepCost:
    """One micro-batch: FLOPs of its parts, and bytes beside the weights.

    `saved_bytes` wait for the backward pass when it begins; `working_bytes` are the most that is
    alive at once, gradients of the weights aside.
    """

    samples: int  # student samples, N of each group
    real: int  # positives and anchors
    student_forward: int
    student_backward: int
    features_forward: int  # of student samples, ended after the last layer
    features_backward: int  # to the samples alone
    features_real: int  # of positives and anchors, ended likewise, without a gradient; 0 if kept
    loss: int
    saved_bytes: int
    working_bytes: int
    kept_flops: int = 0  # of features_real where features are kept: once for every draw
    kept_bytes: int = 0  # of the features of positives and anchors that are kept, float32

    @property
    def flops(self) -> int:
        """All of them."""
        features = self.features_forward + self.features_backward + self.features_real
        return self.student_forward + self.student_backward + features + self.loss

    @property
    def plain_flops(self) -> int:
        """The same with teacher passes that run to their end, one for each of the three."""
        full = self.student_forward // self.samples  # the student is the teacher's like
        features = (self.samples + self.real) * full + self.features_backward
        return self.student_forward + self.student_backward + features + self.loss


def measure_step(teacher: Teacher, student: nn.Module, recipe: Recipe) -> StepCost:
    """Runs one micro-batch of a recipe on an outline and its student, inside the outline's mode.

    ValueError: a layer or a pool that the teacher does not have.
    """
    drift, alive = recipe.drift, Alive()
    extractor = FeatureExtractor(teacher.denoiser, drift.layers, drift.pool, teacher.hidden)
    conditions = outlined_condition(teacher, drift.groups)
    real = torch.empty(drift.groups, drift.positives + drift.anchors, *teacher.latent_shape)
    chance = Randomness.of(0, 0, 0)
    sigma = step_sigma(drift, chance)
    trained: list[Any] = [p for p in student.parameters() if p.requires_grad]
    kept, kept_flops = None, 0
    if drift.cached_draws:
        with as_on_gpu(), counting_flops() as once, torch.no_grad():
            kept = features(teacher, extractor, real, conditions, sigma, chance)
        kept_flops = once.get_total_flops()
    hooks = [
        p.register_post_accumulate_grad_hook(lambda p: alive.leave_out(p.grad)) for p in trained
    ]
    parts: dict[str, int] = {}

    @contextmanager
    def part(name: str) -> Iterator[None]:
        with counting_flops() as counter:
            yield
        parts[name] = counter.get_total_flops()

    with as_on_gpu(), alive:
        with part("student_forward"):
            x = generate(teacher, student, conditions, recipe, chance)
        leaf = x.detach().requires_grad_()
        with part("features_forward"):
            own = features(teacher, extractor, leaf, conditions, sigma, chance)
        with part("features_real"), torch.no_grad():
            if kept is None:
                both = features(teacher, extractor, real, conditions, sigma, chance)
            else:
                both = {layer: phi.clone() for layer, phi in kept.items()}
        with part("loss"):
            known = split(both, drift.positives)
            loss, _ = tfd_loss(own, *known, drift.radii, drift.coverage_weight)
        saved = alive.now_bytes
        with part("features_backward"):
            loss.backward()  # type: ignore[no-untyped-call]
        with part("student_backward"):
            x.backward(leaf.grad)  # type: ignore[no-untyped-call]
    for hook in hooks:
        hook.remove()
    return StepCost(
        samples=x.shape[0] * x.shape[1],
        real=real.shape[0] * real.shape[1],
        saved_bytes=saved,
        working_bytes=alive.peak_bytes,
        kept_flops=kept_flops,
        kept_bytes=sum(phi.nbytes for layer, phi in (kept or {}).items() if is_stored(layer)),
        **parts,
    )


def split(both: dict[str, Tensor], positives: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Features of positives, and of the anchors that follow them."""
    return (
        {layer: phi[:, :positives] for layer, phi in both.items()},
        {layer: phi[:, positives:] for layer, phi in both.items()},
    )
