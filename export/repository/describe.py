"""What a student's directory, a model repository, a model or a version is, in human words."""

import time
from pathlib import Path
from typing import Any

from export.errors import ExportError, RepositoryError
from export.repository import serving, triton_config
from export.repository.describe_student import INDEX, describe_student, size_text
from export.repository.manifest import FILE, Manifest, check_version, read_manifest
from export.repository.versions import versions

UNSAID = "not said"
SHORT = 12  # digits of a digest that tell versions apart


def describe(path: Path) -> str:
    """A few lines on whatever lies at `path`; every file of a repository's versions is hashed."""
    if not path.is_dir():
        raise ExportError(f"{path} is not a directory; it must be a student's or a repository's")
    if (path / INDEX).is_file():
        return describe_student(path)
    if (path / FILE).is_file():
        return _version(path)
    if (path / triton_config.FILE).is_file() or versions(path):
        return _model(path)
    models = sorted(folder for folder in path.glob("[!.]*") if versions(folder))
    if not models:
        raise ExportError(
            f"{path} is neither a student's directory ({INDEX}) nor a model repository "
            f"(<model>/<version>/{FILE}), a model or a version in one"
        )
    count = "1 model" if len(models) == 1 else f"{len(models)} models"
    return "\n".join([f"{path}: a model repository, {count}", *map(_model, models)])


def _model(folder: Path) -> str:
    """How it is served, and a line per version."""
    lines = [f"{folder.name}: {_serving(folder)}"]
    for number in versions(folder):
        version = folder / str(number)
        lines.append(f"  version {number:<4}{_one_line(version)}")
    return "\n".join(lines)


def _serving(folder: Path) -> str:
    """Runtime, largest batch, and which version is drawn with."""
    file = folder / triton_config.FILE
    if not file.is_file():
        return f"there is no {file.name}, so that only the gateway can serve it"
    try:
        config = triton_config.parse(file.read_text(encoding="utf-8"))
        served = serving.served_versions(folder)
    except RepositoryError as error:
        return str(error)
    pinned = config.version_policy.WhichOneof("policy_choice") == "specific"
    how = "pinned" if pinned else "the newest"
    names = ", ".join(map(str, served))
    batches = f"batches up to {config.max_batch_size}"
    return f"served by {config.backend or config.platform}, {batches}; serves {names} ({how})"


def _one_line(version: Path) -> str:
    try:
        manifest = read_manifest(version)
    except RepositoryError as error:
        return f"not whole: {error}"
    length_bytes = sum(record["bytes"] for record in manifest["files"].values())
    engines = [f"engine {capability}" for capability in sorted(manifest.get("engines", {}))]
    facts = [
        _written(version),
        manifest["digest"][:SHORT],
        size_text(length_bytes),
        " ".join(manifest.get("sizes", [])),
        f"gate: {_level(manifest)}",
        *engines,
        _whole(version),
    ]
    return ", ".join(facts)


def _version(folder: Path) -> str:
    """Everything that its manifest says, a line each."""
    manifest = read_manifest(folder)
    model = f"{manifest.get('model')}/{manifest.get('version')}"
    facts = {
        "written": _written(folder),
        "digest": manifest["digest"],
        "sizes": " ".join(manifest.get("sizes", [])),
        "classes": _classes(manifest.get("classes")),
        "max batch": str(manifest.get("max_batch", UNSAID)),
        "one step": _one_step(manifest.get("one_step", {})),
        "precision": _pairs(manifest.get("precision", {})),
        "decoder": _pairs(manifest.get("decoder", {})),
        "gate": _level(manifest),
        "ms per call": _pairs(manifest.get("service_ms", {})),
        "made from": _origin(manifest.get("source", {})),
        "made with": _pairs(manifest.get("versions", {})),
    }
    lines = [f"{model}: {manifest.get('task', 'not said')}"]
    lines += [f"  {name:16}{value}" for name, value in facts.items() if value != UNSAID]
    for name, record in sorted(manifest["files"].items()):
        lines.append(f"  {'file':16}{name}, {size_text(record['bytes'])}")
    for capability, engine in sorted(manifest.get("engines", {}).items()):
        built = f"{engine.get('gpu', 'not said')}, TensorRT {engine.get('tensorrt', 'not said')}"
        lines.append(f"  {'engine':16}{capability}: {engine['file']}, {built}")
    return "\n".join([*lines, f"  {'files':16}{_whole(folder)}"])


def _whole(version: Path) -> str:
    try:
        check_version(version)
    except RepositoryError as error:
        return f"not whole: {error}"
    return "whole"


def _written(version: Path) -> str:
    """The day on which the manifest came to lie here."""
    return time.strftime("%Y-%m-%d", time.localtime((version / FILE).stat().st_mtime))


def _level(manifest: Manifest) -> str:
    """Of the gate."""
    return str(manifest.get("gate", {}).get("level", UNSAID))


def _classes(classes: dict[str, Any] | None) -> str:
    """Of a class-conditional model: how many, and the names at both ends."""
    if classes is None:
        return UNSAID
    names = classes.get("names", [])
    return f"{classes['count']}" + (f", {names[0]!r} to {names[-1]!r}" if names else "")


def _one_step(step: dict[str, Any]) -> str:
    if not step:
        return UNSAID
    text = f"timestep {_short(step.get('timestep'))}, predicts {step.get('prediction_type')}"
    if "coefficients" not in step:
        return text
    return f"{step.get('kind')}: {text}, {_pairs(step['coefficients'])}"


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_short(value)}" for name, value in values.items()) or UNSAID


def _short(value: Any) -> str:
    """A number to four digits, anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _origin(source: dict[str, Any]) -> str:
    """Names and beginnings of digests; the options of the graph are told elsewhere."""
    told = {
        name.removesuffix("_sha256") + " sha256" if name.endswith("_sha256") else name: (
            value[:SHORT] if name.endswith("_sha256") else value
        )
        for name, value in source.items()
        if name != "options"
    }
    return _pairs(told)
