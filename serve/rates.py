"""So many pictures in a time: what a key's limit says, and how much of it has been used.

The counter slides: of the window before this one, as much counts as still lies within one period.
It takes the same memory whatever the limit; a clock that is set back costs nobody more
than a window.
"""

import limits
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from serve.errors import FieldError, InvalidParametersError, RateLimitedError, SettingsError

MOMENT_S = 1e-3  # after the time at which a limit is met exactly, it is kept

Rate = limits.RateLimitItem


def read_rate(text: str, where: str) -> Rate:
    """A limit as in "600/minute" or "50 per 2 hours"; raises SettingsError, which says `where`."""
    try:
        (rate,) = limits.parse_many(text)
    except ValueError:
        rate = None
    if rate is None or rate.amount < 1:
        raise SettingsError(
            f"{where} is {text!r}, allowed are such as 600/minute or 50 per 2 hours"
        )
    return rate


def words(rate: Rate) -> str:
    """The limit for people: 600 pictures per minute."""
    unit = rate.GRANULARITY.name
    period = unit if rate.multiples == 1 else f"{rate.multiples} {unit}s"
    return f"{rate.amount} pictures per {period}"


class Rates:
    """What each caller has had lately, in this process."""

    def __init__(self) -> None:
        self._storage = MemoryStorage()
        self._limiter = SlidingWindowCounterRateLimiter(self._storage)

    def charge(self, caller: str, rate: Rate, pictures: int) -> None:
        """Count them; raises RateLimitedError if they are too many now, and then counts none.

        Raises InvalidParametersError where they are more than the limit itself.
        """
        if pictures > rate.amount:
            detail = f"is {pictures}, the key {caller!r} may have {words(rate)}"
            raise InvalidParametersError.of(FieldError("num_images", detail))
        if self._limiter.hit(rate, caller, cost=pictures):
            return
        wait_s = self.wait_s(caller, rate, pictures)
        raise RateLimitedError(
            f"the key {caller!r} may have {words(rate)}, and {pictures} more would be too many for "
            f"another {wait_s:.1f} s",
            retry_after_s=wait_s,
        )

    def wait_s(self, caller: str, rate: Rate, pictures: int) -> float:
        """Seconds until that many pass, if the caller asks for none before."""
        period_s = rate.get_expiry()
        had = self._storage.get_sliding_window(rate.key_for(caller), period_s)
        before, fades_s, current, expires_s = had
        room = rate.amount - pictures + 1  # what counts must be less
        if current < room:
            left = fades_s - period_s * (room - current) / before if before else 0.0
        else:  # only in the next window, of which it is then the one before
            left = expires_s - period_s + period_s * (1 - room / current)
        return max(0.0, left) + MOMENT_S
