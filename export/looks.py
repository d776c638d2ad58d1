"""What a model looks like, where that is not what it is given as: sentences, never refusals."""

import re
from collections.abc import Iterator
from pathlib import Path

from export.kinds import KINDS

STEPS = re.compile(r"(?<![a-z0-9])(\d+)[-_ ]?steps?(?![a-z])")


def named_otherwise(model: Path, kind: str) -> Iterator[str]:
    """If a file or folder is named for several steps, or for another kind than it is given as."""
    name = model.resolve().name.lower()
    steps = STEPS.search(name)
    if steps and int(steps[1]) != 1:
        yield f"{model.name} looks like a {steps[1]}-step model by its name; one step is exported"
    others = [other for other in KINDS if other in name]
    if others and kind in KINDS and kind not in others:
        yield f"{model.name} looks like {others[0]} by its name; it is exported as {kind}"
