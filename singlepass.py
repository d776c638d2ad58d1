"""The command line: from recipe to served model, and what an operator does with a repository.

It strings the three packages together and imports each only inside the command that needs it, so
that `distill serve` never loads torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from distill.recipe import Recipe
    from export.model.foreign import Source
    from export.options import Options

TIMED_PICTURES = 31

Kind = TypeVar("Kind")


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
        ("bank", bank, "the teacher's samples of a recipe; several processes share the work"),
        ("train", train, "teacher to one-step student, as the recipe says"),
        ("evaluate", evaluate, "measure teacher and student by the recipe's judge"),
    ):
        stage = commands.add_parser(name, help=text, description=text)
        stage.set_defaults(command=function)
        add_recipe(stage)
        if name == "run":
            text = "print the resolved recipe, and what it costs"
            stage.add_argument("--dry-run", action="store_true", help=text)
        if name in ("run", "train"):
            text = "go on although the recipe has changed since the run began"
            stage.add_argument("--resume-changed", action="store_true", help=text)
        if name == "bank":
            stage.add_argument("--shard", metavar="I/N", help="make every N-th shard from the I-th")
        if name == "evaluate":
            text = "only hold the real pictures against the reference statistics"
            stage.add_argument("--reference", action="store_true", help=text)
    for name, add, text in (
        ("compare", add_compare, "runs side by side: one table, one contact sheet"),
        ("import", add_import, "a published teacher's file as a diffusers directory"),
        ("export", add_export, "one-step model to model repository: one graph, gated"),
        ("engine", add_engine, "build this GPU's TensorRT engine for a published version"),
        ("verify", add_verify, "draw a published version again at every batch size and compare"),
        ("inspect", add_inspect, "say in words what a student or a repository holds"),
        ("configure", add_configure, "choose how Triton serves a model: runtime, queue, instances"),
        ("rollback", add_rollback, "serve an older version, or the newest again"),
        ("serve", add_serve, "the HTTP gateway on a model repository"),
        ("key", add_key, "a new API key for the gateway, and the lines that let it in"),
        ("generate", add_generate, "one picture, without a server"),
    ):
        add(commands.add_parser(name, help=text, description=text))
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


def add_compare(stage: argparse.ArgumentParser) -> None:
    stage.set_defaults(command=compare)
    stage.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders")
    stage.add_argument("--out", type=Path, default=Path(), help="where the two files go (here)")


def add_import(stage: argparse.ArgumentParser) -> None:
    stage.set_defaults(command=import_teacher)
    stage.add_argument("kind", choices=["edm"], help="EDM's ImageNet-64 teachers")
    stage.add_argument("file", type=Path, help="OpenAI's .pt or NVlabs' .pkl, which is not run")
    stage.add_argument("--out", type=Path, required=True, help="a new folder")
    stage.add_argument("--classes", type=Path, help="names of its classes, one a line, in order")


def add_export(stage: argparse.ArgumentParser) -> None:
    stage.set_defaults(command=export)
    stage.add_argument("source", type=Path, nargs="?", help="a recipe, or as --model")
    model = stage.add_argument_group("the model (docs/one-step-models.md)")
    model.add_argument("--model", type=Path, help="pipeline or UNet directory, or .safetensors")
    model.add_argument("--one-step", help="turbo, lightning, dmd2, hyper, lcm, or a YAML file")
    model.add_argument("--base", type=Path, help="directory for what the model lacks")
    model.add_argument("--lora-scale", type=float, default=1.0, help="of a LoRA (1.0)")
    graph = stage.add_argument_group("the graph (docs/precision.md)")
    graph.add_argument("--sizes", help="WIDTHxHEIGHT,... the default first, or sdxl")
    graph.add_argument("--dtype", help="of denoiser and text encoders: fp32, fp16, bf16 (fp32)")
    graph.add_argument("--text-dtype", help="of the text encoders alone")
    graph.add_argument("--vae-dtype", help="of the VAE (fp32)")
    graph.add_argument("--vae", type=Path, help="another VAE's directory, AutoencoderTiny too")
    graph.add_argument("--quantize", choices=["int8"], help="for CPUs; kept only where it pays")
    graph.add_argument("--opset", type=int, help="18, 21 or 23 (23)")
    graph.add_argument("--max-batch", type=int, help="pictures in one call, 1 to 63 (8)")
    graph.add_argument("--no-gate", action="store_true", help="publish unmeasured, and say so")
    place = stage.add_argument_group("the repository (docs/formats.md)")
    place.add_argument("--repository", type=Path, help="default: model_repository")
    place.add_argument("--name", help="name in the repository (a recipe names its own)")
    place.add_argument("--runtime", help="Triton's back end: onnxruntime or python (onnxruntime)")
    place.add_argument("--keep", type=int, help="versions that remain, the new one included (all)")


def add_engine(stage: argparse.ArgumentParser) -> None:
    stage.set_defaults(command=engine)
    add_version(stage)
    stage.add_argument("--refit-from", type=int, help="take that version's engine, new weights")
    stage.add_argument("--opt-batch", type=int, help="batch size to tune for (the largest)")
    stage.add_argument("--workspace-gib", type=float, help="memory limit of the build")
    stage.add_argument("--optimization-level", type=int, help="0 to 5 (TensorRT's default)")
    stage.add_argument("--tf32", action="store_true", help="float32 products with 10 bits")
    stage.add_argument("--refit", action="store_true", help="an engine that takes new weights")
    stage.add_argument("--version-compatible", action="store_true", help="for later TensorRTs")
    stage.add_argument("--hardware", default="none", help="none, ampere_plus, ...: GPUs it runs on")
    stage.add_argument("--timing-cache", type=Path, help="default: beside the versions")
    stage.add_argument("--serve", action="store_true", help="then let Triton serve engines")


def add_verify(stage: argparse.ArgumentParser) -> None:
    stage.set_defaults(command=verify)
    add_version(stage)
    stage.add_argument("--against", default="onnx", help="torch, onnx or triton (onnx)")
    stage.add_argument("--student", type=Path, help="with torch: the student's directory")
    stage.add_argument("--url", help="with triton: HOST:PORT of its gRPC")
    stage.add_argument("--rows", type=int, help="pictures of each size (as many as a minute takes)")
    stage.add_argument("--threads", type=int, default=0, help="of one call (all cores)")
    stage.add_argument("--json", type=Path, dest="json_file", help="write the figures here")
    stage.add_argument("--sheet", type=Path, help="write the worst pictures here, PNG")


def add_inspect(stage: argparse.ArgumentParser) -> None:
    stage.set_defaults(command=inspect)
    stage.add_argument("path", type=Path, help="a student, a repository, a model or a version")


def add_configure(stage: argparse.ArgumentParser) -> None:
    stage.set_defaults(command=configure)
    stage.add_argument("repository", type=Path)
    stage.add_argument("model")
    stage.add_argument("--runtime", default="onnxruntime", help="onnxruntime, tensorrt or python")
    stage.add_argument("--instances", type=int, default=1, help="copies of the model (1)")
    stage.add_argument("--gpu", action=argparse.BooleanOptionalAction, help="default: tensorrt's")
    stage.add_argument("--max-queue", type=int, default=128, help="requests that may wait (128)")
    stage.add_argument("--timeout-ms", type=int, default=60_000, help="of a waiting request")
    stage.add_argument("--threads", type=int, default=0, help="of one call on a CPU (all cores)")
    stage.add_argument("--warm-up", action=argparse.BooleanOptionalAction, default=True)
    stage.add_argument("--cuda-graphs", action=argparse.BooleanOptionalAction, default=True)


def add_rollback(stage: argparse.ArgumentParser) -> None:
    stage.set_defaults(command=rollback)
    stage.add_argument("repository", type=Path)
    stage.add_argument("model")
    stage.add_argument("version", type=int, nargs="?", help="default: the one before the served")


def add_version(stage: argparse.ArgumentParser) -> None:
    stage.add_argument("repository", type=Path)
    stage.add_argument("--model", help="default: the only one")
    stage.add_argument("--version", type=int, help="default: the newest")


def add_serve(stage: argparse.ArgumentParser) -> None:
    from serve.settings import Settings

    stage.set_defaults(command=serve)
    for name, field in Settings.model_fields.items():
        default = "" if field.default in (None, ()) else f" ({field.default})"
        stage.add_argument(
            "--" + name.replace("_", "-"),
            help=f"{field.description}{default}".replace("%", "%%"),
            action=argparse.BooleanOptionalAction if field.annotation is bool else "store",
            default=None,
        )


def add_key(stage: argparse.ArgumentParser) -> None:
    stage.set_defaults(command=key)
    stage.add_argument("name", help="who it is for: a table in the file that --keys names")


def add_generate(stage: argparse.ArgumentParser) -> None:
    stage.set_defaults(command=generate)
    add_repository(stage)
    stage.add_argument("prompt", nargs="?", help="what a text model draws")
    stage.add_argument("--class-label", type=int, help="what a class-conditional model draws")
    stage.add_argument("-o", "--out", type=Path, required=True, help=".png, .jpg or .webp")
    stage.add_argument("--seed", type=int, help="default: drawn at random, and printed")
    stage.add_argument("--size", help="WIDTHxHEIGHT")
    stage.add_argument("--quality", type=int, help="of jpeg and webp")


def add_repository(stage: argparse.ArgumentParser) -> None:
    stage.add_argument("--repository", type=Path, help="folder of models (model_repository)")
    stage.add_argument("--model", help="model in it; needed where there are several")
    stage.add_argument(
        "--threads", type=int, help="threads that run the models on a CPU (all cores)"
    )


def run(args: argparse.Namespace) -> int:
    """`distill run`."""
    quiet_libraries()
    recipe = open_recipe(args)
    if args.dry_run:
        from distill.budget import dry_run

        with distill_errors():
            print(dry_run(recipe), end="")
        return 0
    refuse_several("run")
    check_judge(recipe)
    options = export_options(args, recipe)
    student = train_student(recipe, args.resume_changed)
    rows = evaluate_student(recipe) if recipe.evaluate else None
    place = recipe.export
    folder = export_model(source_of(student), place.repository, place.model, options)
    if rows is not None:
        print(rows)
        print(f"served by ONNX Runtime, text to PNG: {served_ms(folder):.1f} ms per picture")
        print(f"contact sheet: {recipe.run / 'contact-sheet.png'}")
    build_engine_here(folder)
    print(
        f"serve it: distill serve --repository {folder.parent.parent} --model {folder.parent.name}"
    )
    return 0


def bank(args: argparse.Namespace) -> int:
    """`distill bank`."""
    quiet_libraries()
    from distill import run
    from distill.turns import read_turns

    recipe = open_recipe(args)
    with distill_errors():
        run.bank(recipe, read_turns(args.shard, os.environ), print)
    return 0


def train(args: argparse.Namespace) -> int:
    """`distill train`."""
    quiet_libraries()
    student = train_student(open_recipe(args), args.resume_changed)
    if os.environ.get("RANK", "0") == "0":  # of several processes one says it
        print(f"student: {student}")
    return 0


def evaluate(args: argparse.Namespace) -> int:
    """`distill evaluate`."""
    refuse_several("evaluate")
    quiet_libraries()
    recipe = open_recipe(args)
    if args.reference:
        return check_reference(recipe)
    print(evaluate_student(recipe))
    print(f"contact sheet: {recipe.run / 'contact-sheet.png'}")
    return 0


def check_reference(recipe: Recipe) -> int:
    """`distill evaluate --reference`."""
    from distill import reference_check

    with distill_errors():
        reference_check.check_reference(recipe)
    return 0


def compare(args: argparse.Namespace) -> int:
    """`distill compare`."""
    quiet_libraries()
    from distill.compare import compare_runs

    with distill_errors():
        print(compare_runs(args.runs, args.out))
    return 0


def import_teacher(args: argparse.Namespace) -> int:
    """`distill import`."""
    quiet_libraries()
    from distill.importers.edm import import_edm

    with distill_errors():
        print(f"teacher: {import_edm(args.file, args.out, class_list=args.classes)}")
    return 0


def export(args: argparse.Namespace) -> int:
    """`distill export`."""
    quiet_libraries()
    named = args.model or args.source
    if named is None or (args.model and args.source):
        raise UserError("name one thing to export: a recipe, or a model with --model")
    if named.suffix not in (".yaml", ".yml"):
        if args.name is None:
            raise UserError("a model needs --name: what it is called in the repository")
        source, repository, name = source_of(named, args), Path("model_repository"), args.name
        options = export_options(args)
    else:
        recipe = open_recipe(argparse.Namespace(recipe=named, overrides=[]))
        source, options = source_of(recipe.run / "student", args), export_options(args, recipe)
        repository, name = recipe.export.repository, args.name or recipe.export.model
    export_model(source, args.repository or repository, name, options)
    return 0


def engine(args: argparse.Namespace) -> int:
    """`distill engine`."""
    from export.engine.facts import EngineOptions
    from export.engine.publish import publish_engine
    from export.repository.addition import serve_with

    quiet_libraries()
    with export_errors():
        facts = publish_engine(
            args.repository,
            args.model,
            args.version,
            from_arguments(EngineOptions, args),
            opt_batch=args.opt_batch,
            refit_from=args.refit_from,
        )
        if args.serve:
            model = args.model or only_model(args.repository)
            serve_with(args.repository, model, "tensorrt")
    print(f"{facts.file}: {facts.bytes / 1e6:.0f} MB for {facts.gpu}, in {facts.seconds:.0f} s")
    return 0


def verify(args: argparse.Namespace) -> int:
    """`distill verify`."""
    from export.gate.published import Request, verify_repository

    quiet_libraries()
    with export_errors():
        request = from_arguments(Request, args)
        verify_repository(args.repository, args.model, args.version, request)
    return 0


def inspect(args: argparse.Namespace) -> int:
    """`distill inspect`."""
    from export.repository.describe import describe

    with export_errors():
        print(describe(args.path))
    return 0


def configure(args: argparse.Namespace) -> int:
    """`distill configure`."""
    from export.repository.addition import serve_with
    from export.repository.triton_config import ServingOptions

    with export_errors():
        options = from_arguments(ServingOptions, args)
        served = serve_with(args.repository, args.model, args.runtime, options)
    print(f"{args.repository / args.model}: {args.runtime} serves version {served}")
    return 0


def rollback(args: argparse.Namespace) -> int:
    """`distill rollback`."""
    from export.repository.serving import rollback as pin

    with export_errors():
        version = pin(args.repository, args.model, args.version)
    print(f"{args.repository / args.model}: version {version} is served")
    return 0


def serve(args: argparse.Namespace) -> int:
    """`distill serve`."""
    from serve.errors import ServeError
    from serve.run import run_gateway
    from serve.settings import Settings

    try:
        settings = Settings.from_environment({n: getattr(args, n) for n in Settings.model_fields})
        return run_gateway(settings, leave=True)
    except ServeError as error:
        raise UserError(str(error)) from None


def key(args: argparse.Namespace) -> int:
    """`distill key`: the lines on standard output, so that `>> keys.toml` appends them."""
    from serve.errors import SettingsError
    from serve.keys import make_key

    try:
        made, lines = make_key(args.name)
    except SettingsError as error:
        raise UserError(str(error)) from None
    print(f"the key, which is shown this once: {made}", file=sys.stderr)
    print(lines, end="")
    return 0


def generate(args: argparse.Namespace) -> int:
    """`distill generate`."""
    from serve.errors import ServeError
    from serve.generate import generate_file
    from serve.settings import Settings

    names = ("repository", "model", "threads")
    try:
        settings = Settings.from_environment({n: getattr(args, n) for n in names})
        picture = generate_file(
            settings, args.prompt, args.seed, args.out, args.size, args.quality, args.class_label
        )
    except ServeError as error:
        raise UserError(str(error)) from None
    print(f"{args.out}: seed {picture.origin.seed}, model {picture.origin.model}")
    return 0


def refuse_several(command: str) -> None:
    """Says of a stage that is for one process that a launcher has begun several."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            f"`{command}` is for one process, but a launcher began several; launch `train` (or"
            " `bank`) so"
        )


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
        if recipe.evaluate is not None and recipe.evaluate.judge is not None:
            load_judge(recipe.evaluate.judge)
    except JudgeError as error:
        raise UserError(str(error)) from None


@contextmanager
def distill_errors() -> Iterator[None]:
    """What `distill` raises for a user's mistake, as one sentence."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from error


def train_student(recipe: Recipe, resume_changed: bool) -> Path:
    """The first stage."""
    from distill.checkpoint import CheckpointError
    from distill.run import distil
    from distill.train import TrainingError

    try:
        return distil(recipe, resume_changed=resume_changed)
    except (ValueError, CheckpointError, TrainingError) as error:
        raise UserError(str(error)) from error


def evaluate_student(recipe: Recipe) -> str:
    """The second stage: the table."""
    from distill.evaluate import table
    from distill.run import evaluate as measure

    with distill_errors():
        return table(measure(recipe))


def source_of(model: Path, args: argparse.Namespace | None = None) -> Source:
    """The model that the user named; a recipe's student needs no further word."""
    from export.model.foreign import Source

    if args is None:
        return Source(model)
    return Source(model, args.one_step, args.base, args.lora_scale)


def export_options(args: argparse.Namespace, recipe: Recipe | None = None) -> Options:
    """Flags before the recipe's keys before the defaults."""
    from export.graph.precision import read_precision
    from export.graph.sizes import parse_sizes
    from export.options import Options

    def chosen(name: str) -> Any:
        flag = getattr(args, name, None)
        return getattr(recipe.export, name) if flag is None and recipe is not None else flag

    plain = {name: chosen(name) for name in ("vae", "opset", "max_batch", "runtime", "keep")}
    sizes = chosen("sizes")
    dtypes = {"unet": chosen("dtype"), "vae": chosen("vae_dtype"), "text": chosen("text_dtype")}
    with export_errors():
        options = Options(
            **{name: value for name, value in plain.items() if value is not None},
            sizes=parse_sizes(sizes) if sizes else (),
            precision=read_precision(**{part: name for part, name in dtypes.items() if name}),
            quantize=chosen("quantize") is not None,
            gate=not getattr(args, "no_gate", False),
        )
        options.check()
    return options


def export_model(source: Source, repository: Path, name: str, options: Options) -> Path:
    """The third stage: the folder of the version that holds this model, new or not."""
    from export.export import export_student
    from export.origin import find_published

    with export_errors():
        there = find_published(source, repository, name, options)
        if there is not None:
            print(f"{there} holds this student already")
            return there
        return export_student(source, repository, name, options).folder


def build_engine_here(version: Path) -> None:
    """The last stage, where an NVIDIA GPU and TensorRT are; else one line says what to do."""
    from export.engine.facts import nvidia_gpu_found
    from export.engine.gpu import find_gpu
    from export.engine.publish import publish_engine
    from export.errors import EngineError
    from export.repository.manifest import engines_of, read_manifest

    if not nvidia_gpu_found():
        return
    with export_errors():
        try:
            if find_gpu().capability not in engines_of(read_manifest(version)):
                publish_engine(version.parent.parent, version.parent.name, int(version.name))
        except EngineError as error:
            print(f"no TensorRT engine was built: {error}")


def only_model(repository: Path) -> str:
    """The name of the only model of a repository; `publish_engine` has found it to be the only."""
    return next(file.parent.name for file in repository.glob("*/config.pbtxt"))


def from_arguments(kind: Callable[..., Kind], args: argparse.Namespace) -> Kind:
    """A dataclass of options out of the arguments that bear its fields' names."""
    names = {field.name for field in dataclasses.fields(cast("Any", kind))}
    return kind(**{name: value for name, value in vars(args).items() if name in names})


@contextmanager
def export_errors() -> Iterator[None]:
    """What the export package finds wrong becomes the command line's one sentence."""
    from export.errors import ExportError

    try:
        yield
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
