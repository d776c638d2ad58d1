"""The file of API keys: who may ask, how much, and how urgently.

    [keys.alice]
    sha256 = "<SHA-256 of the key, 64 hexadecimal digits>"
    rate = "600/minute"
    priority = "batch"

The keys themselves are nowhere kept. They are made at random, 256 bits each, so that one plain hash
is enough: there is nothing that a dictionary of likely keys could hit.
"""

import hashlib
import hmac
import logging
import re
import secrets
import stat
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from serve.errors import SettingsError
from serve.rates import Rate, read_rate
from serve.turn import PRIORITIES, Priority

NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
DIGEST = re.compile(r"[0-9A-Fa-f]{64}")
FIELDS = ("sha256", "rate", "priority")
PREFIX = "sp_"  # so that tools which look for leaked keys know one when they see it

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Key:
    """What the file says of one key; without a rate or a priority, none is set."""

    name: str
    digest: bytes
    rate: Rate | None = None
    priority: Priority | None = None


def make_key(name: str) -> tuple[str, str]:
    """A new key, and the lines that let it in when they are added to the file.

    Raises SettingsError for a name that cannot stand there.
    """
    _check_name(name, "of the new key")
    key = PREFIX + secrets.token_urlsafe(32)
    table = name if "." not in name else f'"{name}"'
    return key, f'[keys.{table}]\nsha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\n'


def find(keys: Iterable[Key], given: bytes) -> Key | None:
    """The key that was given. It takes the same time whichever it is, and if it is none."""
    digest, found = hashlib.sha256(given).digest(), None
    for key in keys:
        if hmac.compare_digest(key.digest, digest):
            found = key
    return found


def read_keys(path: Path) -> tuple[Key, ...]:
    """All keys of a file; raises SettingsError, which never quotes what might be a key."""
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"the keys {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"the keys {path} are not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"the keys {path} are not TOML: {error}") from None
    tables = content.pop("keys", None)
    if content:
        raise SettingsError(f"the keys {path} have {next(iter(content))!r}, allowed is [keys.NAME]")
    if not isinstance(tables, dict) or not tables:
        raise SettingsError(f"the keys {path} hold no key: allowed are tables [keys.NAME]")
    keys = tuple(_key(name, table, f"in {path}") for name, table in tables.items())
    _check_apart(keys, path)
    return keys


class KeyFile:
    """The keys of a file, as they were when it was last whole."""

    def __init__(self, path: Path) -> None:
        """Read it; raises SettingsError."""
        self._path = path
        self._seen = _signature(path)
        self.keys = read_keys(path)
        if path.stat().st_mode & stat.S_IROTH:
            log.warning("everybody on this machine can read the keys %s", path)

    def look(self) -> None:
        """Read it again if it has changed; where it is broken, that is logged and nothing changes.

        Blocks: it reads a disk.
        """
        seen = _signature(self._path)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self.keys = read_keys(self._path)
        except SettingsError as error:
            log.error("the keys stay as they were: %s", error)
            return
        log.info("%d keys are let in, as %s says now", len(self.keys), self._path)


def _signature(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file does; None if it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _key(name: str, table: object, where: str) -> Key:
    _check_name(name, where)
    where = f"keys.{name} {where}"
    if not isinstance(table, Mapping):
        raise SettingsError(f"{where} is no table")
    unknown = [field for field in table if field not in FIELDS]
    if unknown:
        raise SettingsError(f"{where} has {unknown[0]!r}, allowed are: {', '.join(FIELDS)}")
    digest, rate, priority = (table.get(field) for field in FIELDS)
    if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        raise SettingsError(f"sha256 of {where} must be 64 hexadecimal digits, quoted")
    if rate is not None and not isinstance(rate, str):
        raise SettingsError(f"rate of {where} is {rate!r}, allowed is text as in '600/minute'")
    if priority is not None and priority not in PRIORITIES:
        raise SettingsError(
            f"priority of {where} is {priority!r}, allowed are: {', '.join(PRIORITIES)}"
        )
    limit = None if rate is None else read_rate(rate, f"rate of {where}")
    return Key(name, bytes.fromhex(digest), limit, priority)


def _check_name(name: str, where: str) -> None:
    if name.startswith(PREFIX):  # it would stand in every line of the log
        raise SettingsError(f"a name {where} begins with {PREFIX}: is that the key itself?")
    if not NAME.fullmatch(name):
        detail = "allowed are 1 to 64 letters, digits and . _ -"
        raise SettingsError(f"the name {name[:80]!r} {where} is no name of a key, {detail}")


def _check_apart(keys: tuple[Key, ...], path: Path) -> None:
    names: dict[bytes, str] = {}
    for key in keys:
        if key.digest in names:
            raise SettingsError(
                f"keys.{names[key.digest]} and keys.{key.name} in {path} are the same key"
            )
        names[key.digest] = key.name
