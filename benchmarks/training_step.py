"""A training step against the plain way: three whole teacher passes, none of them stopped early.

    python benchmarks/training_step.py --recipe examples/shapes/recipe.yaml

Both ways see the same student, captions and noise levels, alternately in one process, so that a
slow minute of the machine hits both; that they read the same features is checked first. "cached" is
ours with features of positives and anchors kept at four noise draws, "compiled" (with --compile)
ours with the student through torch.compile, whose first step compiles it. The last table says where
the time of our step goes.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from distill import step
from distill.compiling import compile_student
from distill.data import Samples, draw
from distill.feature_cache import FeatureCache, open_feature_cache
from distill.features import FeatureExtractor, pooled
from distill.losses import tfd_loss
from distill.recipe import Recipe, read_recipe
from distill.run import pick_device
from distill.step import Randomness
from distill.student import make_student
from distill.teachers.opening import load_teacher
from distill.teachers.teacher import Teacher

CAPTIONS = ("a small red circle", "a large blue square", "a green triangle at the top")
Times = dict[str, float]
Loss = Callable[[int], Tensor]


class WholePass(FeatureExtractor):
    """Reads the same layers, but lets every forward pass go on to its end."""

    def _run(self, forward: Callable[[], object]) -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}

        def hook_of(name: str) -> Callable[[nn.Module, object, object], None]:
            def hook(module: nn.Module, inputs: object, output: object) -> None:
                seen[name] = pooled(name, self._hidden(name, output), self.pool)

            return hook

        hooks = [m.register_forward_hook(hook_of(name)) for name, m in self._modules.items()]
        forward()
        for hook in hooks:
            hook.remove()
        return seen


def plain_loss(
    teacher: Teacher, student: nn.Module, samples: Samples, recipe: Recipe, number: int
) -> Tensor:
    """The micro-batch by one whole pass each of student samples, positives and anchors."""
    drift, randomness = recipe.drift, Randomness.of(0, number, 0)
    extractor = WholePass(teacher.denoiser, drift.layers, drift.pool, teacher.hidden)
    drawn = draw(samples, drift.groups, (drift.positives, drift.anchors), randomness.arrays)
    generated = step.generate(teacher, student, drawn.conditions, recipe, randomness)
    sigma = step.step_sigma(drift, randomness).to(teacher.device)
    phi = [step.features(teacher, extractor, generated, drawn.conditions, sigma, randomness)]
    with torch.no_grad():
        for part in drawn.parts:
            phi.append(step.features(teacher, extractor, part, drawn.conditions, sigma, randomness))
    weights = (drift.coverage_weight, drift.coverage_alpha)
    return tfd_loss(phi[0], phi[1], phi[2], drift.radii, *weights)[0]


def our_loss(
    teacher: Teacher,
    student: nn.Module,
    samples: Samples,
    recipe: Recipe,
    number: int,
    cache: FeatureCache | None = None,
) -> Tensor:
    """The micro-batch as training runs it."""
    drift = recipe.drift
    extractor = FeatureExtractor(teacher.denoiser, drift.layers, drift.pool, teacher.hidden)
    randomness = Randomness.of(0, number, 0)
    given = (teacher, student, extractor, samples, recipe, randomness)
    return step.micro_batch(*given, cache=cache)[0]


def whole_step_s(loss_of: Loss, optimizer: torch.optim.Optimizer, number: int) -> float:
    """Seconds of one training step."""
    start = time.perf_counter()
    optimizer.zero_grad(set_to_none=True)
    loss_of(number).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    synchronize()
    return time.perf_counter() - start


def synchronize() -> None:
    """Waits for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Clock:
    """Seconds by part of a step; parts do not nest."""

    def __init__(self) -> None:
        self.seconds: Times = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Counts what happens inside."""
        synchronize()
        start = time.perf_counter()
        yield
        synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def timed_step(
    teacher: Teacher,
    student: nn.Module,
    samples: Samples,
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
    number: int,
) -> Times:
    """Our step, taken apart: the same calls as `step.micro_batch`, with a clock around each."""
    drift, randomness, clock = recipe.drift, Randomness.of(0, number, 0), Clock()
    extractor = FeatureExtractor(teacher.denoiser, drift.layers, drift.pool, teacher.hidden)
    optimizer.zero_grad(set_to_none=True)
    with clock.part("draw"):
        counts = (drift.positives, drift.anchors)
        drawn = draw(samples, drift.groups, counts, randomness.arrays)
    condition = drawn.conditions
    with clock.part("student forward"):
        x = step.generate(teacher, student, condition, recipe, randomness)
    sigma = step.step_sigma(drift, randomness).to(teacher.device)
    cut = x.detach().requires_grad_()  # the backward pass in two, at the samples
    with clock.part("teacher forward, student samples"):
        phi_g = step.features(teacher, extractor, cut, condition, sigma, randomness)
    with clock.part("teacher forward, positives and anchors"), torch.no_grad():
        both = torch.cat(drawn.parts, dim=1)
        phi = step.features(teacher, extractor, both, condition, sigma, randomness)
    leaves = {layer: value.detach().requires_grad_() for layer, value in phi_g.items()}
    with clock.part("loss, forward and backward"):
        P, weights = drift.positives, (drift.coverage_weight, drift.coverage_alpha)
        positives = {layer: value[:, :P] for layer, value in phi.items()}
        anchors = {layer: value[:, P:] for layer, value in phi.items()}
        loss = tfd_loss(leaves, positives, anchors, drift.radii, *weights)[0]
        loss.backward()  # type: ignore[no-untyped-call]
    with clock.part("teacher backward"):
        torch.autograd.backward([*phi_g.values()], [leaf.grad for leaf in leaves.values()])
    with clock.part("student backward"):
        x.backward(cut.grad)  # type: ignore[no-untyped-call]
    with clock.part("clip and optimizer"):
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
    return clock.seconds


def benchmark_samples(teacher: Teacher, recipe: Recipe) -> Samples:
    """Random latents of a few captions: what a step costs does not depend on what is in them."""
    texts = CAPTIONS if teacher.prompted else ("0", "1", "2")
    prompts = tuple(texts[n % len(texts)] for n in range(recipe.drift.groups))
    each = recipe.drift.positives + recipe.drift.anchors
    seeded = torch.Generator().manual_seed(0)
    latents = torch.randn((len(prompts) * each, *teacher.latent_shape), generator=seeded)
    members = torch.split(torch.arange(len(latents)), each)
    return Samples(prompts, teacher.encode(prompts), latents, tuple(members))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--compile", action="store_true", help="a compiled student too; minutes")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        overrides = [*args.set, f"run={folder}", "drift.cached_draws=4"]
        compare(read_recipe(args.recipe, overrides), args.rounds, args.compile)


def compare(recipe: Recipe, rounds: int, with_compiled: bool) -> None:
    """Times all ways alternately and prints the results."""
    teacher = load_teacher(recipe.teacher.model, pick_device(recipe.train.device))
    samples, student = benchmark_samples(teacher, recipe), make_student(teacher)
    cache = open_feature_cache(teacher, samples, recipe, print)
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.0)  # both ways see the same weights
    given = (teacher, student, samples, recipe)
    ways: dict[str, Loss] = {
        "plain": lambda number: plain_loss(*given, number),
        "ours": lambda number: our_loss(*given, number),
        "cached": lambda number: our_loss(*given, number, cache),
    }
    if with_compiled:
        compiled = make_student(teacher)
        compile_student(compiled)
        ways["compiled"] = lambda number: our_loss(teacher, compiled, samples, recipe, number)
        optimizer.add_param_group({"params": list(compiled.parameters())})
        first_s = whole_step_s(ways["compiled"], optimizer, 0)
        print(f"compiled: the first step took {first_s:.0f} s")
    check_features(*given)
    times: dict[str, list[float]] = {name: [] for name in ways}
    parts: list[Times] = []
    for number in range(rounds + 2):
        for name, loss_of in ways.items():
            times[name].append(whole_step_s(loss_of, optimizer, number))
        parts.append(timed_step(*given, optimizer, number))
    print_results(recipe, {name: found[2:] for name, found in times.items()}, parts[2:])


def check_features(teacher: Teacher, student: nn.Module, samples: Samples, recipe: Recipe) -> None:
    """Asserts that a pass that stops early reads what a whole one reads."""
    drift, found = recipe.drift, []
    for kind in (FeatureExtractor, WholePass):
        randomness = Randomness.of(0, 0, 0)
        extractor = kind(teacher.denoiser, drift.layers, drift.pool, teacher.hidden)
        drawn = draw(samples, drift.groups, (drift.positives,), randomness.arrays)
        sigma = step.step_sigma(drift, randomness).to(teacher.device)
        with torch.no_grad():
            found.append(
                step.features(
                    teacher, extractor, drawn.parts[0], drawn.conditions, sigma, randomness
                )
            )
    for layer, phi in found[0].items():
        assert torch.equal(phi, found[1][layer]), f"layer {layer} differs"


def print_results(recipe: Recipe, times: dict[str, list[float]], parts: list[Times]) -> None:
    """The comparison, and the parts of our step."""
    images = recipe.drift.groups * recipe.drift.samples
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {torch.get_num_threads()} threads; torch {version('torch')};", end=" ")
    print(f"{images} student samples a step, {len(parts)} rounds, medians")
    for name, found in times.items():
        rate = images / statistics.median(found)
        print(f"{name:8} {rate:8.1f} images/s")
    for name in [name for name in times if name != "plain"]:
        ratios = [plain / own for plain, own in zip(times["plain"], times[name], strict=True)]
        print(
            f"{name}: {statistics.median(ratios):.2f} times the plain way, neighbour by neighbour"
        )
    medians = {name: statistics.median(one[name] for one in parts) for name in parts[0]}
    for name, seconds in medians.items():
        print(f"{name:40} {1e3 * seconds:7.1f} ms {seconds / sum(medians.values()):6.1%}")


if __name__ == "__main__":
    main()
