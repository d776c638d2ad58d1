"""The published ImageNet-64 EDM teachers, as stock `ConsistencyModelPipeline` directories.

Two files hold the same network, trained by two groups: OpenAI's `edm_imagenet64_ema.pt`, a state
dict, and NVlabs' `edm-imagenet-64x64-cond-adm.pkl`, a pickle. Reading either runs none of its code.
"""

from __future__ import annotations

import pickle
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, UNet2DModel
from torch import Tensor

from distill.class_names import names_in, write_names
from distill.importers.adm import Adm
from distill.importers.failure import ImportFailure
from distill.importers.nvlabs_edm import from_nvlabs
from distill.importers.openai_edm import from_openai
from distill.importers.records import read_records
from distill.student import give_modes

Report = Callable[[str], None]
SIGMA_DATA = 0.5  # of both, by EDM's table 1; NVlabs' file states it


def import_edm(
    file: Path, out: Path, report: Report = print, class_list: Path | None = None
) -> Path:
    """Writes the teacher of a published file to `out`, a new folder, and returns it.

    A name that ends in .pkl is read as NVlabs' pickle, any other as OpenAI's state dict. The file
    holds no names of classes; `class_list` is a text that does, a line each, class 0 first.

    Raises:
        ImportFailure: the file is missing, is of neither kind, names something that must not be
            run, or holds another network; or `out` exists.
        TeacherError: `class_list` cannot be read, or has not one name for each class.
    """
    if out.exists():
        raise ImportFailure(f"{out} exists already; choose another folder")
    adm, weights, sigma_data = read_edm(file)
    names = names_in(class_list, adm.classes) if class_list is not None else ()
    with torch.device("meta"):  # so that no weights are drawn, only to be replaced
        unet = UNet2DModel(**adm.config())
    unet.load_state_dict(weights, assign=True)
    scheduler = CMStochasticIterativeScheduler(sigma_data=sigma_data, clip_denoised=False)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    ConsistencyModelPipeline(unet, scheduler).save_pretrained(partial)
    write_names(partial, names)
    give_modes(partial)
    partial.rename(out)
    millions = sum(weight.numel() for weight in weights.values()) / 1e6
    report(
        f"{out}: {adm.size_px} x {adm.size_px} px, {adm.classes} classes, {millions:.1f} million"
        " weights"
    )
    return out


def read_edm(file: Path) -> tuple[Adm, dict[str, Tensor], float]:
    """The network's sizes, its weights as `UNet2DModel` names them, and sigma_data."""
    content = read_records(file) if file.suffix == ".pkl" else read_state(file)
    try:
        if file.suffix == ".pkl":
            return from_nvlabs(content)
        return *from_openai(content), SIGMA_DATA
    except ImportFailure as error:
        raise ImportFailure(f"{file} cannot be imported: {error}") from error
    except (RuntimeError, IndexError, ValueError) as error:  # torch, about shapes
        reason = str(error).splitlines()[0]
        raise ImportFailure(
            f"{file} cannot be imported: a weight's shape does not fit this network: {reason}"
        ) from error


def read_state(file: Path) -> Mapping[str, Tensor]:
    """A state dict, by torch's reader that builds tensors and nothing else.

    Raises:
        ImportFailure: it is missing or is no state dict; what it must not name is named.
    """
    if not file.is_file():
        raise ImportFailure(f"{file} does not exist")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unusual pickles, which are refused below
            state = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, ValueError, EOFError) as error:
        raise ImportFailure(f"{file} is refused: {cause(error)}") from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise ImportFailure(f"{file} holds {type(state).__name__}, not a state dict of tensors")
    return state


def cause(error: BaseException) -> str:
    """What torch found, without its advice to load the file in an unsafe way."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "Unsupported" in line or "GLOBAL" in line]
    return (telling or lines or [type(error).__name__])[-1 if telling else 0]
