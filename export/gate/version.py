"""A published version as the gate sees it: its folder, its manifest, how its graph is called."""

from dataclasses import dataclass
from pathlib import Path

from export.errors import RepositoryError
from export.repository.manifest import Manifest, check_version, signature_of
from export.repository.versions import versions
from export.signature import Signature
from export.tasks.subjects import Subjects, subjects_of


@dataclass(frozen=True)
class Version:
    """A whole version of a model."""

    folder: Path
    manifest: Manifest
    signature: Signature

    @property
    def graph(self) -> Path:
        """The ONNX file."""
        return self.folder / str(self.manifest["graph"])

    @property
    def label(self) -> str:
        """Name and version, as in "shapes/1"."""
        return f"{self.manifest['model']}/{self.manifest['version']}"

    @property
    def max_batch(self) -> int:
        """The largest batch a server may send."""
        return int(self.manifest["max_batch"])

    def subjects(self) -> Subjects:
        """What it is asked for: by the tokenizers beside the graph, or by its classes."""
        return subjects_of(self.folder, self.manifest)


def open_version(repository: Path, model: str | None, version: int | None) -> Version:
    """A version folder, hashed again: the newest of the only model, where none is named.

    `RepositoryError` names what is missing or broken.
    """
    if not repository.is_dir():
        raise RepositoryError(f"the model repository {repository} is not a folder")
    names = sorted(path.name for path in repository.iterdir() if versions(path))
    if model is None and len(names) == 1:
        model = names[0]
    if model not in names:
        which = "holds several models, name one" if model is None else f"holds no model {model!r}"
        raise RepositoryError(f"{repository} {which}; there are: {', '.join(names) or 'none'}")
    numbers = versions(repository / model)
    if version is not None and version not in numbers:
        there = ", ".join(map(str, numbers))
        raise RepositoryError(f"{repository / model} has no version {version}; there are: {there}")
    folder = repository / model / str(numbers[-1] if version is None else version)
    manifest = check_version(folder)
    return Version(folder, manifest, signature_of(manifest))
