"""A model of the repository: found, checked and opened, but for its graph."""

import logging
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from serve import noise, version_policy
from serve.errors import FieldError, InvalidParametersError, RepositoryError
from serve.manifest import CLASS_LABELS, Manifest, check_files, read_manifest
from serve.subject import Subject, example_subject

Feeds = dict[str, NDArray[np.generic]]  # one picture's inputs by name, without the batch axis

KEPT_PROMPTS = 1024  # whose ids are kept, a few megabytes at most

VERSION = re.compile(r"[1-9][0-9]*")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """One version of a model, with the tokenizer of each of its text inputs, if it has any."""

    folder: Path
    manifest: Manifest
    tokenizers: dict[str, Tokenizer]

    @property
    def label(self) -> str:
        """Name and version, as in "shapes/1"."""
        return f"{self.manifest.model}/{self.manifest.version}"

    @property
    def graph(self) -> Path:
        """The ONNX file."""
        return self.folder / self.manifest.graph

    def tokenize(self, prompt: str) -> Feeds:
        """Ids of the prompt for each text input, [L] int64, not to be written to.

        Those of the latest prompts are kept: one prompt is asked for with many a seed. Raises
        InvalidParametersError where there are more of them than the model takes.
        """
        return dict(self._ids_of(prompt))

    @cached_property
    def _ids_of(self) -> Callable[[str], Feeds]:
        return lru_cache(KEPT_PROMPTS)(partial(_tokenize, self.tokenizers, self.manifest))

    def condition(self, subject: Subject) -> Feeds:
        """What the graph is told of a prompt, or of a class that the model has, [] int64.

        Raises InvalidParametersError for a prompt that is too long.
        """
        if isinstance(subject, str):
            return self.tokenize(subject)
        return {CLASS_LABELS: np.array(subject, np.int64)}

    def example(self, number: int) -> Feeds:
        """Any conditioning; those of different numbers differ where they can."""
        return self.condition(example_subject(number, self.manifest.classes))

    @property
    def default_size(self) -> str:
        """The size of a picture whose size is not asked for."""
        return self.manifest.sizes[0]

    def noise(self, seed: int, size: str | None = None) -> NDArray[np.float32]:
        """The noise of one picture of a size that the model has, [C, h, w]."""
        return noise.draw(seed, self.manifest.noise_shape(size or self.default_size))


def load_model(repository: Path, name: str | None = None) -> Model:
    """The newest good version of a model; without a name, of the only one in the repository.

    Only versions that its config serves are taken: after a rollback, the pinned one. A newer
    version that is broken is logged by name and passed over. Raises RepositoryError.
    """
    models = find_models(repository)
    if name is None and len(models) > 1:
        names = ", ".join(models)
        raise RepositoryError(f"{repository} holds several models, name one of them: {names}")
    check_named(repository, models, [] if name is None else [name])
    broken: list[RepositoryError] = []
    for version in served_versions(models[name or next(iter(models))]):
        try:
            model = open_model(version)
        except RepositoryError as error:
            broken.append(error)
            continue
        for reason in broken:
            log.warning("serving %s, since a newer version is broken: %s", model.label, reason)
        return model
    raise broken[0]


def find_models(repository: Path) -> dict[str, Path]:
    """The folders of a repository that hold versions, by name; raises RepositoryError if none."""
    if not repository.is_dir():
        raise RepositoryError(f"the model repository {repository} is not a folder")
    try:
        models = {path.name: path for path in sorted(repository.iterdir()) if _versions(path)}
    except OSError as error:
        raise RepositoryError(
            f"the model repository {repository} cannot be read: {error.strerror}"
        ) from None
    if not models:
        raise RepositoryError(f"the model repository {repository} holds no model")
    return models


def check_named(repository: Path, models: Collection[str], names: Iterable[str]) -> None:
    """Raise RepositoryError for the first name that is not one of the models."""
    for name in names:
        if name not in models:
            held = ", ".join(models)
            raise RepositoryError(f"there is no model {name!r} in {repository}; it holds: {held}")


def served_versions(folder: Path) -> list[Path]:
    """The version folders of a model that its config serves, the newest first, one at least.

    Raises RepositoryError where there is none, or the config cannot be read.
    """
    try:
        numbers = [int(path.name) for path in _versions(folder)]
    except OSError as error:
        raise RepositoryError(f"{folder} cannot be read: {error.strerror}") from None
    if not numbers:
        raise RepositoryError(f"{folder} holds no version")
    return [folder / str(number) for number in version_policy.served(folder, numbers)]


def open_model(folder: Path) -> Model:
    """The model in a version folder, every file checked; raises RepositoryError."""
    manifest = read_manifest(folder)
    if (manifest.model, manifest.version) != (folder.parent.name, int(folder.name)):
        raise RepositoryError(
            f"{folder} holds {manifest.model}/{manifest.version} by its manifest: it was moved"
        )
    check_files(folder, manifest)
    tokenizers = {}
    for name, entry in manifest.tokenizers.items():
        tokenizer = Tokenizer.from_file(str(folder / entry.file))
        tokenizer.no_truncation()  # a long prompt is refused, never cut
        length = len(tokenizer.encode("").ids)
        if length != entry.max_length:
            raise RepositoryError(
                f"{folder / entry.file} pads to {length} ids, input {name} takes {entry.max_length}"
            )
        tokenizers[name] = tokenizer
    return Model(folder, manifest, tokenizers)


def _tokenize(tokenizers: dict[str, Tokenizer], manifest: Manifest, prompt: str) -> Feeds:
    ids: Feeds = {}
    for name, tokenizer in tokenizers.items():
        tokens = tokenizer.encode(prompt).ids
        limit = manifest.tokenizers[name].max_length
        if len(tokens) > limit:
            detail = f"is {len(tokens)} tokens long with start and end, allowed are {limit}"
            raise InvalidParametersError.of(FieldError("prompt", detail))
        ids[name] = np.array(tokens, dtype=np.int64)
        ids[name].setflags(write=False)
    return ids


def _versions(folder: Path) -> list[Path]:
    """The numbered folders of a model, the newest first; hidden folders are not models."""
    if folder.name.startswith(".") or not folder.is_dir():
        return []
    numbered = [path for path in folder.iterdir() if VERSION.fullmatch(path.name) and path.is_dir()]
    return sorted(numbered, key=lambda path: int(path.name), reverse=True)
