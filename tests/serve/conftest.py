"""Fixtures of the gateway's tests: a repository with one small real model, and settings on it."""

from pathlib import Path

import pytest
from tiny_repository import write_version

from serve.model import Model, load_model
from serve.settings import Settings


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with version 1 of the model "tiny"; read only."""
    root = tmp_path_factory.mktemp("served") / "repository"
    write_version(root)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with version 1 of the model "tiny", to be changed."""
    write_version(tmp_path / "repository")
    return tmp_path / "repository"


@pytest.fixture(scope="session")
def model(repository: Path) -> Model:
    """The model of that repository."""
    return load_model(repository)


@pytest.fixture
def settings(repository: Path) -> Settings:
    """Settings for that repository, with one thread."""
    return Settings(repository=repository, threads=1, drain_s=5)
