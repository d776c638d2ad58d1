"""What joins a version after it was published: an engine, built where it will run, and `model.py`.

The order keeps readers right at every moment: a file that is replaced first leaves the manifest,
then the file comes by one rename, then the manifest that names it by another.
"""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from export.errors import ExportError
from export.repository import serving, triton_config
from export.repository.manifest import (
    FILE,
    Manifest,
    digest_of,
    engines_of,
    file_records,
    read_manifest,
    service_ms_of,
    signature_of,
    write_manifest,
)
from export.repository.triton_config import (
    DEFAULTS,
    MODEL_PY,
    PYTHON_MODEL,
    ServingOptions,
    capability_order,
)
from export.repository.versions import versions
from export.repository.workplace import sync, sync_folder, workplace

PLAN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.plan")


def add_engine(version: Path, plan: Path, capability: str, facts: Mapping[str, object]) -> str:
    """Copy `plan` into a published version as its engine for one compute capability.

    `facts` go into the manifest with the file's name; an engine of the same capability is replaced.
    A model that TensorRT serves has it in its config at once. Returns the version's new digest.
    """
    capability_order(capability)
    if not PLAN.fullmatch(plan.name):
        raise ExportError(f"the engine's file is {plan.name!r}; its name must end in .plan")
    with serving.locked(version.parent):
        manifest = read_manifest(version)
        old = manifest.get("engines", {})
        others = {c: f for c, f in old.items() if c != capability and f["file"] != plan.name}
        replaced = {engine["file"] for c, engine in old.items() if c not in others}
        engines = {**others, capability: {**facts, "file": plan.name}}
        digest = _add_file(version, plan, plan.name, replaced, manifest, engines)
        serving.replace_config(version.parent, serving.read_config(version.parent))
    return digest


def serve_with(
    repository: Path, model: str, runtime: str, options: ServingOptions = DEFAULTS
) -> int:
    """Serve a published model with another runtime or other options; returns the served version.

    The config is made anew from the manifest of that version; a pin stays.
    """
    folder = serving.model_folder(repository, model)
    with serving.locked(folder):
        existing = serving.read_config(folder)
        manifest = read_manifest(folder / str(serving.served_versions(folder)[-1]))
        text = triton_config.triton_config(
            model,
            signature_of(manifest),
            manifest["max_batch"],
            runtime,
            options,
            service_ms_of(manifest),
            engines_of(manifest),
        )
        if runtime == "python":
            for number in versions(folder):
                _add_model_py(folder / str(number))
        wanted = triton_config.keep_pin(existing, triton_config.parse(text))
        return serving.replace_config(folder, wanted)


def _add_model_py(version: Path) -> None:
    manifest = read_manifest(version)
    if MODEL_PY not in manifest["files"]:
        _add_file(version, PYTHON_MODEL, MODEL_PY, set(), manifest, manifest.get("engines"))


def _add_file(
    version: Path,
    source: Path,
    name: str,
    replaced: set[str],
    manifest: Manifest,
    engines: object,
) -> str:
    """Bring `source` into the version as `name`, in place of the files `replaced`."""
    kept = {file: record for file, record in manifest["files"].items() if file not in replaced}
    without = {c: f for c, f in manifest.get("engines", {}).items() if f["file"] in kept}
    with workplace(version.parent.parent, f"nothing was added to {version}") as folder:
        copy = folder / name
        shutil.copyfile(source, copy)
        files = {**kept, **file_records([copy])}
        if replaced:
            _replace_manifest({**manifest, "engines": without}, kept, version, folder)
            for file in replaced:
                (version / file).unlink()
        sync(folder)
        copy.replace(version / name)
        sync_folder(version)
        changed = manifest if engines is None else {**manifest, "engines": engines}
        return _replace_manifest(changed, files, version, folder)


def _replace_manifest(
    manifest: Manifest, files: Mapping[str, Mapping[str, object]], version: Path, folder: Path
) -> str:
    """The manifest with these files and their digest, by one rename out of the working folder."""
    digest = digest_of(files)
    write_manifest({**manifest, "files": files, "digest": digest}, folder)
    sync(folder)
    (folder / FILE).replace(version / FILE)
    sync_folder(version)
    return digest
