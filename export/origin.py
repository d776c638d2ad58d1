"""Where a version comes from: digests of the model's files, and whether they are published yet."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.errors import RepositoryError
from export.model.foreign import Source
from export.model.looks import name_of
from export.options import Options
from export.repository.manifest import check_version, student_sha256
from export.repository.versions import versions


def origin_of(source: Source, options: Options) -> dict[str, Any]:
    """What the manifest says under `source`: names, digests, and the options of the graph."""
    origin: dict[str, Any] = {
        "student": name_of(source.model),
        "student_sha256": student_sha256(source.model),
        "options": options.to_json(),
    }
    if source.one_step is not None:
        origin["one_step"] = Path(source.one_step).name
    if source.base is not None:
        origin |= {"base": name_of(source.base), "base_sha256": student_sha256(source.base)}
    if source.lora:
        origin["lora_scale"] = source.lora_scale
    if options.vae is not None:
        origin |= {"vae": name_of(options.vae), "vae_sha256": student_sha256(options.vae)}
    return origin


def find_published(source: Source, repository: Path, name: str, options: Options) -> Path | None:
    """The newest whole version of model `name` made of these files with these options, or None."""
    model = repository / name
    if not source.model.exists() or not versions(model):
        return None
    wanted = _digests(origin_of(source, options))
    for number in sorted(versions(model), reverse=True):
        folder = model / str(number)
        try:
            manifest = check_version(folder)
        except RepositoryError:
            continue
        if _digests(manifest["source"]) == wanted:
            return folder
    return None


def _digests(origin: Mapping[str, Any]) -> dict[str, Any]:
    """All but the names, which may change without changing a picture."""
    return {key: value for key, value in origin.items() if key not in ("student", "base", "vae")}
