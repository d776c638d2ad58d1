"""A Dockerfile: its steps read, and carried out in a folder without a container engine."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

CONTINUED = re.compile(r"\\\n")


class Step(NamedTuple):
    """One instruction and what follows it, on one line."""

    name: str
    rest: str

    @property
    def words(self) -> list[str]:
        """The words of an exec form, or those of the line."""
        return json.loads(self.rest) if self.rest.startswith("[") else self.rest.split()

    @property
    def pairs(self) -> dict[str, str]:
        """The variables of ENV or the options of HEALTHCHECK."""
        return dict(word.lstrip("-").split("=", 1) for word in self.rest.split() if "=" in word)


def read(dockerfile: Path) -> list[Step]:
    """The steps in order; comments go, lines that are continued are joined."""
    lines = [
        line
        for line in dockerfile.read_text("utf-8").splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    ]
    joined = CONTINUED.sub(" ", "\n".join(lines)).splitlines()
    return [Step(*line.split(None, 1)) for line in joined]


def last(steps: list[Step], name: str) -> Step:
    """The last instruction of a name: the one that holds."""
    return [step for step in steps if step.name == name][-1]


def kept(ignore: Path) -> set[str]:
    """What a .dockerignore that begins with `*` lets into the build."""
    first, *rest = ignore.read_text("utf-8").split()
    assert first == "*", f"{ignore} begins with {first!r}, allowed is '*'"
    return {line[1:] for line in rest if line.startswith("!")}


class Folder:
    """A file system of its own, as far as the steps write to it: absolute paths begin here.

    Stages share it, so a folder can be copied from one stage to the next only to where it was.
    """

    def __init__(self, top: Path, context: Path, owned: tuple[str, ...]) -> None:
        self.top = top
        self._context = context
        self._owned = owned  # the container's folders that the steps may name
        self._work = top
        self.env: dict[str, str] = {}

    def inside(self, text: str) -> str:
        """A line with the container's folders in place of this machine's."""
        for path in self._owned:
            text = re.sub(rf"(?<![\w/]){re.escape(path)}\b", f"{self.top}{path}", text)
        return text

    def carry_out(self, steps: list[Step]) -> None:
        """All steps; raises AssertionError at one that fails or is not known."""
        for step in steps:
            if step.name in ("FROM", "USER", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK"):
                continue
            if step.name in ("ENTRYPOINT", "CMD"):
                assert isinstance(json.loads(step.rest), list), f"{step} is not in the exec form"
                continue
            {"WORKDIR": self._workdir, "COPY": self._copy, "RUN": self._run, "ENV": self._env}[
                step.name
            ](step)

    def _workdir(self, step: Step) -> None:
        self._work = Path(self.inside(step.rest))
        self._work.mkdir(parents=True, exist_ok=True)

    def _copy(self, step: Step) -> None:
        *sources, target = step.rest.split()
        if sources[0].startswith("--from="):
            assert sources[1:] == [target], f"{step}: an environment only works where it was made"
            assert Path(self.inside(target)).is_dir(), f"{step}: there is no {target}"
            return
        for source in (self._context / name for name in sources):
            place = self._work / target / (source.name if target == "./" else "")
            if source.is_dir():
                shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copyfile(source, place)

    def _run(self, step: Step) -> None:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # `python` is this one
        done = subprocess.run(
            ["/bin/sh", "-ec", self.inside(step.rest)],
            cwd=self._work,
            env=os.environ | {"PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{step}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"

    def _env(self, step: Step) -> None:
        for name, value in step.pairs.items():
            old = os.environ.get(name, "")
            self.env[name] = self.inside(value).replace(f"${name}", old)
