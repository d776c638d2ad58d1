"""Checkpoints that are either whole or not there, and from which training resumes bit for bit.

    FOLDER/step-00000500/student.safetensors    one file per named group of tensors
                         optimizer.safetensors
                         meta.json              what the caller stored, size and sha256 of each
                                                file, and a sha256 of all that

A checkpoint is written into FOLDER/.step-00000500.partial, flushed to the disk and renamed; only
then do older ones go. safetensors and JSON only: loading one runs no code. One process writes.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

Groups = Mapping[str, Mapping[str, Tensor]]
META = "meta.json"


class CheckpointError(Exception):
    """A checkpoint that cannot be written or read: its path and the cause."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """One safetensors file, copied from any device; OSError or SafetensorError if it fails."""
    written, seen = {}, set()
    for name, tensor in tensors.items():
        here = tensor.detach().cpu().contiguous()
        memory = here.untyped_storage().data_ptr()
        written[name] = here.clone() if memory in seen else here  # safetensors takes no sharing
        seen.add(memory)
    save_file(written, path)


def save(
    folder: Path,
    step: int,
    groups: Groups,
    meta: Mapping[str, Any],
    keep: int = 2,
    write: Callable[[Path, Mapping[str, Tensor]], None] = write_tensors,
) -> Path:
    """Write the checkpoint of `step`, then remove all but the last `keep` up to that step.

    `groups` {"student": {name: tensor}, ...}; `meta` must survive JSON. -> its path. A checkpoint
    of the same step is replaced. CheckpointError: the disk is full, say; the earlier checkpoints
    are then whole and nothing is left of the new one. ValueError: keep below 1.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}: at least 1 checkpoint must be kept")
    assert 0 <= step < 10**8, f"step {step} does not fit the folder's name"
    meta = json.loads(json.dumps(meta))  # what `load` will give; fails before the disk is touched
    target = folder / f"step-{step:08d}"
    partial = folder / f".{target.name}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        write_whole(partial, step, groups, meta, write)
        replace_folder(partial, target)
    except (OSError, SafetensorError) as cause:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"checkpoint {target} could not be written ({cause}); earlier ones are untouched"
        ) from cause
    for old in [path for path in checkpoints(folder) if step_of(path) <= step][keep:]:
        shutil.rmtree(old)
    return target


def latest(folder: Path, report: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is whole, or None; each broken one is named to `report`."""
    for path in checkpoints(folder):
        try:
            verify(path)
        except CheckpointError as broken:
            report(f"{broken}; the checkpoint before it is used, if there is one")
        else:
            return path
    return None


def load(
    path: Path, device: torch.device | str = "cpu"
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The groups and the meta that `save` was given. CheckpointError: not whole (see `verify`)."""
    record = verify(path)
    names = [name for name in record["files"] if name.endswith(".safetensors")]
    try:
        groups = {
            name.removesuffix(".safetensors"): load_file(path / name, device=str(device))
            for name in names
        }
    except (OSError, SafetensorError) as cause:
        raise CheckpointError(f"checkpoint {path} is broken: {cause}") from cause
    return groups, record["meta"]


def verify(path: Path) -> dict[str, Any]:
    """The record in meta.json, once all its digests hold; CheckpointError names what does not."""
    record = read_record(path)
    for name, expected in record["files"].items():
        try:
            size_bytes = (path / name).stat().st_size
            if size_bytes != expected["bytes"]:
                raise CheckpointError(
                    f"checkpoint {path} is broken: {name} has {size_bytes} bytes, not"
                    f" {expected['bytes']}"
                )
            if digest_of(path / name) != expected["sha256"]:
                raise CheckpointError(f"checkpoint {path} is broken: {name} has another sha256")
        except OSError as cause:
            raise CheckpointError(f"checkpoint {path} is broken: {cause}") from cause
    return record


def read_record(path: Path) -> dict[str, Any]:
    """meta.json as it was written, its own digest checked and taken off; else CheckpointError."""
    try:
        record: dict[str, Any] = json.loads((path / META).read_text("utf-8"))
        expected = record.pop("sha256")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as cause:
        raise CheckpointError(
            f"checkpoint {path} is broken: {META} cannot be read ({cause})"
        ) from cause
    if record_digest(record) != expected:
        raise CheckpointError(f"checkpoint {path} is broken: {META} has another sha256")
    return record


def write_whole(
    partial: Path,
    step: int,
    groups: Groups,
    meta: Mapping[str, Any],
    write: Callable[[Path, Mapping[str, Tensor]], None],
) -> None:
    """Every file of a checkpoint, and the folder itself, down on the disk."""
    partial.mkdir()
    files = {}
    for group, tensors in groups.items():
        path = partial / f"{group}.safetensors"
        write(path, tensors)
        flush(path)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": digest_of(path)}
    record = {"step": step, "files": files, "meta": meta}
    text = json.dumps({**record, "sha256": record_digest(record)}, indent=1)
    (partial / META).write_text(text + "\n", "utf-8")
    flush(partial / META)
    flush(partial)


def replace_folder(partial: Path, target: Path) -> None:
    """Rename a finished folder into place; one that is there already steps aside first."""
    retired = target.with_name(f".{target.name}.retired")
    if target.exists():
        target.rename(retired)
    try:
        partial.rename(target)
    except OSError:
        if retired.exists():
            retired.rename(target)
        raise
    flush(target.parent)
    if retired.exists():
        shutil.rmtree(retired)


def remove_leftovers(folder: Path) -> None:
    """What a process that was killed while saving left behind."""
    for pattern in (".step-*.partial", ".step-*.retired"):
        for path in folder.glob(pattern):
            shutil.rmtree(path)


def checkpoints(folder: Path) -> list[Path]:
    """The folder's checkpoints by name alone, newest first; none if there is no such folder."""
    found = [path for path in folder.glob("step-*") if path.name[5:].isdecimal()]
    return sorted(found, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """The step that a checkpoint's folder name states."""
    return int(path.name.removeprefix("step-"))


def record_digest(record: Mapping[str, Any]) -> str:
    """sha256 of a record's JSON, independent of order and spacing."""
    canonical = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def digest_of(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flatten_optimizer(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state_dict as tensors {"0.exp_avg": ...} and JSON; nothing is rounded.

    An entry may hold a mapping of its own, as those of bitsandbytes do: {"0.quant.state1": ...}.
    Tensors inside a parameter group (a learning rate on the device, say) are not supported.
    """
    for group in state["param_groups"]:
        held = [name for name, value in group.items() if isinstance(value, Tensor)]
        assert not held, f"the optimiser's parameter group holds tensors: {held}"
    found = dict(leaves(state["state"]))
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    numbers = {name: value for name, value in found.items() if name not in tensors}
    return tensors, {"param_groups": state["param_groups"], "numbers": numbers}


def leaves(entries: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """What nested mappings hold, each under its keys with dots between."""
    for key, value in entries.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def unflatten_optimizer(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> dict[str, Any]:
    """The state_dict that `flatten_optimizer` took apart, for the optimiser's load_state_dict."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *meta["numbers"].items()]:
        index, *within, name = key.split(".")
        entry = state.setdefault(int(index), {})
        for part in within:
            entry = entry.setdefault(part, {})
        entry[name] = value
    groups = [
        {name: tuple(v) if name == "betas" else v for name, v in group.items()}
        for group in meta["param_groups"]
    ]
    return {"state": state, "param_groups": groups}
