"""The Accept header: whether JSON is asked for, and which format of picture is liked best."""

import re

from serve.images import FORMATS, MEDIA_TYPES, Format

JSON = "application/json"
WEIGHT = re.compile(r"q=(?:0(?:\.\d{0,3})?|1(?:\.0{0,3})?)")


def wants_json(accept: str) -> bool:
    """Whether the header lists application/json by name, and not with q=0."""
    return _weights(accept).get(JSON, 0.0) > 0


def best_format(accept: str) -> Format:
    """The format of the highest weight; png where several have it, or the header has none."""
    weights = _weights(accept)
    return max(FORMATS, key=lambda format: _weight(weights, MEDIA_TYPES[format]))


def _weight(weights: dict[str, float], media_type: str) -> float:
    """That of the most specific range that holds the media type; 0 without one."""
    ranges = (media_type, media_type.partition("/")[0] + "/*", "*/*")
    return next((weights[name] for name in ranges if name in weights), 0.0)


def _weights(accept: str) -> dict[str, float]:
    """Media ranges and their q; an entry whose q is no weight is passed over."""
    weights = {}
    for entry in accept.lower().split(","):
        media_range, *parameters = (part.strip() for part in entry.split(";"))
        weight = next((part for part in parameters if part.startswith("q=")), "q=1")
        if WEIGHT.fullmatch(weight):
            weights[media_range] = float(weight.removeprefix("q="))
    return weights
