"""A Triton server that loads on request, and models to load: the shipped one, published anew."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from running_triton import Server, running, why_not
from shipped_model import publish_into

from export.repository.publish import Published

Publish = Callable[..., Published]


@pytest.fixture(scope="session")
def environment() -> None:
    """Skip where no server can be had."""
    reason = why_not()
    if reason:
        pytest.skip(reason)


class KeptServer:
    """One server with an empty repository for all tests, begun anew where it has died.

    Triton of 2024 may end with signal 11 when a request is cancelled (its issues 7368 and 8034).
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.stack, self.started = folder, stack, list[Server]()
        (folder / "repository").mkdir()

    def alive(self) -> Server:
        if not self.started or self.started[-1].process.poll() is not None:
            log = self.folder / f"log-{len(self.started)}.txt"
            options = ("--model-control-mode=explicit", "--log-verbose=1")
            begun = running(self.folder / "repository", log, *options)
            self.started.append(self.stack.enter_context(begun))
        return self.started[-1]


@pytest.fixture(scope="session")
def kept_server(
    environment: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[KeptServer]:
    with ExitStack() as stack:
        yield KeptServer(tmp_path_factory.mktemp("triton"), stack)


@pytest.fixture
def server(kept_server: KeptServer) -> Server:
    """A server; models are published into its repository, then loaded."""
    return kept_server.alive()


@pytest.fixture
def publish_shapes(server: Server) -> Publish:
    """Publish the shipped model under a name, for a runtime, into the server's repository."""

    def put(name: str, runtime: str = "python", **given: object) -> Published:
        return publish_into(server.repository, name, runtime, **given)

    return put
