"""Which versions of a model are served: Triton's `version_policy` in `config.pbtxt`, read as it is.

So a rollback is one change in one file, which Triton and the gateway obey alike.
"""

from collections.abc import Sequence
from pathlib import Path

from serve import pbtxt
from serve.errors import RepositoryError

CONFIG = "config.pbtxt"


def served(model: Path, present: Sequence[int]) -> list[int]:
    """Those of the versions `present` in the model's folder that may be served, in their order.

    All of them, unless the policy names specific ones; a folder without a config has no policy.
    """
    file = model / CONFIG
    if not file.is_file():
        return list(present)
    try:
        pinned = _pinned(pbtxt.parse(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise RepositoryError(f"{file} cannot be read: {error}") from None
    if pinned is None:
        return list(present)
    if not pinned & {*present}:
        names, held = (", ".join(map(str, sorted(v))) or "none" for v in (pinned, present))
        raise RepositoryError(f"{file} serves the versions {names}; the folder holds {held}")
    return [version for version in present if version in pinned]


def _pinned(config: pbtxt.Message) -> set[int] | None:
    """The versions that the config names, or None if it names none."""
    policies = [policy for policy in config.get("version_policy", []) if "specific" in policy]
    if not policies:
        return None
    specific = [part for policy in policies for part in policy["specific"]]
    return {int(version) for part in specific for version in part.get("versions", [])}
