"""The folder in which a version is put together: unseen by readers, swept once its process is gone.

It lies beside the repository, since Triton takes every folder inside it for a model and would not
start. Where the repository is a mount of its own, or its parent is not ours to write, it lies
inside, under a name that begins with a dot. Either way what is made there moves by one rename.

The folder is locked (`flock`) while its process lives, so that the next publisher can tell a dead
one's leftovers from another's work in progress.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from export.errors import RepositoryError

PREFIX = ".publish-"


@contextmanager
def workplace(repository: Path, failure: str) -> Iterator[Path]:
    """A locked folder, removed at the end; an `OSError` becomes `failure` and its reason."""
    try:
        repository.mkdir(parents=True, exist_ok=True)
        remove_leftovers(repository)
        folder, lock = _locked_folder(repository.resolve())
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
    except OSError as error:
        reason = error.strerror or error
        raise RepositoryError(f"{failure}: {reason}") from error


def remove_leftovers(repository: Path) -> None:
    """Remove the working folders whose process is gone, beside the repository and inside."""
    repository = repository.resolve()
    leftovers = [*repository.glob(f"{PREFIX}*"), *repository.parent.glob(f"{_prefix(repository)}*")]
    for folder in leftovers:
        with suppress(FileNotFoundError, PermissionError):
            lock = os.open(folder, os.O_RDONLY)
            try:
                with suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder)
            finally:
                os.close(lock)


def sync(folder: Path) -> None:
    """Bring a folder with all it holds to the disk."""
    for path in folder.iterdir():
        if path.is_dir():
            sync(path)
        else:
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _prefix(repository: Path) -> str:
    return f"{PREFIX}{repository.name}-"


def _locked_folder(repository: Path) -> tuple[Path, int]:
    """A new folder and the descriptor that locks it; again, if it was swept before the lock."""
    while True:
        folder = _new_folder(repository)
        with suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return folder, lock
            os.close(lock)


def _new_folder(repository: Path) -> Path:
    """Beside the repository if a file can be renamed from there into it; else inside."""
    with suppress(OSError):
        folder = Path(tempfile.mkdtemp(prefix=_prefix(repository), dir=repository.parent))
        try:
            probe = folder / f"{folder.name}.probe"  # a file in the root is nothing to Triton
            probe.touch()
            probe.rename(repository / probe.name).unlink()
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return folder
    return Path(tempfile.mkdtemp(prefix=PREFIX, dir=repository))
