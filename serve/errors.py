"""Everything that `serve` raises on purpose: one tree. `problems` maps it to HTTP statuses."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FieldError:
    """One field of a request that was refused: its name and one sentence why."""

    name: str
    detail: str


class ServeError(Exception):
    """Root of the tree. Its text is one clear sentence, fit for a user to read."""


class SettingsError(ServeError):
    """A setting has an impossible value; the text names it, its value and what is allowed."""


class RepositoryError(ServeError):
    """The model repository, or a version in it, is missing, half written or inconsistent."""


class RequestError(ServeError):
    """The request can never be answered as it stands; sending it again does not help."""

    def __init__(self, detail: str, errors: tuple[FieldError, ...] = ()) -> None:
        super().__init__(detail)
        self.errors = errors


class MalformedBodyError(RequestError):
    """The body is not JSON."""


class UnsupportedMediaTypeError(RequestError):
    """The body has a Content-Type other than application/json."""


class BodyTooSlowError(RequestError):
    """The body took longer to arrive than the settings allow."""


class BodyTooLargeError(RequestError):
    """The body is larger than the settings allow."""


class InvalidParametersError(RequestError):
    """Fields are unknown, not supported or have impossible values; `errors` names them."""

    @classmethod
    def of(cls, *errors: FieldError) -> "InvalidParametersError":
        """The error whose sentence is made of those of its fields."""
        return cls("; ".join(f"{error.name}: {error.detail}" for error in errors), errors)


class UnauthorizedError(RequestError):
    """The gateway has keys, and the request brought none that it knows."""


class UnknownModelError(RequestError):
    """The model that was asked for is not served here."""


class RetryableError(ServeError):
    """Not now: the same request may be answered after `retry_after_s` seconds."""

    def __init__(self, detail: str, retry_after_s: float) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class QueueFullError(RetryableError):
    """The gateway has accepted as many pictures as its settings allow."""


class RateLimitedError(RetryableError):
    """The caller has had as many pictures as its key allows in this time."""


class DeadlineError(RetryableError):
    """The pictures could not be ready before the caller's deadline."""


class NotReadyError(RetryableError):
    """The gateway is starting, or draining before it stops."""


class InferenceError(ServeError):
    """The back end failed on a batch; the cause is in the log, not in the answer."""
