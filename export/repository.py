"""The model repository: versions appear in it whole, by one rename, or not at all.

    <repository>/<model>/config.pbtxt
    <repository>/<model>/<version>/model.onnx manifest.json tokenizer.json tokenizer_2.json

A version is written into a `.publish-*` folder inside the repository, hence on its file system,
brought to the disk and renamed. The folder is locked (`flock`) while its process lives, so the next
publisher can tell a dead one's leftovers from another's work in progress.
"""

import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from export import triton_config
from export.errors import RepositoryError
from export.manifest import Manifest, complete, write_manifest

NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
VERSION = re.compile(r"[1-9][0-9]*")
PREFIX = ".publish-"
TAKEN = (errno.ENOTEMPTY, errno.EEXIST)


@dataclass(frozen=True)
class Published:
    """A version that readers can see now."""

    folder: Path
    version: int
    digest: str


def check_name(name: str) -> None:
    """Model names are folder names, URL parts and Triton names at once."""
    if not NAME.fullmatch(name):
        raise RepositoryError(
            f"the model name is {name!r}; allowed are small letters, digits, '_' and '-', "
            f"beginning with a letter or a digit"
        )


def versions(model: Path) -> list[int]:
    """The version numbers in a model's folder, rising; other names are ignored, as Triton does."""
    if not model.is_dir():
        return []
    return sorted(int(path.name) for path in model.iterdir() if VERSION.fullmatch(path.name))


@contextmanager
def staging(repository: Path) -> Iterator[Path]:
    """A locked folder for one version's files, removed at the end unless `publish` moved it."""
    try:
        repository.mkdir(parents=True, exist_ok=True)
        remove_leftovers(repository)
        folder, lock = _locked_folder(repository)
        try:
            version = folder / "model" / "1"
            version.mkdir(parents=True)
            yield version
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
    except OSError as error:
        reason = error.strerror or error
        raise RepositoryError(f"nothing was published in {repository}: {reason}") from error


def publish(staged: Path, repository: Path, name: str, config: str, facts: Manifest) -> Published:
    """Complete the manifest of the staged version, and rename it to the next free number.

    The first version of a model takes its folder along, with `config.pbtxt`. A version whose config
    differs from the existing one is refused, since Triton keeps one config for all versions.
    """
    check_name(name)
    (staged.parent / triton_config.FILE).write_text(config, encoding="utf-8")
    target = repository / name
    while True:
        first = _is_new(target, config)
        version = 1 if first else max(versions(target), default=0) + 1
        manifest = complete(facts, staged, name, version)
        write_manifest(manifest, staged)
        _sync(staged.parent)
        moved = (staged.parent, target) if first else (staged, target / str(version))
        if _renamed(*moved):
            _sync_folder(moved[1].parent)
            return Published(target / str(version), version, manifest["digest"])


def remove_leftovers(repository: Path) -> None:
    """Remove the `.publish-*` folders whose process is gone."""
    for folder in repository.glob(f"{PREFIX}*"):
        with suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY)
            try:
                with suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder)
            finally:
                os.close(lock)


def _locked_folder(repository: Path) -> tuple[Path, int]:
    """A new folder and the descriptor that locks it; again, if it was swept before the lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=repository))
        with suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return folder, lock
            os.close(lock)


def _is_new(target: Path, config: str) -> bool:
    """Whether the model has no folder yet (or an empty one); its config must be ours if it has."""
    if not target.exists() or not any(target.iterdir()):
        return True
    file = target / triton_config.FILE
    if not file.is_file():
        raise RepositoryError(f"{target} has no {triton_config.FILE}: it is not a model's folder")
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


def _sync(folder: Path) -> None:
    """Bring a folder with all it holds to the disk."""
    for path in folder.iterdir():
        if path.is_dir():
            _sync(path)
        else:
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
