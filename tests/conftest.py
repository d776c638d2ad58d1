"""Fixtures that all packages share. Nothing may be looked up on the network."""

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random SDXL pipeline directory (64x64 pictures, Euler scheduler); read only."""
    from tiny import save_tiny_sdxl  # torch is loaded only by the tests that need it

    return save_tiny_sdxl(tmp_path_factory.mktemp("tiny") / "sdxl")


@pytest.fixture(scope="session")
def tiny_student(tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights with the one-step scheduler at timestep 999; read only."""
    from tiny import save_tiny_student

    return save_tiny_student(tiny_sdxl, tmp_path_factory.mktemp("tiny") / "student")
