"""The files under deploy/, read; and the commands that check them."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def tool(name: str) -> str:
    """Where a command lies; skips without it, but fails in CI, which installs it."""
    return shutil.which(name) or missing(name)


def missing(name: str) -> NoReturn:
    """What a test needs is not here: it is skipped, but fails in CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{name} is not installed")
    pytest.skip(f"{name} is not installed")


def succeeds(*command: object) -> str:
    """What a command prints; fails with all that it says if it fails."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def documents(path: Path) -> list[dict[str, Any]]:
    """The YAML documents of a file."""
    return [found for found in yaml.safe_load_all(path.read_text("utf-8")) if found]


def document(path: Path) -> dict[str, Any]:
    """The one YAML document of a file."""
    (found,) = documents(path)
    return found
