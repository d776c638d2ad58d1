"""The recipe: one validated YAML file that says everything about a distillation.

Paths in a recipe are relative to the file that holds it. An unknown key, a wrong type or an
impossible value is an error that names the key, the value and what is allowed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Dtype = Literal["fp32", "fp16", "bf16"]
Share = Annotated[float, Field(ge=0, lt=1)]


class RecipeError(ValueError):
    """A recipe that cannot be read or is not valid; the text names each offending key."""


class Section(BaseModel):
    """A part of a recipe: no unknown keys, no changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


def beside_recipe(path: Path, info: ValidationInfo) -> Path:
    """A path as the recipe means it: relative to the recipe's own folder."""
    folder: Path = (info.context or {}).get("folder", Path())
    return Path(os.path.normpath(folder / path))


class Teacher(Section):
    """The frozen model, and how it is sampled when it makes pictures itself."""

    model: Path = Field(
        description="a diffusers pipeline directory of a known class, or a single .safetensors file"
    )
    config: Path | None = Field(
        None,
        description="of a single file: a diffusers directory with its configs and tokenizers",
    )
    steps: Count = Field(25, description="steps of the teacher's own scheduler")
    guidance_scale: Weight = Field(5.0, description="classifier-free guidance of its samples")

    _beside = field_validator("model", "config")(
        lambda path, info: path if path is None else beside_recipe(path, info)
    )


class Lora(Section):
    """A student that is the teacher and small corrections to some of its weights."""

    rank: Count = Field(description="rank of each correction")
    alpha: Positive | None = Field(
        None, description="a correction is scaled by alpha / rank; none: by 1"
    )
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        ("to_q", "to_k", "to_v", "to_out.0"),
        description="the ends of the names of the layers that are corrected",
    )


class Student(Section):
    """The one-step generator."""

    timestep: Annotated[int, Field(ge=0)] | None = Field(
        None, description="the timestep that pure noise is labelled with, of teachers that count so"
    )
    sigma: Positive | None = Field(
        None,
        description="the same of teachers that count in noise levels",
    )
    lora: Lora | None = Field(
        None, description="train corrections alone, merged at the end; none: all weights"
    )


class Dataset(Section):
    """A data set that Hugging Face `datasets` opens: captioned pictures, a row each."""

    path: str = Field(
        description="a folder or file (Parquet, WebDataset tar, pictures), or hub:OWNER/NAME"
    )
    name: str | None = Field(None, description="its configuration, where it has several")
    split: str = "train"
    image: str = Field("image", description="the column of pictures")
    text: str = Field("text", description="the column of captions or labels; json.caption: a part")
    streaming: bool = Field(
        True, description="read in order, without a copy in the cache of `datasets`"
    )
    limit: Count | None = Field(None, description="the first rows only; none: all")

    @field_validator("path")
    @classmethod
    def _beside_unless_hub(cls, path: str, info: ValidationInfo) -> str:
        return path if path.startswith("hub:") else str(beside_recipe(Path(path), info))


class Positives(Section):
    """Where the samples come from that the student is drawn to."""

    source: Literal["images", "classes", "teacher"] = Field(
        "teacher",
        description="captioned images, images in a folder per class, or a bank of teacher samples",
    )
    folder: Path | None = Field(
        None, description="images: a folder with metadata.jsonl (file_name, text); classes: folders"
    )
    dataset: Dataset | None = Field(None, description="images: a data set instead of a folder")
    resize: Literal["lanczos", "adm"] = Field(
        "lanczos", description="how images become squares: as EDM or as ADM made ImageNet's"
    )
    prompts: Path | None = Field(
        None, description="teacher: prompts, a text file (one a line), .jsonl or .parquet"
    )
    long_prompts: Literal["refuse", "truncate", "skip"] = Field(
        "refuse", description="what becomes of texts longer than the teacher's tokenizers take"
    )
    per_prompt: Count = Field(16, description="teacher: samples of each prompt in the bank")
    batch: Count = Field(64, description="pictures encoded, or sampled, at once")
    cache: Path | None = Field(
        None, description="folder of encoded images or of the bank; none: in the run folder"
    )

    _beside = field_validator("folder", "prompts", "cache")(
        lambda path, info: path if path is None else beside_recipe(path, info)
    )

    @model_validator(mode="after")
    def _its_own_key(self) -> Positives:
        if self.source == "images" and self.folder is None and self.dataset is None:
            raise ValueError("source is images, so folder must name the folder that holds them")
        if self.folder is not None and self.dataset is not None:
            raise ValueError("folder and dataset are both given; one of them is needed")
        if self.source == "classes" and self.folder is None:
            raise ValueError("source is classes, so folder must name the folder of class folders")
        if self.source == "teacher" and self.prompts is None:
            raise ValueError("source is teacher, so prompts must name a text file of prompts")
        return self


class Drift(Section):
    """The TFD objective (arXiv 2605.07327)."""

    layers: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        ("down_blocks.2", "mid_block", "up_blocks.0"),
        description="modules of the teacher's denoiser, and/or `sample` for the latent itself;"
        " NAME/2 compares windows of 2 x 2 positions instead of the whole map",
    )
    pool: Count = Field(4, description="average pooling of each layer's map")
    sigma: tuple[Positive, Positive] = Field(
        (0.02, 0.1), description="range of the feature noise level, lower and upper"
    )
    sigma_mean: Annotated[float, Field(allow_inf_nan=False)] = Field(
        -1.2, description="mean of log sigma"
    )
    sigma_std: Weight = Field(1.2, description="deviation of log sigma")
    radii: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.02, 0.05, 0.1, 0.2)
    coverage_weight: Weight = Field(1.0, description="weight of the anchor-margin loss; 0 = off")
    coverage_alpha: Weight = Field(0.5, description="share of an anchor's own support asked for")
    groups: Count = Field(description="conditions per step (B)")
    samples: Annotated[int, Field(ge=2)] = Field(description="student samples per group (N)")
    positives: Count = Field(description="positives per group (P)")
    anchors: Annotated[int, Field(ge=2)] = Field(4, description="anchors per group (A)")
    cached_draws: Annotated[int, Field(ge=0)] = Field(
        0, description="keep features of positives and anchors at so many noise draws; 0 = off"
    )

    @field_validator("sigma")
    @classmethod
    def _ordered(cls, sigma: tuple[float, float]) -> tuple[float, float]:
        if sigma[0] > sigma[1]:
            raise ValueError("the lower end must not be above the upper end")
        return sigma


class Train(Section):
    """The optimiser and the loop."""

    steps: Count
    learning_rate: Positive = 2e-6
    final_learning_rate: Weight = Field(
        1.0, description="share of the learning rate left at the end of a cosine; 1 = constant"
    )
    betas: tuple[Share, Share] = (0.9, 0.999)
    weight_decay: Weight = 0.01
    warmup_steps: Annotated[int, Field(ge=0)] = 500
    clip_norm: Positive = Field(10.0, description="largest gradient norm")
    ema_decay: Share = Field(0.0, description="moving average of the student's weights; 0 = off")
    precision: Literal["bf16", "fp32"] = Field(
        "bf16", description="the student's autocast; the teacher and the loss are always fp32"
    )
    accumulate: Count = Field(1, description="micro-batches of `groups` conditions per step")
    seed: Annotated[int, Field(ge=0)] = 0
    checkpoint_steps: Count = 500
    keep_checkpoints: Count = 2
    sample_steps: Count = Field(500, description="steps between sample grids")
    diagnose_steps: Count = Field(100, description="steps between diagnostics in stats.jsonl")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, ...")
    parallel: Literal["ddp", "fsdp2"] = Field(
        "ddp", description="several processes: a whole student in each, or a share of it"
    )
    checkpointing: bool = Field(
        False, description="keep fewer activations and compute them again: less memory, slower"
    )
    optimizer: Literal["adamw", "adamw8bit"] = Field(
        "adamw", description="adamw8bit keeps its state in 8 bits (bitsandbytes)"
    )
    ema_device: Literal["same", "cpu"] = Field(
        "same", description="where the moving average is kept: with the student, or off the GPU"
    )
    compile: bool = Field(
        False, description="compile the student: a slower first step, faster later ones"
    )
    trackers: tuple[Literal["tensorboard", "wandb"], ...] | None = Field(
        None, description="who is told the figures; none given: tensorboard where it is installed"
    )

    @model_validator(mode="after")
    def _one_that_shards(self) -> Train:
        if self.optimizer == "adamw8bit" and self.parallel == "fsdp2":
            raise ValueError("optimizer adamw8bit cannot share its state: parallel must be ddp")
        return self


class Evaluate(Section):
    """What `distill evaluate` measures: by a judge, by a published protocol, or both."""

    judge: Path | None = Field(
        None, description="a Python file; docs/evaluation.md says what it defines"
    )
    captions: Annotated[int, Field(ge=2)] = Field(
        360, description="judge: full captions, one picture each"
    )
    vague_seeds: Annotated[int, Field(ge=0)] = Field(
        200, description="judge: pictures of each vague caption, for mode coverage; 0 = none"
    )
    batch: Count = 32
    seed: Annotated[int, Field(ge=0)] = 1_000_000
    preset: Literal["imagenet64", "coco10k"] | None = Field(
        None, description="a published protocol of features: FID, precision, recall, CLIP score"
    )
    inception: Path | None = Field(None, description="preset: Inception v3 as TorchScript")
    clip: Path | None = Field(None, description="preset: a CLIP directory, for the CLIP score")
    reference: Path | None = Field(
        None, description="preset: .npz of mu and sigma of the real pictures' features"
    )
    real: Path | None = Field(
        None, description="preset: folder of real pictures, for all that reference does not hold"
    )
    prompts: Path | None = Field(None, description="coco10k: captions, a file")
    images: Annotated[int, Field(ge=6)] | None = Field(
        None, description="preset: pictures of each generator; none: as published"
    )
    classes: Count | None = Field(None, description="imagenet64: classes; none: 1000")
    generators: Annotated[
        tuple[Literal["teacher", "one_step_teacher", "student"], ...], Field(min_length=1)
    ] = Field(
        ("teacher", "one_step_teacher", "student"),
        description="preset: which are measured; a teacher in many steps takes long",
    )

    _beside = field_validator("judge", "inception", "clip", "reference", "real", "prompts")(
        lambda path, info: path if path is None else beside_recipe(path, info)
    )

    @model_validator(mode="after")
    def _its_own_keys(self) -> Evaluate:
        if self.preset is None:
            keys = ("inception", "clip", "reference", "real", "prompts", "images", "classes")
            given = [key for key in keys if getattr(self, key) is not None]
            if given:
                raise ValueError(f"{given[0]} is given, but no preset that uses it")
            if self.judge is None:
                raise ValueError("judge or preset must say what is measured")
            return self
        if self.inception is None:
            raise ValueError("preset needs inception, the file of the network (none is downloaded)")
        if self.reference is None and self.real is None:
            raise ValueError("preset needs reference or real, to compare with")
        if self.preset == "coco10k" and self.prompts is None:
            raise ValueError("preset coco10k needs prompts, a file of captions")
        if self.preset == "coco10k" and self.classes is not None:
            raise ValueError("preset coco10k has captions, not classes")
        if self.preset == "imagenet64" and (self.prompts or self.clip):
            raise ValueError("preset imagenet64 has classes, neither prompts nor clip")
        return self


class Export(Section):
    """Where the student is published."""

    model: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]*$", description="the model's name in the repository"
    )
    repository: Path = Field(description="the Triton model repository")
    max_batch: Annotated[int, Field(ge=1, le=63)] = 8  # as export.graph.to_onnx.LARGEST_BATCH
    sizes: str | None = Field(
        None, description="WIDTHxHEIGHT, several with commas, the default first; or `sdxl`"
    )
    dtype: Dtype = Field("fp32", description="number type of denoiser and text encoders")
    text_dtype: Dtype | None = Field(None, description="of the text encoders alone")
    vae_dtype: Dtype = Field("fp32", description="of the VAE; fp16 is refused where it overflows")
    vae: Path | None = Field(None, description="directory of another VAE, AutoencoderTiny too")
    quantize: Literal["int8"] | None = Field(None, description="for CPUs; kept only where it pays")
    opset: Literal[18, 21, 23] = 23
    runtime: Literal["onnxruntime", "python"] = Field(
        "onnxruntime", description="Triton's back end of a new version"
    )
    keep: Count | None = Field(None, description="versions that remain; all if not given")

    _beside = field_validator("repository", "vae")(
        lambda path, info: path if path is None else beside_recipe(path, info)
    )


class Recipe(Section):
    """The whole file."""

    run: Path = Field(description="folder of checkpoints, statistics, grids and the student")
    teacher: Teacher
    student: Student = Student()
    positives: Positives
    drift: Drift
    train: Train
    evaluate: Evaluate | None = None
    export: Export

    _beside = field_validator("run")(beside_recipe)

    def resolved(self) -> str:
        """The recipe as YAML with every default written out and every path absolute."""
        plain = self.model_dump(mode="json")
        return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads and validates a recipe; `overrides` are `section.key=value` with values in YAML.

    Raises:
        RecipeError: no such file, not YAML, or any key or value that is not allowed.
    """
    try:
        plain = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise RecipeError(f"recipe {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path} is not valid YAML: {error}") from error
    if not isinstance(plain, dict):
        raise RecipeError(f"recipe {path} holds no keys; it needs {', '.join(Recipe.model_fields)}")
    for override in overrides:
        apply_override(plain, override)
    try:
        folder = path.resolve().parent
        return Recipe.model_validate(plain, context={"folder": folder})
    except ValidationError as error:
        lines = [describe(problem) for problem in error.errors()]
        raise RecipeError(f"recipe {path} is not valid:\n" + "\n".join(lines)) from None


def apply_override(plain: dict[str, Any], override: str) -> None:
    """Puts one `section.key=value` into the plain recipe. RecipeError if it is not of that form."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {override}: must be section.key=value")
    *sections, last = key.split(".")
    for section in sections:
        inner = plain.setdefault(section, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"--set {override}: {section} is a value, not a section")
        plain = inner
    try:
        plain[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {override}: the value is not valid YAML") from error


def describe(problem: Any) -> str:
    """One validation problem as one line: the key, what was given, what is allowed."""
    key = ".".join(str(part) for part in problem["loc"]) or "recipe"
    if problem["type"] == "extra_forbidden":
        return f"  {key}: unknown key; allowed here: {', '.join(known_keys(problem['loc'][:-1]))}"
    if problem["type"] == "missing":
        return f"  {key}: missing"
    message = problem["msg"].removeprefix("Value error, ")
    given = problem["input"]
    shown = "" if isinstance(given, dict) else f" is {given!r}"
    return f"  {key}{shown}: {message[:1].lower()}{message[1:]}"


def known_keys(location: Sequence[int | str]) -> list[str]:
    """The keys that a recipe allows at a place."""
    section: type[BaseModel] = Recipe
    for part in location:
        annotation = section.model_fields[str(part)].annotation
        options = getattr(annotation, "__args__", (annotation,))  # Evaluate | None
        section = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return list(section.model_fields)
