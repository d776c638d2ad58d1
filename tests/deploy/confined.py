"""A root of its own for one process, confined as docker-compose.yml says, without an engine.

Mount and process namespaces by `unshare`, a read-only root with only /tmp to write to, another
user, no capabilities, no new privileges, and the process is the first one. It takes root on Linux.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from watched_gateway import eventually, stopped_after

NEEDED = ("unshare", "setpriv", "chroot", "mount")
# $1 the new root, $2 user, then TARGET=SOURCE of what is mounted read-only, `--`, and the command
ENTER = """
set -e
new=$1 user=$2; shift 2
mount --make-rprivate /
mount -t tmpfs -o mode=755 root "$new"
mkdir -p "$new/proc" "$new/tmp"
mount -t tmpfs -o size=64m,mode=1777 tmp "$new/tmp"  # first: what is mounted may lie below it
while [ "$1" != -- ]; do
    source=${1#*=} target=$new${1%%=*}
    if [ -d "$source" ]; then mkdir -p "$target"; else mkdir -p "${target%/*}"; touch "$target"; fi
    mount --rbind "$source" "$target"
    case $source in /dev/*) ;; *) mount -o remount,bind,ro "$target" ;; esac
    shift
done
shift
for link in bin lib lib64; do [ -L /$link ] && cp -P /$link "$new/$link"; done
mount -t proc proc "$new/proc"
mount -o remount,ro "$new"
exec chroot "$new" /usr/bin/setpriv --reuid "$user" --regid "$user" --clear-groups \
    --no-new-privs --inh-caps=-all --bounding-set=-all -- "$@"
"""


class Confined(NamedTuple):
    """A confined process: what it prints, and its number outside."""

    process: "subprocess.Popen[str]"
    pid: int

    def status(self) -> dict[str, str]:
        """/proc/PID/status."""
        lines = Path(f"/proc/{self.pid}/status").read_text("ascii").splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def mounts(self) -> dict[str, set[str]]:
        """The options of each mount point that it sees."""
        lines = Path(f"/proc/{self.pid}/mountinfo").read_text("ascii").splitlines()
        return {line.split()[4]: set(line.split()[5].split(",")) for line in lines}


@contextmanager
def confined(
    folder: Path, user: int, mounted: Mapping[str, Path], command: list[str], env: Mapping[str, str]
) -> Iterator[Confined]:
    """Start a command in a root where each target of `mounted` shows its source, read-only.

    Skips where such a root cannot be made.
    """
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing or os.geteuid() != 0 or subprocess.run(["unshare", "--mount", "true"]).returncode:
        pytest.skip(f"a root of its own takes root, the right to mount, and {', '.join(NEEDED)}")
    seen = {f"/dev/{name}": f"/dev/{name}" for name in ("null", "urandom")}
    seen |= {"/usr": "/usr", sys.base_prefix: sys.base_prefix}
    seen |= {target: str(source) for target, source in mounted.items()}
    pairs = [f"{target}={source}" for target, source in seen.items()]
    unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "/bin/sh", "-c", ENTER]
    process = subprocess.Popen(
        [*unshare, "sh", str(folder), str(user), *pairs, "--", *command],
        env=dict(env),
        stdout=subprocess.PIPE,
        text=True,
    )
    with stopped_after(process):
        own = Confined(process, _child(process.pid))
        try:
            yield own
        finally:  # `unshare` waits for it, whatever it is told
            with suppress(ProcessLookupError):
                os.kill(own.pid, signal.SIGKILL)


def _child(pid: int) -> int:
    """The one child of a process, once there is one."""
    file = Path(f"/proc/{pid}/task/{pid}/children")
    eventually(lambda: bool(file.read_text("ascii")), 10, "the command was not started")
    return int(file.read_text("ascii").split()[0])
