"""Opens a student by what its directory says it is."""

import json
from collections.abc import Callable
from pathlib import Path

from export.graph.precision import Precision
from export.model.class_student import PIPELINE as CLASS_PIPELINE
from export.model.foreign import Source
from export.tasks.class_task import open_classes
from export.tasks.task import Task
from export.tasks.text_task import open_text


def open_task(
    source: Source,
    precision: Precision | None = None,
    vae: Path | None = None,
    report: Callable[[str], None] = print,
) -> Task:
    """The student, loaded; `ExportError` says what is missing, or does not go with its kind.

    `precision` is float32 if not given, `vae` the directory of another decoder.
    """
    precision = precision or Precision()
    if pipeline_of(source.model) == CLASS_PIPELINE:
        return open_classes(source, precision, vae)
    return open_text(source, precision, vae, report)


def pipeline_of(model: Path) -> str | None:
    """The class that a pipeline directory names; None where it cannot be told, or is none."""
    try:
        index = json.loads((model / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    name = index.get("_class_name") if isinstance(index, dict) else None
    return name if isinstance(name, str) else None
