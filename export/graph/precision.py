"""Number types by part: text encoders, UNet and VAE each in their own, the step always in float32.

float16 ends at 65504. A VAE may be kept in it only after its decoder has been watched: SDXL's own
overflows, those that were trained for float16 do not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from export.errors import PrecisionError
from export.graph.text_graph import text_graph
from export.model.student import Student
from export.signature import TEXT_INPUTS

DTYPES = {
    "fp32": torch.float32,
    "float32": torch.float32,
    "fp16": torch.float16,
    "float16": torch.float16,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
}
FLOAT16_MAX = float(torch.finfo(torch.float16).max)
MARGIN = 2.0  # what the samples reach must stay below the largest float16 by this factor
SAMPLES = ("a photograph of a mountain lake at dawn", "", "text on a white page", "a red circle")


@dataclass(frozen=True)
class Precision:
    """The type of each part's weights and of what it computes with them."""

    text: torch.dtype = torch.float32
    unet: torch.dtype = torch.float32
    vae: torch.dtype = torch.float32

    def to_json(self) -> dict[str, str]:
        """Plain names for the manifest."""
        return {part: str(dtype).removeprefix("torch.") for part, dtype in vars(self).items()}


@dataclass(frozen=True)
class Largest:
    """The largest absolute value in any module's output, and the module it came from."""

    module: str
    value: float
    samples: int


def read_precision(unet: str = "fp32", vae: str = "fp32", text: str | None = None) -> Precision:
    """From the command line's names; the text encoders go with the UNet unless they are named."""
    return Precision(
        unet=_dtype("dtype", unet),
        text=_dtype("text-dtype", unet if text is None else text),
        vae=_dtype("vae-dtype", vae),
    )


def apply_precision(student: Student, precision: Precision) -> Largest | None:
    """Turn the parts, in place; gives what was measured where a float16 VAE had to be watched."""
    largest = None
    if precision.vae is torch.float16:
        largest = watch_decoder(student, draw_latents(student))
        check_range(largest)
    pipeline = student.pipeline
    for encoder in student.family.encoders_of(pipeline):
        _turn(encoder, precision.text)
    _turn(student.denoiser, precision.unet)
    _turn(pipeline.vae, precision.vae)
    if largest is not None:
        pipeline.vae.register_to_config(force_upcast=False)  # it was watched instead of believed
    return largest


@torch.no_grad()
def draw_latents(student: Student) -> list[Tensor]:
    """Latents [1, C, h, w] of the student for each sample prompt, as its decoder is given them."""
    graph, tokenizers = text_graph(student), student.family.tokenizers_of(student.pipeline)
    shape = (1, student.latent_channels, student.latent_size, student.latent_size)
    latents = []
    for seed, prompt in enumerate(SAMPLES):
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        ids = {
            name: tokenizer(prompt, max_length=TEXT_INPUTS[name], **options).input_ids
            for name, tokenizer in tokenizers.items()
        }
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        latents.append(graph.latent(**ids, noise=noise))
    return latents


@torch.no_grad()
def watch_decoder(student: Student, latents: Sequence[Tensor]) -> Largest:
    """Decode in float32 and note the largest absolute value that any module gives out."""
    vae = student.pipeline.vae
    dtype = vae.dtype
    _turn(vae, torch.float32)
    found: dict[str, float] = {}

    def note(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                value = float(output.abs().max())
                found[name] = max(value, found.get(name, 0.0)) if value == value else torch.inf

        return hook

    hooks = [module.register_forward_hook(note(name)) for name, module in vae.named_modules()]
    try:
        for latent in latents:
            vae.decode(latent, return_dict=False)
    finally:
        for hook in hooks:
            hook.remove()
        _turn(vae, dtype)
    assert found, "no latents were decoded"
    module = max(found, key=found.__getitem__)
    return Largest(module, found[module], len(latents))


def check_range(largest: Largest) -> None:
    """`PrecisionError` where float16 would overflow, or come too near."""
    if not largest.value <= FLOAT16_MAX / MARGIN:
        raise PrecisionError(
            f"vae-dtype is float16, but on {largest.samples} samples {largest.module} of the VAE "
            f"reaches {largest.value:.3g}; allowed is {FLOAT16_MAX / MARGIN:.0f} (float16 ends at "
            f"{FLOAT16_MAX:.0f}): use bfloat16 or float32, or a VAE made for float16"
        )


def _turn(part: nn.Module, dtype: torch.dtype) -> None:
    """Weight by weight, so that a large part is never there twice.

    Layers that transformers keeps in float32 beside float16 (T5's `wo`, which overflows) stay so.
    """
    kept = getattr(part, "_keep_in_fp32_modules", None) or ()
    for name, module in part.named_modules():
        wide = dtype is torch.float16 and name.rpartition(".")[2] in kept
        for value in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if value.is_floating_point():
                value.data = value.data.to(torch.float32 if wide else dtype)


def _dtype(option: str, name: str) -> torch.dtype:
    if name not in DTYPES:
        raise PrecisionError(f"{option} is {name!r}; allowed are {', '.join(DTYPES)}")
    return DTYPES[name]
