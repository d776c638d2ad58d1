"""The real Chromium, real gateway processes for it, and what a visit must not do."""

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "model_repository" / "shapes" / "1"
SERVE = "import sys, singlepass; sys.exit(singlepass.main(sys.argv[1:]))"
HERE = Path(__file__).parent
LONGEST_S = 120
PATIENCE_MS = 10_000  # of one step; a machine that does much else at once is slow


def chromium() -> str:
    """Where Chromium lies; skips without one, but fails in CI, which installs it."""
    found = shutil.which("chromium")
    if found is None and os.environ.get("CI") == "true":
        pytest.fail("there is no chromium in PATH")
    if found is None:
        pytest.skip("needs chromium in PATH")
    return found


@contextmanager
def started() -> Iterator[Browser]:
    """Chromium, without a window."""
    executable = chromium()
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable)
        yield browser
        browser.close()


@contextmanager
def visiting(
    browser: Browser, url: str, allowed: str = "nothing", width_px: int = 1280, **options: object
) -> Iterator[Page]:
    """The page in a context of its own; at the end nothing may have gone wrong unseen.

    That is: no request to another origin, and no error on the console, where violations of the
    policy stand too, but for those that the pattern `allowed` matches.
    """
    seen: list[str] = []
    wrong: list[str] = []
    viewport = {"width": width_px, "height": 800}
    context = browser.new_context(viewport=viewport, **options)
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=url)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.on("request", lambda request: seen.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.goto(url)
    yield page
    context.close()
    elsewhere = [one for one in seen if not one.startswith((f"{url}/", f"blob:{url}/"))]
    assert not elsewhere, f"asked of others: {elsewhere}"
    unforeseen = [text for text in wrong if not re.search(allowed, text)]
    assert not unforeseen, f"went wrong: {unforeseen}"
    assert len(seen) > 5, "the page, its parts and the models, at least"


@contextmanager
def gateway(
    repository: Path, *options: object, port: int = 0
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`distill serve` on a repository as a process, and its address."""
    given = ["--repository", repository, "--port", port, "--threads", "1", "--drain-s", "1"]
    quiet = ["--log-level", "warning"]
    command = [sys.executable, "-c", SERVE, "serve", *map(str, [*given, *quiet, *options])]
    with process(command) as running:
        yield running


@contextmanager
def slow_gateway(repository: Path, release: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A gateway whose pictures wait until `release` exists; each prints "accepted"."""
    command = [sys.executable, HERE / "slow_gateway.py", repository, release, "1"]
    with process([str(part) for part in command]) as running:
        yield running


@contextmanager
def process(command: list[str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A gateway's process, once it has printed its address, and that."""
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as running:
        too_long = threading.Timer(LONGEST_S, running.kill)  # whoever reads from it goes on then
        too_long.start()
        try:
            assert running.stdout is not None
            said = running.stdout.readline()
            while said and not said.startswith("curl"):
                found, said = re.search(r"http://\S+", said), running.stdout.readline()
            assert said, "the gateway ended before it listened"
            yield running, found[0]
        finally:
            too_long.cancel()
            running.kill()


def only_the_shipped_version(folder: Path) -> Path:
    """A repository with version 1 of the shapes model alone."""
    (folder / "shapes").mkdir(parents=True)
    (folder / "shapes" / "1").symlink_to(SHIPPED, target_is_directory=True)
    return folder
