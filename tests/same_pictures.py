"""Pictures asked for in many ways at once, each compared with the same one asked for alone."""

import asyncio
import base64
import hashlib
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx

ROOT = Path(__file__).parents[1]
PROMPTS = ("a small red circle on the left", "a blue square", "a shape", "a large green triangle")
KEYS = {name: f"key-of-{name}-{name * 16}" for name in ("amy", "bob", "cat", "dan")}
BATCH_ONLY = "dan"
LOOKS = (
    {"format": "png"},
    {"format": "png", "size": "64x64"},
    {"format": "jpeg"},
    {"format": "jpeg", "quality": 60},
    {"format": "webp"},
    {"format": "webp", "quality": 80},
    {"format": "raw"},
)
LEAVING = 0.15  # the share of the requests whose client does not wait for the answer
AT_ONCE = 24


class Wish(NamedTuple):
    """One request: its body, its headers, and after how many seconds its client leaves."""

    body: dict[str, object]
    headers: dict[str, str]
    leaves_s: float | None


class Compared(NamedTuple):
    """What became of the requests: pictures that were right, requests that were left, others."""

    right: int
    left: int
    wrong: list[object]


@contextmanager
def gateway(*options: object) -> Iterator[str]:
    """`distill serve` as a process with these options, on a free port; its address."""
    command = [sys.executable, "-m", "singlepass", "serve", "--port", "0", "--log-level", "warning"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    arguments = [*command, *map(str, options)]
    with subprocess.Popen(arguments, env=env, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield re.search(r"http://\S+", process.stdout.readline())[0]  # type: ignore[index]
        finally:
            process.terminate()


def write_keys(file: Path) -> Path:
    """A file of all KEYS, one of which may ask for batch pictures only."""
    lines = []
    for name, key in KEYS.items():
        lines += [f"[keys.{name}]", f'sha256 = "{hashlib.sha256(key.encode()).hexdigest()}"']
        lines += ['priority = "batch"'] if name == BATCH_ONLY else []
    file.write_text("\n".join(lines) + "\n")
    file.chmod(0o600)
    return file


def wishes(pictures: int) -> list[Wish]:
    """Requests for at least so many pictures whose clients wait; the same ones each time."""
    dice, made, seed, waited_for = random.Random(1), [], 0, 0
    while waited_for < pictures:
        count = dice.choice((1, 1, 1, 2, 4))
        look = dice.choice(LOOKS if count == 1 else LOOKS[:-1])  # raw is one picture alone
        leaves_s = dice.uniform(0.0, 0.1) if dice.random() < LEAVING else None
        made.append(_wish(dice, {"seed": seed, "num_images": count, **look}, leaves_s))
        seed += count
        waited_for += count if leaves_s is None else 0
    return made


def _wish(dice: random.Random, body: dict[str, object], leaves_s: float | None) -> Wish:
    name = dice.choice([*KEYS])
    priority = "batch" if name == BATCH_ONLY else dice.choice(("interactive", "batch"))
    headers = {"Authorization": f"Bearer {KEYS[name]}", "X-Priority": priority}
    return Wish({"prompt": dice.choice(PROMPTS), **body}, headers, leaves_s)


def compare(url: str, asked: list[Wish]) -> Compared:
    """Ask for each alone, then for all of them, AT_ONCE at a time, in another order."""
    return asyncio.run(_compare(url, asked))


async def _compare(url: str, asked: list[Wish]) -> Compared:
    limits = httpx.Limits(max_connections=AT_ONCE)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        alone = [await _pictures(client, wish) for wish in asked if wish.leaves_s is None]
        waiting = [wish for wish in asked if wish.leaves_s is None]
        right = {json.dumps(w.body): p for w, p in zip(waiting, alone, strict=True)}
        assert len({*_flat(alone)}) == len(_flat(alone)), "two wishes have one picture"
        todo = random.Random(2).sample(asked, len(asked))
        found = await asyncio.gather(*(_worker(client, todo) for _ in range(AT_ONCE)))
    answers = [pair for worker in found for pair in worker]
    kept = [(wish, got) for wish, got in answers if wish.leaves_s is None]
    wrong = [wish for wish, got in kept if got != right[json.dumps(wish.body)]]
    pictures = sum(len(got or []) for wish, got in kept if wish not in wrong)
    return Compared(pictures, sum(got is None for _, got in answers), wrong)


async def _worker(
    client: httpx.AsyncClient, todo: list[Wish]
) -> list[tuple[Wish, list[bytes] | None]]:
    """Ask for what is still to do; None for what was not waited for."""
    answers: list[tuple[Wish, list[bytes] | None]] = []
    while todo:
        wish = todo.pop()
        try:
            answers.append((wish, await asyncio.wait_for(_pictures(client, wish), wish.leaves_s)))
        except TimeoutError:
            answers.append((wish, None))
    return answers


async def _pictures(client: httpx.AsyncClient, wish: Wish) -> list[bytes]:
    """The files of one answer."""
    answer = await client.post("/generate", json=wish.body, headers=wish.headers)
    assert answer.status_code == 200, f"{wish}: {answer.text}"
    if wish.body["num_images"] == 1:
        return [answer.content]
    return [base64.b64decode(image["image"]) for image in answer.json()["images"]]


def _flat(answers: list[list[bytes]]) -> list[bytes]:
    return [picture for answer in answers for picture in answer]
