"""A diffusers pipeline directory in human words, without loading a weight."""

import json
from pathlib import Path
from typing import Any

from export.errors import StudentError
from export.repository.safetensors_header import Weights, read_weights

INDEX = "model_index.json"


def describe_student(folder: Path) -> str:
    """Its class, picture, one step, and the parameters of each part; what is missing is said."""
    index = _json(folder / INDEX)
    lines = [f"{folder}: a diffusers pipeline, {index.get('_class_name', 'of no class')}"]
    for denoiser in ("unet", "transformer"):
        if (folder / denoiser).is_dir():
            lines.append(_line("picture", _picture(folder, denoiser)))
    lines.append(_line("one step", _one_step(folder)))
    total, missing = Weights({}, 0), list[str]()
    for part in (name for name, value in index.items() if isinstance(value, list) and value[0]):
        if not (folder / part).is_dir():
            missing.append(f"the folder {part} is missing")
            continue
        try:
            weights = _weights(folder / part)
        except StudentError as error:
            missing.append(str(error))
            continue
        if weights is not None:
            lines.append(_line(part, _counted(weights)))
            total += weights
    lines.append(_line("in all", _counted(total)))
    return "\n".join([*lines, _line("whole", f"no: {'; '.join(missing)}" if missing else "yes")])


def size_text(length_bytes: int) -> str:
    """Bytes in the unit that fits."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if length_bytes >= scale:
            return f"{length_bytes / scale:.1f} {unit}"
    return f"{length_bytes} bytes"


def _line(name: str, value: str) -> str:
    return f"  {name:16}{value}"


def _counted(weights: Weights) -> str:
    types = ", ".join(sorted(weights.parameters)) or "no weights"
    return f"{weights.total:,} parameters, {types}, {size_text(weights.bytes)}"


def _picture(folder: Path, denoiser: str) -> str:
    """From the denoiser's latent size and the VAE's depth."""
    config = _json(folder / denoiser / "config.json")
    vae = _json(folder / "vae" / "config.json") if (folder / "vae").is_dir() else {}
    latent, scale = config.get("sample_size"), 2 ** (len(vae.get("block_out_channels", [1])) - 1)
    if not isinstance(latent, int):
        return f"sample_size {latent!r} in the {denoiser}'s config"
    side = latent * scale
    if not vae:
        classes = config.get("num_class_embeds")
        return f"{side}x{side} px" + (f" of {classes} classes" if classes else "")
    return f"{side}x{side} px, latents {config.get('in_channels')}x{latent}x{latent}"


def _one_step(folder: Path) -> str:
    """What the scheduler's config says of a single step."""
    file = folder / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        return "not said: there is no scheduler"
    config = _json(file)
    name, kind = config.get("_class_name"), config.get("prediction_type", "epsilon")
    ours = name == "DDIMScheduler" and config.get("timestep_spacing") in ("leading", "trailing")
    if ours and config.get("set_alpha_to_one") and not config.get("clip_sample"):
        leading = config["timestep_spacing"] == "leading"
        last = config.get("num_train_timesteps", 1000) - 1
        timestep = config.get("steps_offset", 0) if leading else last
        return f"timestep {timestep}, predicts {kind} ({name})"
    if name == "CMStochasticIterativeScheduler":
        return f"sigma {config.get('sigma_max')} ({name})"
    if name == "FlowMatchEulerDiscreteScheduler":
        shifted = config.get("shift", 1.0) != 1 or config.get("use_dynamic_shifting")
        steps = config.get("num_train_timesteps", 1000)
        ours = f"timestep {steps}, predicts the flow ({name})"
        return f"not one of this project's: {name}, with a shift" if shifted else ours
    spacing = config.get("timestep_spacing", "of no spacing")
    return f"not one of this project's: {name}, {spacing}, predicts {kind}"


def _weights(part: Path) -> Weights | None:
    """All files of one part: those its index names, else those of no variant, else all."""
    indices = sorted(part.glob("*.safetensors.index.json"))
    if indices:
        names = sorted(set(_json(indices[0]).get("weight_map", {}).values()))
        files = [part / name for name in names]
    else:
        found = sorted(part.glob("*.safetensors"))
        files = [file for file in found if file.name.count(".") == 1] or found
    for file in files:
        if not file.is_file():
            raise StudentError(f"{file} is missing, but {indices[0].name} names it")
    return sum((read_weights(file) for file in files), Weights({}, 0)) if files else None


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StudentError(f"{file} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise StudentError(f"{file} is no JSON object")
    return value
