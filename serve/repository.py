"""The models of a folder, each at the version that answers now; followed while they serve."""

import asyncio
import logging
import time
from pathlib import Path

from serve.errors import (
    FieldError,
    InvalidParametersError,
    RepositoryError,
    UnknownModelError,
)
from serve.heap import give_back
from serve.metrics import Metrics
from serve.model import check_named, find_models, open_model
from serve.served import OpenBackend, Served, open_served
from serve.settings import Settings
from serve.slot import Refusal, Slot

SOON_S = 0.5  # between looks while a back end is waited for
GIVE_BACK_S = 0.1  # after a version has left

log = logging.getLogger(__name__)


class Repository:
    """Opens the models that the settings name, or all there are; closes what it opened."""

    def __init__(self, settings: Settings, open_backend: OpenBackend, metrics: Metrics) -> None:
        self._settings = settings
        self._open_backend = open_backend
        self._metrics = metrics
        self._slots: dict[str, Slot] = {}
        self._leaving: dict[Served, asyncio.Task[None]] = {}
        self._watching: asyncio.Task[None] | None = None
        self._trouble: str | None = None  # why the folder itself could not be looked at

    async def start(self) -> None:
        """Open every model; raises RepositoryError if one that is named, or all, cannot be."""
        names = self._settings.models
        models = await asyncio.to_thread(find_models, self._settings.repository)
        check_named(self._settings.repository, models, names)
        for name in names or models:
            await self._add(models[name]).look()
        unserved = [slot for slot in self._slots.values() if slot.served is None]
        if unserved and (names or not self.all()):
            assert unserved[0].refusal is not None, f"{unserved[0].name} is neither nor"
            raise RepositoryError(unserved[0].refusal.reason)
        if self._settings.reload_s:
            self._watching = asyncio.ensure_future(self._watch())

    async def close(self) -> None:
        """Stop looking, and close everything; what is still in work fails."""
        leaving = list(self._leaving.values())
        for task in (self._watching, *leaving):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        open_still = [*self._leaving, *(s for slot in self._slots.values() for s in slot.open)]
        self._slots.clear()
        for served in open_still:
            await served.close()

    def all(self) -> list[Served]:
        """What answers, in the settings' order, or by name."""
        return [slot.served for slot in self._slots.values() if slot.served is not None]

    def get(self, name: str | None = None) -> Served:
        """What answers for a name, or for name and version as in "shapes/1".

        Without one: the first in the settings, or the only one. Raises InvalidParametersError
        where there are several to choose from, UnknownModelError for what is not served.
        """
        served = self.all()
        if name is None:
            if len(served) > 1 and not self._settings.models:
                names = ", ".join(one.name for one in served)
                detail = f"is required, as several are served: {names}"
                raise InvalidParametersError.of(FieldError("model", detail))
            return served[0]
        for one in served:
            if name in (one.name, one.model.label):
                return one
        known = "; ".join(f"{one.name}, as {one.model.label}" for one in served)
        detail = f"is {name[:80]!r}, served is {known}"
        raise UnknownModelError(f"model: {detail}", (FieldError("model", detail),))

    def is_default(self, served: Served) -> bool:
        """Whether it answers requests that name no model."""
        first = self.all()[0]
        return served is first and (bool(self._settings.models) or len(self.all()) == 1)

    @property
    def idle(self) -> bool:
        """Whether everything that was accepted has been answered, also by what leaves."""
        return all(served.admission.idle for served in (*self.all(), *self._leaving))

    def why_not(self) -> str | None:
        """Why a model cannot answer now, in one sentence each; None if all can."""
        served = self.all()
        waiting = [one for one in served if not one.backend.ready]
        if len(served) == 1 and waiting:
            return waiting[0].backend.why_not
        return "; ".join(f"{one.name}: {one.backend.why_not}" for one in waiting) or None

    def remarks(self) -> list[str]:
        """What the folder asks for and does not get, in one sentence each."""
        remarks = [] if self._trouble is None else [f"serving from memory: {self._trouble}"]
        for slot in self._slots.values():
            if slot.refusal is not None:
                remarks.append(slot.refusal.sentence(slot.name))
            if slot.pending is not None:
                pending = slot.pending
                remarks.append(f"{pending.model.label} waits: {pending.backend.why_not}")
        return remarks

    def refusal(self, name: str) -> Refusal | None:
        """What was refused of a model that answers."""
        return self._slots[name].refusal

    async def look(self) -> None:
        """Compare what answers with the folder, and change it where that is possible."""
        root, names = self._settings.repository, self._settings.models
        try:
            models = await asyncio.to_thread(find_models, root)
        except RepositoryError as error:
            self._note(str(error))
            return
        self._note(None)
        if not names:
            for name in [name for name in models if name not in self._slots]:
                self._add(models[name])
            self._slots = {name: self._slots[name] for name in sorted(self._slots)}
        for slot in list(self._slots.values()):
            await slot.look()
        if not names and any(one.name in models for one in self.all()):
            for name in [name for name in self._slots if name not in models]:
                self._remove(name)

    async def _watch(self) -> None:
        looked = time.monotonic()
        while True:
            await asyncio.sleep(min(SOON_S, self._settings.reload_s))
            settled = all(slot.settled for slot in self._slots.values())
            if settled and time.monotonic() < looked + self._settings.reload_s:
                continue
            looked = time.monotonic()
            look = asyncio.ensure_future(self.look())
            try:
                await asyncio.wait([look])
            finally:
                look.cancel()
                await asyncio.wait([look])
            if look.exception() is not None:
                log.error(
                    "a look at %s failed", self._settings.repository, exc_info=look.exception()
                )

    def _note(self, trouble: str | None) -> None:
        """Log that the folder cannot be looked at, once."""
        if trouble != self._trouble and trouble is not None:
            log.warning("serving from memory: %s", trouble)
        self._trouble = trouble

    def _add(self, folder: Path) -> Slot:
        slot = Slot(folder, self._open, self._retire, self._metrics)
        self._slots[slot.name] = slot
        return slot

    def _remove(self, name: str) -> None:
        log.info("%s leaves: its folder is gone", name)
        self._slots.pop(name).leave()
        self._metrics.model(name).forget()

    async def _open(self, folder: Path) -> Served:
        model = await asyncio.to_thread(open_model, folder)
        metrics = self._metrics.model(folder.parent.name)
        return await open_served(model, self._settings, self._open_backend, metrics)

    def _retire(self, served: Served) -> None:
        task = self._leaving[served] = asyncio.ensure_future(served.retire())
        task.add_done_callback(lambda _: self._left(served))

    def _left(self, served: Served) -> None:
        """Forget it; once nobody else knows of it either, its memory is given back."""
        self._leaving.pop(served, None)
        loop = asyncio.get_running_loop()
        loop.call_later(GIVE_BACK_S, loop.run_in_executor, None, give_back)
