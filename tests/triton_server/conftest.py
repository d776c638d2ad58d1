"""A Triton server that loads on request, and models to load: the shipped one, published anew."""

from collections.abc import Callable, Iterator

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


@pytest.fixture(scope="session")
def server(environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with an empty repository; models are published into it, then loaded."""
    folder = tmp_path_factory.mktemp("triton")
    (folder / "repository").mkdir()
    options = ("--model-control-mode=explicit", "--log-verbose=1")
    with running(folder / "repository", folder / "log.txt", *options) as started:
        yield started


@pytest.fixture(scope="session")
def publish_shapes(server: Server) -> Publish:
    """Publish the shipped model under a name, for a runtime, into the server's repository."""

    def put(name: str, runtime: str = "python", **given: object) -> Published:
        return publish_into(server.repository, name, runtime, **given)

    return put
