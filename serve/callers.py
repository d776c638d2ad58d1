"""Who asks, how urgently, and whether it is too much: all that hangs on the request's headers."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from serve.errors import (
    FieldError,
    InvalidParametersError,
    SettingsError,
    UnauthorizedError,
)
from serve.keys import KeyFile, find
from serve.rates import Rate, Rates, read_rate
from serve.settings import Settings
from serve.turn import ANYBODY, PRIORITIES, Priority, Turn

PRIORITY_HEADER = "X-Priority"
LOOK_S = 1.0  # between looks at the file of keys


@dataclass(frozen=True)
class Caller:
    """Who asks. A key that is for batch work stays behind; its owner cannot ask for more."""

    name: str
    rate: Rate | None = None
    priority: Priority | None = None

    def turn(self, headers: Mapping[str, str]) -> Turn:
        """The turn of a request; raises InvalidParametersError for a priority it cannot have."""
        given = headers.get(PRIORITY_HEADER)
        if given is None:
            return Turn(self.name, self.priority or "interactive")
        allowed = PRIORITIES if self.priority != "batch" else ("batch",)
        for priority in allowed:
            if given == priority:
                return Turn(self.name, priority)
        detail = f"is {given[:60]!r}, allowed for {self.name} is: {', '.join(allowed)}"
        raise InvalidParametersError.of(FieldError(PRIORITY_HEADER, detail))


class Callers:
    """Everybody who may ask: anybody, unless there is a file of keys."""

    def __init__(self, file: KeyFile | None = None, rate: Rate | None = None) -> None:
        """`rate` limits the keys that have no rate of their own."""
        self._file = file
        self._rate = rate
        self._rates = Rates() if file is not None else None
        self._following: asyncio.Task[None] | None = None

    @classmethod
    def of(cls, settings: Settings) -> "Callers":
        """The callers that the settings allow; raises SettingsError. It reads the file."""
        rate = None if settings.rate is None else read_rate(settings.rate, "rate")
        if settings.keys is not None:
            return cls(KeyFile(settings.keys), rate)
        if rate is not None:
            raise SettingsError(
                f"rate is {settings.rate!r} and there are no keys: a limit needs callers that can "
                "be told apart"
            )
        return cls()

    @property
    def told_apart(self) -> bool:
        """Whether callers have keys, so that each can be given its share."""
        return self._file is not None

    async def start(self) -> None:
        """Follow the file of keys: from now on, a change holds after a second."""
        if self._file is not None:
            self._following = asyncio.ensure_future(_follow(self._file))

    async def close(self) -> None:
        """Follow it no longer."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait([self._following])

    def identify(self, headers: Mapping[str, str]) -> Caller:
        """Who asks; raises UnauthorizedError where a key is needed and none that is known came."""
        if self._file is None:
            return Caller(ANYBODY)
        scheme, _, given = headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not given.strip():
            raise UnauthorizedError("a key is needed: send the header Authorization: Bearer KEY")
        key = find(self._file.keys, given.strip().encode("latin-1"))
        if key is None:
            raise UnauthorizedError("the key in the header Authorization is not known here")
        return Caller(key.name, key.rate or self._rate, key.priority)

    def charge(self, caller: Caller, pictures: int) -> None:
        """Count pictures of a caller; raises RateLimitedError, or InvalidParametersError.

        The former if they are too many now, the latter if they are more than the whole limit.
        """
        if self._rates is not None and caller.rate is not None:
            self._rates.charge(caller.name, caller.rate, pictures)


async def _follow(file: KeyFile) -> None:
    while True:
        await asyncio.sleep(LOOK_S)
        await asyncio.to_thread(file.look)
