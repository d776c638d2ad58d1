"""What a recipe takes before anybody pays for a machine: parameters, FLOPs, memory by part.

Counted on the teacher's outline (`outline`), so its config.json files are enough. GB are 1e9 bytes.
Several processes divide a step's groups among them; with FSDP2 also what belongs to the student.
Not counted: a block's weights while FSDP2 has them gathered, cuDNN's workspaces and the allocator's
fragments, for which the 5 GB that a card of "80 GB" has beyond 80e9 bytes are left.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from distill.cache_cost import CacheCost, cache_cost
from distill.footprint import StepCost, measure_step
from distill.lora import add_lora
from distill.outline import open_outline
from distill.recipe import Recipe, Train
from distill.teachers.teacher import Teacher
from distill.train import keep_fewer_activations

CARD_BYTES = 80e9
MOST_PROCESSES = 64
SMALLEST_8BIT, BLOCK_8BIT = 4096, 256  # bitsandbytes: smaller tensors stay in 32 bits; an absmax


@dataclass(frozen=True)
class Part:
    """Something that lies in memory for the whole run; FSDP2 divides what is `shared`."""

    name: str
    size_bytes: int
    shared: bool


@dataclass(frozen=True)
class Budget:
    """All figures of a recipe. `one` is the cost of one group, `step` that of a micro-batch."""

    recipe: Recipe
    student: int  # parameters
    trained: int
    teacher: int
    others: int
    held: tuple[Part, ...]
    one: StepCost
    step: StepCost

    def working_bytes(self, groups: int) -> int:
        """Activations and what is alive beside them, of so many groups: linear in them."""
        total = self.recipe.drift.groups
        if total == 1:
            return self.one.working_bytes * groups
        each = (self.step.working_bytes - self.one.working_bytes) / (total - 1)
        return round(self.one.working_bytes + each * (groups - 1))

    def process_bytes(self, processes: int, parallel: str) -> int:
        """The most that one of so many processes needs, at the step's own highest point."""
        share = processes if parallel == "fsdp2" else 1
        held = sum(part.size_bytes / (share if part.shared else 1) for part in self.held)
        groups = math.ceil(self.recipe.drift.groups / processes)
        # torch's AdamW takes the root of all second moments at once; no activation is alive then.
        root = 4 * self.trained / share if self.recipe.train.optimizer == "adamw" else 0
        return round(held + max(self.working_bytes(groups), root))

    def fitting(self, parallel: str) -> int | None:
        """The fewest processes, each with a card of 80 GB, that can do it: 1, 2, 4, ... 64."""
        for processes in self.counts():
            if self.process_bytes(processes, parallel) <= CARD_BYTES:
                return processes
        return None

    def counts(self) -> list[int]:
        """Numbers of processes that are considered: each has a group at least."""
        most = min(MOST_PROCESSES, self.recipe.drift.groups)
        return [2**k for k in range(most.bit_length())]


def count(recipe: Recipe) -> Budget:
    """The budget of a recipe; takes a minute for a model of the size of SDXL.

    Raises:
        TeacherError: the teacher's directory or a config in it is missing, or of no known class.
        ValueError: a layer, a pool or a target that the teacher does not have.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    teacher = open_outline(configs_of(recipe), mode)
    student = outlined_student(teacher, recipe, mode)
    with mode:
        step = measure_step(teacher, student, recipe)
        one = step
        if recipe.drift.groups > 1:
            single = recipe.drift.model_copy(update={"groups": 1})
            one = measure_step(teacher, student, recipe.model_copy(update={"drift": single}))
    parameters = [p for p in student.parameters() if p.requires_grad]
    return Budget(
        recipe=recipe,
        student=size(student),
        trained=sum(p.numel() for p in parameters),
        teacher=size(teacher.denoiser),
        others=sum(size(module) for module in other_networks(teacher)),
        held=tuple(held_parts(teacher, student, parameters, recipe.train)),
        one=one,
        step=step,
    )


def configs_of(recipe: Recipe) -> Path:
    """The directory that has the teacher's configs: its own, or the one beside a single file."""
    return recipe.teacher.config or recipe.teacher.model


def outlined_student(teacher: Teacher, recipe: Recipe, mode: FakeTensorMode) -> nn.Module:
    """A student as training makes it, of fake weights.

    Fake weights cannot be moved, as `add_lora` does with its own: they take their places at last.
    """
    kind: Any = type(teacher.denoiser)
    with torch.device("meta"):
        student: nn.Module = kind.from_config(teacher.denoiser.config).train()
    if recipe.student.lora is not None:
        add_lora(student, recipe.student.lora, recipe.train.seed)
    with mode:
        for module in student.modules():
            for name, weight in module.named_parameters(recurse=False):
                made = torch.empty_like(weight, device=teacher.device)
                setattr(module, name, nn.Parameter(made, weight.requires_grad))
            for name, values in module.named_buffers(recurse=False):
                setattr(module, name, torch.empty_like(values, device=teacher.device))
    if recipe.train.checkpointing:
        keep_fewer_activations(teacher.denoiser, student)
    return student


def other_networks(teacher: Teacher) -> list[nn.Module]:
    """The networks of a pipeline beside the denoiser: encoders of text, the VAE."""
    pipe: Any = teacher.pipe  # type: ignore[attr-defined]
    parts = pipe.components.values()
    return [part for part in parts if isinstance(part, nn.Module) and part is not teacher.denoiser]


def held_parts(
    teacher: Teacher, student: nn.Module, trained: list[nn.Parameter], train: Train
) -> Iterator[Part]:
    """What is in a GPU's memory throughout. Gradients are counted as if they never went."""
    gradients = sum(p.nbytes for p in trained)
    yield Part("student's weights", weight_bytes(student), True)
    yield Part("its gradients", gradients, True)
    yield Part("optimizer", sum(state_bytes(p, train) for p in trained), True)
    if train.ema_device == "same":
        yield Part("moving average", gradients, True)
    yield Part("teacher's weights", weight_bytes(teacher.denoiser), False)
    others = sum(weight_bytes(module) for module in other_networks(teacher))
    yield Part("encoders and VAE", others, False)


def state_bytes(parameter: nn.Parameter, train: Train) -> int:
    """What AdamW keeps of one parameter: two moments in 32 bits, or in 8 with a scale a block."""
    if train.optimizer == "adamw" or parameter.numel() < SMALLEST_8BIT:
        return 8 * parameter.numel() + 4  # and the number of its steps
    return 2 * (parameter.numel() + 4 * math.ceil(parameter.numel() / BLOCK_8BIT))


def weight_bytes(module: nn.Module) -> int:
    """Parameters and buffers."""
    return sum(x.nbytes for x in (*module.parameters(), *module.buffers()))


def size(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())


def dry_run(recipe: Recipe) -> str:
    """The resolved recipe, and under it the budget as comments: all of it is YAML.

    A teacher that is not there yet is named instead. Raises: see `count`, but for that.
    """
    folder = configs_of(recipe)
    if not folder.is_dir():
        lines = [
            f"No budget: the teacher's directory {folder} does not exist.",
            "Its config.json files alone, without weights, are enough for one.",
        ]
    else:
        lines = list(report(count(recipe)))
    return recipe.resolved() + "".join(f"# {line}".rstrip() + "\n" for line in ("", *lines))


def report(budget: Budget) -> Iterator[str]:
    """The budget in lines."""
    trained = "" if budget.trained == budget.student else f" ({millions(budget.trained)} trained)"
    yield (
        f"Parameters: student {millions(budget.student)}{trained},"
        f" teacher {millions(budget.teacher)}, encoders and VAE {millions(budget.others)}"
    )
    yield ""
    yield from flop_lines(budget)
    yield ""
    yield from memory_lines(budget)
    if (cache := cache_cost(budget.recipe, budget.step)) is not None:
        yield ""
        yield from cache_lines(cache)


def flop_lines(budget: Budget) -> Iterator[str]:
    """FLOPs of a student sample by part, of a step and of the run."""
    step, train = budget.step, budget.recipe.train
    kept = ": kept, below" if budget.recipe.drift.cached_draws else ""
    rows = (
        ("student, forward", step.student_forward),
        ("student, backward", step.student_backward),
        ("features of its samples, up to the last layer", step.features_forward),
        ("backward through them to the samples", step.features_backward),
        (f"features of positives and anchors{kept}", step.features_real),
        ("together", step.flops),
        ("with three whole passes of the teacher instead", step.plain_flops),
    )
    unit, divisor = unit_of(step.plain_flops / step.samples)
    yield f"{unit}FLOP of a student sample (a multiply-add is two)"
    for name, flops in rows:
        yield f"  {name:<48}{flops / step.samples / divisor:>12,.2f}"
    per_step = step.flops * train.accumulate
    yield (
        f"A step of {step.samples * train.accumulate} samples takes {with_unit(per_step)}FLOP,"
        f" {train.steps:,} steps take {with_unit(per_step * train.steps)}FLOP"
    )
    teacher = budget.recipe.teacher
    if budget.recipe.positives.source == "teacher":
        guided = 2 if teacher.guidance_scale > 1 else 1
        each = guided * teacher.steps * step.student_forward / step.samples
        yield f"A sample of the teacher for the bank takes {with_unit(each)}FLOP"


def cache_lines(cache: CacheCost) -> Iterator[str]:
    """What kept features take beside a step: of the disk, once of the GPU, and of memory."""

    def taken(samples: int) -> str:
        size, flops = samples * cache.sample_bytes, samples * cache.sample_flops
        return f"{with_unit(size)}B on the disk and, once, {with_unit(flops)}FLOP"

    yield f"Features of positives and anchors, kept at {cache.draws} draws (drift.cached_draws)"
    yield f"  a sample takes {taken(1)}"
    if cache.samples is None:
        yield "  how many samples there are cannot be told before they are there"
    else:
        yield f"  all {cache.samples:,} take {taken(cache.samples)}"
    read, held = cache.rows_read * cache.row_bytes, cache.rows_held * cache.row_bytes
    yield f"  a micro-batch reads {with_unit(read)}B of mapped files"
    yield f"  making them needs {with_unit(held)}B of the machine's memory"


def memory_lines(budget: Budget) -> Iterator[str]:
    """Memory by part in one process, and the totals of several."""
    train, groups = budget.recipe.train, budget.recipe.drift.groups
    working = f"activations{' of blocks begun again' if train.checkpointing else ''}, temporaries"
    unit, divisor = unit_of(budget.process_bytes(1, "ddp"))
    yield f"{unit}B of GPU memory in one process"
    for part in budget.held:
        yield f"  {part.name:<48}{part.size_bytes / divisor:>12,.2f}"
    yield f"  {working:<48}{budget.step.working_bytes / divisor:>12,.2f}"
    yield f"  {'together, at the most':<48}{budget.process_bytes(1, 'ddp') / divisor:>12,.2f}"
    yield ""
    yield f"{f'{unit}B in each of several processes':<50}{'ddp':>12}{'fsdp2':>12}"
    for processes in budget.counts()[1:]:
        share = math.ceil(groups / processes)
        sizes = (budget.process_bytes(processes, parallel) for parallel in ("ddp", "fsdp2"))
        row = "".join(f"{one / divisor:>12,.2f}" for one in sizes)
        yield f"  {f'{processes} processes, {share} of {groups} groups each':<48}{row}"
    yield from (verdict(budget, parallel) for parallel in ("ddp", "fsdp2"))


def verdict(budget: Budget, parallel: str) -> str:
    """Whether it fits, in a sentence."""
    mark = " (train.parallel)" if budget.recipe.train.parallel == parallel else ""
    fewest = budget.fitting(parallel)
    if fewest is not None:
        cards = "one card" if fewest == 1 else f"{fewest} cards"
        return f"{parallel}{mark}: fits in {cards} of 80 GB"
    advice = "" if budget.recipe.train.checkpointing else "; train.checkpointing needs less"
    most = budget.counts()[-1]
    return f"{parallel}{mark}: does not fit in cards of 80 GB, be they {most}{advice}"


def millions(parameters: int) -> str:
    return f"{parameters / 1e6:,.1f} M"


def unit_of(value: float) -> tuple[str, float]:
    """The prefix that a value and its like are written with: M, G, T, P, E or Z."""
    power = min(max(int(math.log10(max(value, 1))) // 3, 2), 7)
    return " kMGTPEZ"[power], 10.0 ** (3 * power)


def with_unit(value: float) -> str:
    """A value with the prefix of its unit: 42.8 T."""
    unit, divisor = unit_of(value)
    return f"{value / divisor:,.3g} {unit}"
