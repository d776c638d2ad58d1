"""The model repository: versions appear in it whole, by one rename, or not at all.

    <repository>/<model>/config.pbtxt
    <repository>/<model>/<version>/model.onnx manifest.json tokenizer.json tokenizer_2.json

Published files never change; what is served, and how, is said by `config.pbtxt` alone.
"""

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from export.errors import ExportError, RepositoryError
from export.repository import serving, triton_config
from export.repository.manifest import Manifest, complete, refuse_newer, write_manifest
from export.repository.versions import versions as versions  # also of those who ask the repository
from export.repository.workplace import sync, sync_folder, workplace

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,99}")
TAKEN = (errno.ENOTEMPTY, errno.EEXIST)


@dataclass(frozen=True)
class Published:
    """A version that readers can see now, and the one that is served: an older one if pinned."""

    folder: Path
    version: int
    digest: str
    served: int
    removed: tuple[int, ...] = ()


def check_name(name: str) -> None:
    """Model names are folder names, URL parts and Triton names at once."""
    if not NAME.fullmatch(name):
        raise RepositoryError(
            f"the model name is {name!r}; allowed are small letters, digits, '_' and '-', "
            f"beginning with a letter or a digit, 100 in all"
        )


@contextmanager
def staging(repository: Path) -> Iterator[Path]:
    """A locked folder for one version's files, removed at the end unless `publish` moved it."""
    with workplace(repository, f"nothing was published in {repository}") as folder:
        version = folder / "model" / "1"
        version.mkdir(parents=True)
        yield version


def publish(
    staged: Path,
    repository: Path,
    name: str,
    config: str,
    facts: Manifest,
    keep: int | None = None,
) -> Published:
    """Complete the manifest of the staged version, and rename it to the next free number.

    The first version of a model takes its folder along, with `config.pbtxt`. Later ones leave that
    file as the operator has it, and are refused if its contract is another. A pinned version stays
    served; so does one that TensorRT serves, until the new one has an engine. Of the older versions
    the newest remain, `keep` in all (None: every one).
    """
    check_name(name)
    if keep is not None and keep < 1:
        raise ExportError(f"keep is {keep}; it must be at least 1, the version just published")
    _prepare(staged, config)
    (staged.parent / triton_config.FILE).write_text(config, encoding="utf-8")
    target = repository / name
    while True:
        first = _is_new(target, config)
        if not first:
            _fit(staged, target)
        version = 1 if first else max(versions(target), default=0) + 1
        manifest = complete(facts, staged, name, version)
        write_manifest(manifest, staged)
        sync(staged.parent)
        moved = (staged.parent, target) if first else (staged, target / str(version))
        if _renamed(*moved):
            break
    _keep_name(moved[1])
    served = serving.served_versions(target)[-1]
    removed = serving.remove_old(target, keep) if keep is not None else ()
    return Published(target / str(version), version, manifest["digest"], served, removed)


def _fit(staged: Path, target: Path) -> None:
    """Prepare a version for the config that its model has; what is served with TensorRT is pinned.

    The engine of the new version comes later (`addition`), and Triton cannot load it before.
    """
    config = (target / triton_config.FILE).read_text(encoding="utf-8")
    if triton_config.parse(config).backend == "tensorrt":
        serving.pin_served(target)
    else:
        _prepare(staged, config)


def _prepare(staged: Path, config: str) -> None:
    """Whatever the config tells Triton to open is in the version; `model.py` is put there."""
    parsed = triton_config.parse(config)
    if parsed.backend == "python":
        shutil.copyfile(triton_config.PYTHON_MODEL, staged / triton_config.MODEL_PY)
    for file in (parsed.default_model_filename, *parsed.cc_model_filenames.values()):
        if not (staged / file).is_file():
            raise RepositoryError(f"{triton_config.FILE} names {file}, which the version lacks")


def _is_new(target: Path, config: str) -> bool:
    """Whether the model has no folder yet, or an empty one; one that exists must take ours."""
    if not target.exists() or not any(target.iterdir()):
        return True
    file = target / triton_config.FILE
    if not file.is_file():
        raise RepositoryError(f"{target} has no {triton_config.FILE}: it is not a model's folder")
    for version in versions(target):
        refuse_newer(target / str(version))
    found = triton_config.difference(file.read_text(encoding="utf-8"), config)
    if found:
        raise RepositoryError(
            f"the model {target.name} exists with another {triton_config.FILE}: {found}; "
            f"publish under another model name"
        )
    return False


def _renamed(source: Path, target: Path) -> bool:
    """Rename, or False when somebody else took the name in the meantime."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno in TAKEN:
            return False
        raise
    return True


def _keep_name(published: Path) -> None:
    """Bring the new name to the disk; a failure here no longer takes the version back."""
    try:
        sync_folder(published.parent)
    except OSError as error:
        raise RepositoryError(
            f"{published} was published, but may be lost if the power fails now: {error.strerror}"
        ) from error
