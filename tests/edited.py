"""JSON files of a test's own that are changed in some keys."""

import json
from pathlib import Path
from typing import Any


def edit(file: Path, **changes: Any) -> None:
    """Set keys of the object in the file."""
    whole = {**json.loads(file.read_text("utf-8")), **changes}
    file.write_text(json.dumps(whole), "utf-8")
