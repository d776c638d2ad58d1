"""Triton's refusals as errors of our tree: the one table.

Triton gives several different refusals the gRPC status UNAVAILABLE; only the words tell them apart.
"""

import logging
from typing import NamedTuple

from serve.errors import (
    DeadlineError,
    InferenceError,
    NotReadyError,
    QueueFullError,
    RetryableError,
    ServeError,
)

log = logging.getLogger(__name__)


class Row(NamedTuple):
    """A refusal with this gRPC status whose message holds these words, and what it is here."""

    status: str
    words: str  # lower case; "" is in every message
    error: type[RetryableError]
    detail: str


# The first row that fits decides; what fits none is a failure on the picture.
TABLE = (
    Row("DEADLINE_EXCEEDED", "", DeadlineError, "Triton did not answer before the deadline"),
    Row("UNAVAILABLE", "timeout expired", DeadlineError, "the deadline passed in Triton's queue"),
    Row("UNAVAILABLE", "maximum queue size", QueueFullError, "Triton's queue is full"),
    Row("UNAVAILABLE", "", NotReadyError, "Triton cannot be reached or does not serve the model"),
    Row("NOT_FOUND", "", NotReadyError, "Triton does not have this version of the model"),
    Row("CANCELLED", "", NotReadyError, "Triton stopped before this could be answered"),
)


def error_of(status: str, message: str, retry_after_s: float) -> ServeError:
    """The error for a refused picture. `status` is gRPC's, as in "UNAVAILABLE"."""
    for row in TABLE:
        if row.status == status and row.words in message.lower():
            return row.error(row.detail, retry_after_s)
    log.error("Triton failed on a picture: %s: %s", status, message)
    return InferenceError("Triton failed on this picture; the log says why")
