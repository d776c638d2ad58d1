"""The place of one model: the version that answers, and the one that comes next."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from serve.errors import RepositoryError, SettingsError
from serve.metrics import Metrics
from serve.model import served_versions
from serve.served import Served

Files = tuple[tuple[str, int, int, int], ...]  # name, bytes, when content and inode changed, in ns

log = logging.getLogger(__name__)


@dataclass
class Refusal:
    """A version that should be served by the folder, and why it is not."""

    version: int | None  # None: no version can be told from the folder
    reason: str
    files: Files = ()  # as they were when it was refused
    seen: Files = ()  # as they were at the latest look

    def sentence(self, name: str) -> str:
        """What is refused, of the model with this name, and why."""
        label = name if self.version is None else f"{name}/{self.version}"
        return f"{label} is refused: {self.reason}"


class Slot:
    """Follows the folder of a model. `served` changes in one assignment, to what is ready."""

    def __init__(
        self,
        folder: Path,
        open_version: Callable[[Path], Awaitable[Served]],
        retire: Callable[[Served], None],
        metrics: Metrics,
    ) -> None:
        self.name = folder.name
        self.served: Served | None = None
        self.pending: Served | None = None  # open; what runs it is not ready for it yet
        self._folder = folder
        self._open_version = open_version
        self._retire = retire
        self._metrics = metrics
        self._refusals: dict[int | None, Refusal] = {}

    @property
    def refusal(self) -> Refusal | None:
        """What the folder asks for and does not get, of several the newest."""
        return next(iter(self._refusals.values()), None)

    @property
    def open(self) -> list[Served]:
        """What answers, and what is about to."""
        return [served for served in (self.served, self.pending) if served is not None]

    @property
    def settled(self) -> bool:
        """Whether nothing is waited for."""
        return self.pending is None and self.served is not None and self.served.backend.ready

    async def look(self) -> None:
        """Serve the newest version that the folder's config names and that can be served.

        A version that cannot be is refused, once as long as its files stay as they are.
        """
        try:
            wanted = await asyncio.to_thread(served_versions, self._folder)
        except RepositoryError as error:
            self._refuse(Refusal(None, str(error)))
            return
        numbers = [int(folder.name) for folder in wanted]
        self._refusals = {n: self._refusals[n] for n in numbers if n in self._refusals}
        for folder in wanted:
            if await self._take(folder):
                return
        self._expect(None)

    def leave(self) -> None:
        """Nothing is served here any more."""
        for served in self.open:
            self._retire(served)
        self.served = self.pending = None

    async def _take(self, folder: Path) -> bool:
        """Whether that version answers, or will as soon as its back end is ready."""
        version = int(folder.name)
        if self.served is not None and self.served.version == version:
            self._expect(None)
            return True
        waits = self.pending is not None and self.pending.version == version
        coming = self.pending if waits else await self._opened(folder)
        if coming is None:
            return False
        self._expect(coming)
        if self.served is None or coming.backend.ready:
            self._swap(coming)
        return True

    def _expect(self, coming: Served | None) -> None:
        """This version waits for its turn, and no other one."""
        if self.pending is not None and self.pending is not coming:
            self._retire(self.pending)
        if coming is not None and coming is not self.pending and not coming.backend.ready:
            log.info("%s waits: %s", coming.model.label, coming.backend.why_not)
        self.pending = coming

    def _swap(self, coming: Served) -> None:
        before, self.served, self.pending = self.served, coming, None
        coming.appear()
        log.info("serving %s", coming.model.label)
        if before is not None:
            self._metrics.reloaded(self.name, "loaded")
            self._retire(before)

    async def _opened(self, folder: Path) -> Served | None:
        """The version, open; None if it is refused, now or with these very files before."""
        version, files = int(folder.name), await asyncio.to_thread(files_of, folder)
        refusal = self._refusals.get(version)
        if refusal is not None:
            seen, refusal.seen = refusal.seen, files
            if files == refusal.files or files != seen:  # the same, or being written
                return None
        opening = asyncio.ensure_future(self._open_version(folder))
        try:
            await asyncio.wait([opening])
        finally:
            opening.cancel()
            await asyncio.wait([opening])
        cause = opening.exception()
        if cause is None:
            self._refusals.pop(version, None)
            return opening.result()
        if isinstance(cause, SettingsError):
            raise cause
        if not isinstance(cause, RepositoryError):
            log.error("%s cannot be opened", folder, exc_info=cause)
            cause = RepositoryError(f"{folder} cannot be opened: {cause!r}")
        self._refuse(Refusal(version, str(cause), files, files))
        return None

    def _refuse(self, refusal: Refusal) -> None:
        known = self._refusals.get(refusal.version)
        if known is None or (known.reason, known.files) != (refusal.reason, refusal.files):
            self._metrics.reloaded(self.name, "refused")
            log.warning("%s", refusal.sentence(self.name))
        self._refusals = {refusal.version: refusal} | self._refusals | {refusal.version: refusal}


def files_of(folder: Path) -> Files:
    """What tells whether a file of a version was changed; empty where nothing can be read."""
    try:
        stats = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
    except OSError:
        return ()
    return tuple((name, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in stats)
