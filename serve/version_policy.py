"""Which versions of a model are served: Triton's `version_policy` in `config.pbtxt`, read as it is.

So a rollback is one change in one file, which Triton and the gateway obey alike.
"""

from collections.abc import Sequence
from pathlib import Path

from serve import pbtxt
from serve.errors import RepositoryError

CONFIG = "config.pbtxt"


def served(model: Path, present: Sequence[int]) -> list[int]:
    """Those of the versions `present` in the model's folder that may be served, the newest first.

    The newest so many, the ones that are named, or all, as the policy says. Where there is none, or
    no config, all: the newest that is whole is served.
    """
    newest_first = sorted(present, reverse=True)
    file = model / CONFIG
    if not file.is_file():
        return newest_first
    try:
        config = pbtxt.parse(file.read_text(encoding="utf-8"))
        newest, pinned = _newest(config), _pinned(config)
    except (OSError, ValueError) as error:
        raise RepositoryError(f"{file} cannot be read: {error}") from None
    if pinned is None:
        return newest_first[:newest]
    if not pinned & {*present}:
        names, held = (", ".join(map(str, sorted(v))) or "none" for v in (pinned, present))
        raise RepositoryError(f"{file} serves the versions {names}; the folder holds {held}")
    return [version for version in newest_first if version in pinned]


def _newest(config: pbtxt.Message) -> int | None:
    """How many of the newest versions the config loads, or None if it does not say."""
    latest = [part for policy in _policies(config, "latest") for part in policy["latest"]]
    if not latest:
        return None
    return max(1, *(int(count) for part in latest for count in part.get("num_versions", ["1"])))


def _pinned(config: pbtxt.Message) -> set[int] | None:
    """The versions that the config names, or None if it names none."""
    policies = _policies(config, "specific")
    if not policies:
        return None
    specific = [part for policy in policies for part in policy["specific"]]
    return {int(version) for part in specific for version in part.get("versions", [])}


def _policies(config: pbtxt.Message, choice: str) -> list[pbtxt.Message]:
    return [policy for policy in config.get("version_policy", []) if choice in policy]
