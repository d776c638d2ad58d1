"""A picture is a pure function: the name of its value, known before it is computed."""

import hashlib
import json
import re
from collections.abc import Iterable

import serve
from serve.generate import Order
from serve.images import encoder_versions
from serve.model import Model

ENTITY_TAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')


def identity(order: Order, model: Model) -> str:
    """SHA-256 in hex over all that the bytes of an order's pictures hang on.

    The artefact, its name, prompt or class, seeds, size, format, quality, this release, encoders.
    """
    parts = (
        model.manifest.digest,
        model.label,
        order.subject,
        order.seeds,
        order.size,
        order.format,
        order.quality,
        serve.__version__,
        encoder_versions(),
    )
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def entity_tag(identity: str, media_type: str) -> str:
    """The strong entity tag of those pictures in an answer of a media type."""
    return f'"{hashlib.sha256(f"{identity} {media_type}".encode()).hexdigest()[:40]}"'


def matches(if_none_match: Iterable[str], tag: str) -> bool:
    """Whether one of these lines of If-None-Match lists the tag, or is `*`.

    A weak one compares as a strong one.
    """
    return any(line.strip() == "*" or tag in ENTITY_TAG.findall(line) for line in if_none_match)
