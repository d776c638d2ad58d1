"""Who asks, how urgently, and whether it is too much: all that hangs on the request's headers."""

from collections.abc import Mapping
from dataclasses import dataclass

from serve.errors import FieldError, InvalidParametersError
from serve.settings import Settings
from serve.turn import ANYBODY, Priority, Turn

PRIORITY_HEADER = "X-Priority"
PRIORITIES: dict[str, Priority] = {"interactive": "interactive", "batch": "batch"}


@dataclass(frozen=True)
class Caller:
    """Who asks; `only` is the priority that its key is bound to, if any."""

    name: str
    only: Priority | None = None

    def turn(self, headers: Mapping[str, str]) -> Turn:
        """The turn of a request; raises InvalidParametersError for a priority that is none."""
        given = headers.get(PRIORITY_HEADER, "interactive")
        if given not in PRIORITIES:
            detail = f"is {given[:60]!r}, allowed are: {', '.join(PRIORITIES)}"
            raise InvalidParametersError.of(FieldError(PRIORITY_HEADER, detail))
        return Turn(self.name, self.only or PRIORITIES[given])


class Callers:
    """Everybody who may ask: anybody, unless the settings name a file of keys."""

    @classmethod
    def of(cls, settings: Settings) -> "Callers":
        """The callers that the settings allow; raises SettingsError."""
        return cls()

    @property
    def told_apart(self) -> bool:
        """Whether callers have keys, so that each can be given its share."""
        return False

    async def start(self) -> None:
        """Follow the file of keys."""

    async def close(self) -> None:
        """Follow it no longer."""

    def identify(self, headers: Mapping[str, str]) -> Caller:
        """Who asks; raises UnauthorizedError where a key is needed and none that is known came."""
        return Caller(ANYBODY)

    def charge(self, caller: Caller, pictures: int) -> None:
        """Count pictures of a caller; raises RateLimitedError where these would be too many."""
