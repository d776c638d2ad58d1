"""What is served of a model: the version policy in its `config.pbtxt`, which is the only record.

Triton and the gateway read the same file. It is replaced by a rename, under a lock on the model's
folder, so that two programs that change it do so one after the other.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

from export.errors import RepositoryError
from export.repository import triton_config
from export.repository.manifest import check_version, engines_of, read_manifest
from export.repository.versions import versions
from export.repository.workplace import sync_folder, workplace


def served_versions(model: Path) -> list[int]:
    """The versions that a server opens, rising; the gateway draws with the last."""
    return _served(read_config(model), model)


def pin_served(model: Path) -> int:
    """Pin the version that is served now, so that a newer one waits; returns it."""
    with locked(model):
        config = read_config(model)
        version = _served(config, model)[-1]
        config.ClearField("version_policy")
        config.version_policy.specific.versions.append(version)
        return replace_config(model, config)


def rollback(repository: Path, model: str, version: int | None = None) -> int:
    """Pin `version`, or the one before the version that is served; the newest is not pinned.

    Returns it. The version must be whole. While one is pinned, a version published later waits.
    """
    folder = model_folder(repository, model)
    with locked(folder):
        config, present = read_config(folder), versions(folder)
        if version is None:
            version = _before(_served(config, folder)[-1], present, folder)
        if version not in present:
            raise RepositoryError(
                f"there is no version {version} in {folder}; it holds {_list(present)}"
            )
        check_version(folder / str(version))
        config.ClearField("version_policy")
        if version == present[-1]:
            config.version_policy.latest.num_versions = triton_config.NEWEST
        else:
            config.version_policy.specific.versions.append(version)
        return replace_config(folder, config)


def remove_old(model: Path, keep: int) -> tuple[int, ...]:
    """Remove all but the newest `keep` versions and those that are served; returns the removed."""
    with locked(model):
        present = versions(model)
        gone = sorted({*present[:-keep]} - {*_served(read_config(model), model)})
        if gone:
            failure = f"the old versions of {model} could not be removed"
            with workplace(model.parent, failure) as folder:
                for version in gone:
                    (model / str(version)).rename(folder / str(version))
                sync_folder(model)
    return tuple(gone)


def model_folder(repository: Path, model: str) -> Path:
    """The folder of a model that has a config and a version."""
    present = {path.name for path in repository.glob("[!.]*") if versions(path)}
    if model not in present:
        raise RepositoryError(
            f"there is no model {model!r} in {repository}; it holds {_list(sorted(present))}"
        )
    return repository / model


def _before(served: int, present: list[int], folder: Path) -> int:
    older = [version for version in present if version < served]
    if not older:
        raise RepositoryError(
            f"version {served} of {folder} is the oldest; there is none to go back to"
        )
    return older[-1]


def _served(config: Any, model: Path) -> list[int]:
    """Triton's version policy on the versions that lie there; without one, the newest."""
    present, policy = versions(model), config.version_policy
    if policy.WhichOneof("policy_choice") == "specific":
        chosen = [version for version in present if version in policy.specific.versions]
    elif policy.WhichOneof("policy_choice") == "all":
        chosen = present
    else:
        chosen = present[-max(1, policy.latest.num_versions) :]
    if not chosen:
        raise RepositoryError(
            f"{model / triton_config.FILE} pins {_list(policy.specific.versions)}; "
            f"the folder holds {_list(present)}"
        )
    return chosen


def read_config(model: Path) -> Any:
    file = model / triton_config.FILE
    if not file.is_file():
        raise RepositoryError(f"{model} has no {triton_config.FILE}: it is not a model's folder")
    return triton_config.parse(file.read_text(encoding="utf-8"))


def replace_config(model: Path, config: Any) -> int:
    """Write the config, with the engines of the version that it serves, by one rename."""
    served = _served(config, model)[-1]
    if config.backend == "tensorrt":
        engines = _engines(model / str(served))
        triton_config.set_engines(config, engines)
        _leave_out_those_without(engines, config, model)
    file, fresh = model / triton_config.FILE, model / f".{triton_config.FILE}.new"
    text = triton_config.to_text(config)
    if text == file.read_text(encoding="utf-8"):
        return served
    try:
        with fresh.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(file)
        sync_folder(model)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        reason = error.strerror or error
        raise RepositoryError(f"{file} is as it was: {reason}") from error
    return served


def _leave_out_those_without(engines: dict[str, str], config: Any, model: Path) -> None:
    """Of the newest versions, only as many as have these engines: Triton loads all, or none."""
    if config.version_policy.WhichOneof("policy_choice") != "latest":
        return
    opened = _served(config, model)
    fit = [*takewhile(lambda number: _has(engines, model / str(number)), reversed(opened))]
    if len(fit) < len(opened):
        config.version_policy.latest.num_versions = len(fit)


def _has(engines: dict[str, str], version: Path) -> bool:
    """Whether a version is there with all of these engines."""
    try:
        return engines_of(read_manifest(version)).items() >= engines.items()
    except RepositoryError:
        return False


def _engines(version: Path) -> dict[str, str]:
    engines = engines_of(read_manifest(version))
    if not engines:
        raise RepositoryError(f"{version} has no TensorRT engine, which its model is served by")
    return engines


@contextmanager
def locked(model: Path) -> Iterator[None]:
    """One program at a time changes what is served of a model."""
    lock = os.open(model, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _list(items: Any) -> str:
    return ", ".join(map(str, items)) or "nothing"
