"""One key floods the gateway, another asks now and then: the second must not notice the first.

The model is a fake that takes a known time, behind the real batcher, admission and HTTP routes.
What a picture waits for is counted in calls of the model, which no other load can make more.
"""

import asyncio
import math
import time
from collections import defaultdict

import numpy as np
import pytest
from fake_backend import client_of

from serve.app import create_app
from serve.batcher import Batcher
from serve.keys import make_key
from serve.service_times import ServiceTimes
from serve.turn import USUAL, Turn

SERVICE_S = 0.03
LIGHT_REQUESTS = 25


class Slow:
    """A back end whose every picture takes SERVICE_S, one at a time."""

    why_not = "the model is not loaded"

    def __init__(self) -> None:
        self.ready = False
        self.calls = 0  # that have ended
        self.waited: dict[Turn, list[int]] = defaultdict(list)  # calls, with the picture's own
        self._batcher = None

    async def start(self) -> None:
        self._batcher = Batcher(self._run, ServiceTimes({1: SERVICE_S}))
        self.ready = True

    async def close(self) -> None:
        self.ready = False
        await self._batcher.close()

    @property
    def waiting(self) -> int:
        return self._batcher.waiting

    def wait_s(self, pictures, turn=USUAL) -> float:
        return self._batcher.wait_s(pictures, turn)

    def infer(self, feeds, within_s=math.inf, turn=USUAL):
        before, future = self.calls, self._batcher.submit(feeds, within_s, turn)
        future.add_done_callback(lambda _: self.waited[turn].append(self.calls - before))
        return future

    def _run(self, rows):
        time.sleep(SERVICE_S)
        self.calls += 1
        return [np.zeros((64, 64, 3), np.uint8) for _ in rows]


@pytest.fixture
def keyed(settings, tmp_path):
    """Settings with the keys "flood" and "light", and the headers of each."""
    path, headers = tmp_path / "keys.toml", {}
    lines = []
    for name in ("flood", "light"):
        key, table = make_key(name)
        headers[name] = {"Authorization": f"Bearer {key}"}
        lines.append(table)
    path.write_text("".join(lines))
    path.chmod(0o600)
    return settings.model_copy(update={"keys": path, "max_queue": 64}), headers


async def flooding(client, headers, statuses: list[int], at_once: int) -> None:
    """Twenty times what the light caller asks for, and at once again whatever the answer."""

    async def again() -> None:
        while True:
            answer = await client.post(
                "/generate", json={"prompt": "a", "format": "raw"}, headers=headers
            )
            statuses.append(answer.status_code)
            await asyncio.sleep(0.1 if answer.status_code == 429 else 0)

    await asyncio.gather(*(again() for _ in range(at_once)))


async def asking(client, headers) -> set[int]:
    """Statuses of requests one after the other, each a moment after the answer before."""
    statuses = set()
    for _ in range(LIGHT_REQUESTS):
        answer = await client.post(
            "/generate", json={"prompt": "a", "format": "raw"}, headers=headers
        )
        statuses.add(answer.status_code)
        await asyncio.sleep(SERVICE_S)
    return statuses


def beside_a_flood(settings, flood, light, at_once):
    """What became of the light requests, what they waited for, and what became of the flood's."""

    async def run():
        backend = Slow()
        async with client_of(create_app(settings, backend)) as client:
            flooded: list[int] = []
            task = asyncio.ensure_future(flooding(client, flood, flooded, at_once))
            await asyncio.sleep(5 * SERVICE_S)
            statuses = await asking(client, light)
            task.cancel()
            await asyncio.wait([task])
            return statuses, backend.waited[Turn("light")], flooded

    return asyncio.run(run())


def test_a_light_key_is_never_refused_and_waits_for_one_picture_beside_a_flood(keyed):
    settings, headers = keyed
    statuses, waited, flooded = beside_a_flood(
        settings, headers["flood"], headers["light"], at_once=60
    )
    assert statuses == {200}
    assert len(waited) == LIGHT_REQUESTS
    assert max(waited) <= 3  # the call that ran, one more if it was the flood's turn, its own
    assert flooded.count(429) >= 60 - 32  # it was a flood: it never held more than half the places
    assert flooded.count(200) >= LIGHT_REQUESTS  # what the light key left was all its own


def test_interactive_work_of_a_key_is_not_held_up_by_its_own_batch_work(keyed):
    settings, headers = keyed
    batch = headers["light"] | {"X-Priority": "batch"}
    statuses, waited, flooded = beside_a_flood(settings, batch, headers["light"], at_once=20)
    assert statuses == {200}
    assert max(waited) <= 3
    assert flooded.count(200) >= LIGHT_REQUESTS // 8  # batch work goes on beside it
