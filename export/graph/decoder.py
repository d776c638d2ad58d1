"""Another decoder in place of the pipeline's own: a VAE by path, or a tiny one.

Both are diffusers directories. An `AutoencoderTiny` takes latents as the UNet leaves them (its
scaling factor is one) and computes tanh and sum itself; the graph divides by whatever factor the
decoder's config says, and for SD 3 adds its shift, as stock diffusers does after `pipe.vae = ...`.
"""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors import SafetensorError

from export.errors import DecoderError, StudentError
from export.model.families import shift_fault
from export.model.student import Student
from export.model.weights import load_network

KINDS: dict[str, Any] = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}


def load_decoder(student: Student, folder: Path, dtype: torch.dtype = torch.float32) -> Student:
    """Put the VAE of `folder` into the student's pipeline; `DecoderError` says what is wrong."""
    kind = KINDS[_kind(folder)]
    try:
        vae = load_network(kind, folder, dtype)
    except (StudentError, OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise DecoderError(f"the VAE {folder} cannot be loaded: {reason}") from error
    _check(student, vae, folder)
    student.pipeline.vae = vae.eval().requires_grad_(False)
    return student


def decoder_facts(student: Student) -> dict[str, Any]:
    """For the manifest: what kind of decoder the graph ends in, and its size."""
    vae = student.pipeline.vae
    facts = {
        "kind": type(vae).__name__,
        "parameters": sum(weight.numel() for weight in vae.decoder.parameters()),
        "scaling_factor": float(vae.config.scaling_factor),
    }
    shifted = student.family.shifted
    return {**facts, "shift_factor": float(vae.config.shift_factor)} if shifted else facts


def _kind(folder: Path) -> str:
    """The class that the folder's config names; one of `KINDS`."""
    config = folder / "config.json"
    if not config.is_file():
        raise DecoderError(
            f"vae is {folder}, which has no config.json; it must be a directory in which diffusers "
            f"saved one of {', '.join(KINDS)}"
        )
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DecoderError(f"{config} is not valid JSON: {error}") from error
    name = values.get("_class_name") if isinstance(values, dict) else None
    if name not in KINDS:
        raise DecoderError(f"vae {folder} holds a {name}; allowed are {', '.join(KINDS)}")
    return str(name)


def _check(student: Student, vae: Any, folder: Path) -> None:
    """The decoder takes the student's latents and gives pictures of the student's size."""
    channels, scale = vae.config.latent_channels, 2 ** (len(vae.config.block_out_channels) - 1)
    if channels != student.latent_channels:
        raise DecoderError(
            f"vae {folder} takes latents of {channels} channels; "
            f"the student's have {student.latent_channels}"
        )
    if scale != student.pipeline.vae_scale_factor:
        raise DecoderError(
            f"vae {folder} makes {scale} pixels of a latent's side; "
            f"the student needs {student.pipeline.vae_scale_factor}"
        )
    if (fault := shift_fault(student.family, vae.config)) is not None:
        raise DecoderError(f"shift_factor in the config of vae {folder} is {fault}")
