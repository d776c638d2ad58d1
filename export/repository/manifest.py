"""The manifest of one version: what lies in its folder, how it is called, how it was checked.

Its format is docs/formats.md. The digest stands for the files' contents alone: the same files
have the same digest under any model name and version.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from export.errors import RepositoryError
from export.signature import TEXT_INPUTS, Signature, Tensor

FORMAT = 1
FILE = "manifest.json"
GRAPH = "model.onnx"
TEXT, CLASSES = "text-to-image", "class-to-image"  # tasks
TOKENIZERS = dict(
    zip(TEXT_INPUTS, ("tokenizer.json", "tokenizer_2.json", "tokenizer_3.json"), strict=True)
)
BYTECODE = "__pycache__"  # Triton's Python back end leaves it beside a model.py
CHUNK_BYTES = 1 << 20
PIXELS_PER_LATENT = 8  # of manifests that do not say

Manifest = dict[str, Any]


def describe(signature: Signature, max_batch: int) -> Manifest:
    """The part of a manifest that says how the graph is called, and what by: text or classes."""
    tokenizers = {
        tensor.name: {"file": TOKENIZERS[tensor.name], "max_length": tensor.shape[0]}
        for tensor in signature.inputs
        if tensor.name in TOKENIZERS
    }
    return {
        "task": TEXT if tokenizers else CLASSES,
        "graph": GRAPH,
        "inputs": [_tensor(tensor) for tensor in signature.inputs],
        "output": _tensor(signature.output),
        "sizes": [f"{width}x{height}" for width, height in signature.sizes],
        "pixels_per_latent": signature.pixels_per_latent,
        "max_batch": max_batch,
        **({"tokenizers": tokenizers} if tokenizers else {}),
    }


def complete(manifest: Manifest, folder: Path, model: str, version: int) -> Manifest:
    """`manifest` with its format, its place and the hashes of every other file in the folder."""
    files = file_records(path for path in folder.iterdir() if path.name != FILE)
    place = {"format": FORMAT, "model": model, "version": version}
    return {**manifest, **place, "files": files, "digest": digest_of(files)}


def signature_of(manifest: Manifest) -> Signature:
    """The signature that `describe` wrote down."""
    sizes = [size.split("x") for size in manifest["sizes"]]
    return Signature(
        inputs=tuple(_stated(tensor) for tensor in manifest["inputs"]),
        output=_stated(manifest["output"]),
        sizes=tuple((int(width), int(height)) for width, height in sizes),
        pixels_per_latent=manifest.get("pixels_per_latent", PIXELS_PER_LATENT),
    )


def service_ms_of(manifest: Manifest) -> dict[int, float] | None:
    """Measured milliseconds of one call by batch size, if they were measured."""
    times = manifest.get("service_ms")
    return None if times is None else {int(size): taken for size, taken in times.items()}


def engines_of(manifest: Manifest) -> dict[str, str]:
    """The file of each TensorRT engine by compute capability."""
    return {capability: facts["file"] for capability, facts in manifest.get("engines", {}).items()}


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Sorted keys, two spaces: the same manifest is the same bytes."""
    text = json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def file_records(files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """sha256 and length in bytes of each file, by name."""
    return {
        file.name: {"sha256": sha256_of(file), "bytes": file.stat().st_size}
        for file in sorted(files)
    }


def digest_of(files: Mapping[str, Mapping[str, Any]]) -> str:
    """sha256 over what `sha256sum` prints for the files, sorted by name."""
    lines = [f"{files[name]['sha256']}  {name}\n" for name in sorted(files)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def sha256_of(file: Path) -> str:
    """Hex digest of a file of any length."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def student_sha256(path: Path) -> str:
    """Of a file its sha256; of a directory that over the `sha256sum` lines of all files in it."""
    if not path.is_dir():
        return sha256_of(path)
    files = {
        file.relative_to(path).as_posix(): {"sha256": sha256_of(file)}
        for file in path.rglob("*")
        if file.is_file()
    }
    return digest_of(files)


def check_version(folder: Path) -> Manifest:
    """Hash every file of a version folder again; `RepositoryError` names the first bad one."""
    manifest = read_manifest(folder)
    files = manifest["files"]
    for name, record in files.items():
        _check_file(folder / name, record)
    unknown = {path.name for path in folder.iterdir()} - {FILE, BYTECODE, *files}
    if unknown:
        raise RepositoryError(
            f"{folder} holds {sorted(unknown)[0]}, which its manifest does not name"
        )
    if digest_of(files) != manifest["digest"]:
        raise RepositoryError(f"digest in {folder / FILE} is not that of the files it lists")
    for capability, file in engines_of(manifest).items():
        if file not in files:
            raise RepositoryError(
                f"engines in {folder / FILE} gives {file} for {capability}, which files lacks"
            )
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest, of a format that this program reads, with the keys that checking needs."""
    manifest = _read(folder)
    _check_format(manifest, folder / FILE)
    if not {"files", "digest"} <= manifest.keys():
        raise RepositoryError(f"{folder / FILE} names no files and digest: it is not a manifest")
    return manifest


def refuse_newer(folder: Path) -> None:
    """Raise if a later release wrote this version; one that is not whole is no reason."""
    try:
        manifest = _read(folder)
    except RepositoryError:
        return
    if isinstance(manifest.get("format"), int) and manifest["format"] > FORMAT:
        _check_format(manifest, folder / FILE)


def _check_format(manifest: Manifest, file: Path) -> None:
    found = manifest.get("format")
    if found != FORMAT:
        newer = isinstance(found, int) and found > FORMAT
        why = ": a later release wrote it, which is needed to read it" if newer else ""
        raise RepositoryError(f"format in {file} is {found!r}; this program reads {FORMAT}{why}")


def _read(folder: Path) -> Manifest:
    """The manifest as a JSON object."""
    file = folder / FILE
    if not folder.is_dir():
        raise RepositoryError(f"the version folder {folder} does not exist")
    if not file.is_file():
        raise RepositoryError(f"{folder} has no {FILE}: it is half written or no version at all")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RepositoryError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(manifest, dict):
        raise RepositoryError(f"{file} is no JSON object: it is not a manifest")
    return manifest


def _check_file(file: Path, record: Mapping[str, Any]) -> None:
    """Length first, since it is cheap and says more than a hash."""
    if not file.is_file():
        raise RepositoryError(f"{file} is missing, but the manifest names it")
    length = file.stat().st_size
    if length != record["bytes"]:
        raise RepositoryError(f"{file} has {length} bytes; the manifest says {record['bytes']}")
    found = sha256_of(file)
    if found != record["sha256"]:
        raise RepositoryError(f"{file} has sha256 {found}; the manifest says {record['sha256']}")


def _tensor(tensor: Tensor) -> dict[str, Any]:
    """As the manifest writes it: the batch is null."""
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": [None, *tensor.shape]}


def _stated(tensor: Mapping[str, Any]) -> Tensor:
    """The inverse of `_tensor`."""
    return Tensor(tensor["name"], tensor["dtype"], tuple(tensor["shape"][1:]))
