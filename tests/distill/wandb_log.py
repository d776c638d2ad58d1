"""What W&B's own files hold, as JSON lines: `wandb_log.py FILE...`, with W&B to import.

A file is a log of LevelDB (its format: github.com/google/leveldb, doc/log_format.md) of protocol
buffers, whose first block begins with seven bytes of W&B's.
"""

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

BLOCK, HEADER = 32768, 7
WHOLE, LAST = 1, 4


def records(log: bytes) -> Iterator[bytes]:
    """The records of a log; a record may lie in several pieces, and no piece crosses a block."""
    at, record = HEADER, b""
    while at + HEADER <= len(log):
        rest = BLOCK - at % BLOCK
        if rest < HEADER:
            at += rest
            continue
        length, kind = struct.unpack_from("<HB", log, at + 4)
        record += log[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (WHOLE, LAST):
            yield record
            record = b""


def main() -> None:
    """Prints each line of figures, and the settings under the name "config"."""
    from wandb.proto.wandb_internal_pb2 import Record

    for path in sys.argv[1:]:
        for each in records(Path(path).read_bytes()):
            record = Record.FromString(each)
            for kind, items in (
                ("history", record.history.item),
                ("config", [*record.run.config.update, *record.config.update]),
            ):
                found = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}
                if found:
                    print(json.dumps({kind: found}))


if __name__ == "__main__":
    main()
