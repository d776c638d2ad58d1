"""What encoding will take is foretold by pictures and threads, not by orders."""

import asyncio
import time

import pytest
from fake_backend import FakeBackend, client_of

from serve import generate
from serve.app import create_app

SLOW_S = 0.05


@pytest.fixture
def slow_encoding(monkeypatch):
    def slowly(*arguments):
        time.sleep(SLOW_S)
        return b"picture"

    monkeypatch.setattr(generate, "encode", slowly)


@pytest.mark.parametrize(("workers", "pictures", "rounds"), [(1, 4, 4), (2, 4, 2), (3, 4, 2)])
def test_an_order_of_several_tells_what_one_takes(
    settings, slow_encoding, workers, pictures, rounds
):
    async def run():
        app = create_app(settings.model_copy(update={"encode_workers": workers}), FakeBackend())
        async with client_of(app) as client:
            body = {"prompt": "red", "num_images": pictures}
            assert (await client.post("/generate", json=body)).status_code == 200
            foretold_s = app.state.gateway.repository.get().generator.encode_s
            return foretold_s(1), foretold_s(pictures)

    one_s, all_s = asyncio.run(run())
    assert all_s == pytest.approx(rounds * one_s)
    assert SLOW_S <= one_s / generate.RECENT < 2 * SLOW_S + 0.1
