"""The command line: `distill run`, `train`, `evaluate`, `export`, `serve`, `generate`.

It strings the three packages together and imports each only inside the command that needs it, so
that `distill serve` never loads torch.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distill.recipe import Recipe

TIMED_PICTURES = 31


class UserError(Exception):
    """What the user can mend: printed as one sentence, without a traceback."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status (0 done, 1 failed, 2 wrong usage, 130 stopped)."""
    args = parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = args.command
    try:
        return command(args)
    except UserError as error:
        print(f"distill: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("distill: stopped; the same command resumes", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """Every command and option."""
    top = argparse.ArgumentParser(prog="distill", description="One-step image models, end to end.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for name, function, text in (
        ("run", run, "recipe to served model: train, evaluate, export; resumes where it stopped"),
        ("train", train, "teacher to one-step student, as the recipe says"),
        ("evaluate", evaluate, "measure teacher and student by the recipe's judge"),
    ):
        stage = commands.add_parser(name, help=text, description=text)
        stage.set_defaults(command=function)
        add_recipe(stage)
        if name == "run":
            stage.add_argument("--dry-run", action="store_true", help="print the resolved recipe")
    add_export(commands.add_parser("export", help="student to model repository: one graph, gated"))
    add_serve(commands.add_parser("serve", help="the HTTP gateway on a model repository"))
    add_generate(commands.add_parser("generate", help="one picture, without a server"))
    return top


def add_recipe(stage: argparse.ArgumentParser) -> None:
    stage.add_argument("recipe", type=Path, help="a recipe, YAML")
    stage.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override a key of the recipe, e.g. train.steps=100",
    )


def add_export(stage: argparse.ArgumentParser) -> None:
    stage.set_defaults(command=export)
    stage.add_argument("source", type=Path, help="a recipe, or a student's diffusers directory")
    stage.add_argument("--model", help="name in the repository (a recipe names its own)")
    stage.add_argument("--repository", type=Path, default=None, help="default: model_repository")
    stage.add_argument("--max-batch", type=int, default=None, help="default: 8")


def add_serve(stage: argparse.ArgumentParser) -> None:
    stage.set_defaults(command=serve)
    add_repository(stage)
    stage.add_argument("--host", help="address to listen on (127.0.0.1)")
    stage.add_argument("--port", type=int, help="port to listen on (8000)")
    stage.add_argument("--max-queue", type=int, help="pictures accepted but not yet answered (64)")
    stage.add_argument("--deadline-ms", type=int, help="deadline of a request without its own")
    stage.add_argument("--drain-s", type=float, help="seconds to finish work after SIGTERM (30)")


def add_generate(stage: argparse.ArgumentParser) -> None:
    stage.set_defaults(command=generate)
    add_repository(stage)
    stage.add_argument("prompt")
    stage.add_argument("-o", "--out", type=Path, required=True, help=".png, .jpg or .webp")
    stage.add_argument("--seed", type=int, help="default: drawn at random, and printed")
    stage.add_argument("--size", help="WIDTHxHEIGHT")
    stage.add_argument("--quality", type=int, help="of jpeg and webp")


def add_repository(stage: argparse.ArgumentParser) -> None:
    stage.add_argument("--repository", type=Path, help="folder of models (model_repository)")
    stage.add_argument("--model", help="model in it; needed where there are several")
    stage.add_argument("--threads", type=int, help="threads in one model call (all cores)")


def run(args: argparse.Namespace) -> int:
    """`distill run`."""
    quiet_libraries()
    recipe = open_recipe(args)
    if args.dry_run:
        print(recipe.resolved(), end="")
        return 0
    check_judge(recipe)
    student = train_student(recipe)
    rows = evaluate_student(recipe) if recipe.evaluate else None
    folder = export_student(
        student, recipe.export.repository, recipe.export.model, recipe.export.max_batch
    )
    if rows is not None:
        print(rows)
        print(f"served by ONNX Runtime, text to PNG: {served_ms(folder):.1f} ms per picture")
        print(f"contact sheet: {recipe.run / 'contact-sheet.png'}")
    print(
        f"serve it: distill serve --repository {folder.parent.parent} --model {folder.parent.name}"
    )
    return 0


def train(args: argparse.Namespace) -> int:
    """`distill train`."""
    quiet_libraries()
    print(f"student: {train_student(open_recipe(args))}")
    return 0


def evaluate(args: argparse.Namespace) -> int:
    """`distill evaluate`."""
    quiet_libraries()
    recipe = open_recipe(args)
    print(evaluate_student(recipe))
    print(f"contact sheet: {recipe.run / 'contact-sheet.png'}")
    return 0


def export(args: argparse.Namespace) -> int:
    """`distill export`."""
    quiet_libraries()
    if args.source.is_dir():
        if args.model is None:
            raise UserError("a student's directory needs --model: its name in the repository")
        student, repository, model, max_batch = args.source, Path("model_repository"), "", 8
    else:
        recipe = open_recipe(argparse.Namespace(recipe=args.source, overrides=[]))
        student, model = recipe.run / "student", recipe.export.model
        repository, max_batch = recipe.export.repository, recipe.export.max_batch
    export_student(
        student,
        repository if args.repository is None else args.repository,
        model if args.model is None else args.model,
        max_batch if args.max_batch is None else args.max_batch,
    )
    return 0


def serve(args: argparse.Namespace) -> int:
    """`distill serve`."""
    from serve.errors import ServeError
    from serve.run import run_gateway
    from serve.settings import Settings

    names = (
        "repository",
        "model",
        "threads",
        "host",
        "port",
        "max_queue",
        "deadline_ms",
        "drain_s",
    )
    try:
        return run_gateway(Settings.from_environment({n: getattr(args, n) for n in names}))
    except ServeError as error:
        raise UserError(str(error)) from None


def generate(args: argparse.Namespace) -> int:
    """`distill generate`."""
    from serve.errors import ServeError
    from serve.generate import generate_file
    from serve.settings import Settings

    names = ("repository", "model", "threads")
    try:
        settings = Settings.from_environment({n: getattr(args, n) for n in names})
        picture = generate_file(settings, args.prompt, args.seed, args.out, args.size, args.quality)
    except ServeError as error:
        raise UserError(str(error)) from None
    print(f"{args.out}: seed {picture.origin.seed}, model {picture.origin.model}")
    return 0


def open_recipe(args: argparse.Namespace) -> Recipe:
    """A recipe, or the sentence that says what is wrong with it."""
    from distill.recipe import RecipeError, read_recipe

    try:
        return read_recipe(args.recipe, args.overrides)
    except RecipeError as error:
        raise UserError(str(error)) from None


def check_judge(recipe: Recipe) -> None:
    """Says that a judge is missing or incomplete before a student is trained for it."""
    from distill.judge import JudgeError, load_judge

    try:
        if recipe.evaluate is not None:
            load_judge(recipe.evaluate.judge)
    except JudgeError as error:
        raise UserError(str(error)) from None


def train_student(recipe: Recipe) -> Path:
    """The first stage."""
    from distill.checkpoint import CheckpointError
    from distill.run import distil
    from distill.train import TrainingError

    try:
        return distil(recipe)
    except (ValueError, CheckpointError, TrainingError) as error:
        raise UserError(str(error)) from error


def evaluate_student(recipe: Recipe) -> str:
    """The second stage: the table."""
    from distill.evaluate import table
    from distill.run import evaluate as measure

    try:
        return table(measure(recipe))
    except ValueError as error:
        raise UserError(str(error)) from error


def export_student(student: Path, repository: Path, model: str, max_batch: int) -> Path:
    """The third stage: the folder of the version that holds this student, new or not."""
    from export.errors import ExportError
    from export.export import export_student as publish
    from export.export import find_published

    try:
        there = find_published(student, repository, model, max_batch)
        if there is not None:
            print(f"{there} holds this student already")
            return there
        return publish(student, repository, model, max_batch=max_batch).folder
    except ExportError as error:
        raise UserError(str(error)) from error


def served_ms(version: Path) -> float:
    """Median time of one picture, text to PNG bytes, through the gateway's own code."""
    from serve.generate import time_pictures
    from serve.settings import Settings

    settings = Settings(repository=version.parent.parent, model=version.parent.name)
    return 1e3 * statistics.median(time_pictures(settings, TIMED_PICTURES))


def quiet_libraries() -> None:
    """Keeps loading bars and advice of the model libraries off the terminal; errors still show."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
