"""A shared library without a compiler: functions of no argument that give 0, by their names.

The layout is the least that a Linux loader takes: one page with the tables and the code, one page
with the dynamic section. Elf64, little endian.
"""

import platform
import struct
from collections.abc import Sequence
from pathlib import Path

PAGE = 0x10000  # the largest that a Linux kernel uses
MACHINES = {  # its number in ELF, and the code of `return 0`
    "x86_64": (62, bytes.fromhex("31c0c3")),
    "aarch64": (183, bytes.fromhex("000080d2c0035fd6")),
}
HASH, STRTAB, SYMTAB, STRSZ, SYMENT, SONAME = 4, 5, 6, 10, 11, 14
LOAD, DYNAMIC, STACK = 1, 2, 0x6474E551
READ, WRITE, RUN = 4, 2, 1


def write_library(file: Path, functions: Sequence[str]) -> None:
    """Write `file`, whose name is also its soname."""
    machine, code = MACHINES[platform.machine()]
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in (*functions, file.name))
    headers = 64 + 4 * 56
    code_at = headers
    strings_at = code_at + 16
    symbols_at = -(-(strings_at + len(strings)) // 8) * 8
    hash_at = symbols_at + 24 * (len(functions) + 1)
    symbols, name_at = bytes(24), 1
    for name in functions:
        symbols += struct.pack("<IBBHQQ", name_at, 0x12, 0, 1, code_at, len(code))
        name_at += len(name) + 1
    table = _hash_table(len(functions))
    entries = {
        HASH: hash_at,
        STRTAB: strings_at,
        SYMTAB: symbols_at,
        STRSZ: len(strings),
        SYMENT: 24,
        SONAME: name_at,
    }
    dynamic = b"".join(struct.pack("<QQ", *entry) for entry in (*entries.items(), (0, 0)))
    page = bytearray(PAGE)
    length = hash_at + len(table)
    assert length <= PAGE, f"{length} bytes of tables; a page has {PAGE}"
    for at, part in (
        (0, _file_header(machine)),
        (64, _segment(LOAD, READ | RUN, 0, length)),
        (120, _segment(LOAD, READ | WRITE, PAGE, len(dynamic))),
        (176, _segment(DYNAMIC, READ | WRITE, PAGE, len(dynamic))),
        (232, _segment(STACK, READ | WRITE, 0, 0)),
        (code_at, code),
        (strings_at, strings),
        (symbols_at, symbols),
        (hash_at, table),
    ):
        page[at : at + len(part)] = part
    file.write_bytes(bytes(page) + dynamic)


def _file_header(machine: int) -> bytes:
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    return ident + struct.pack("<HHIQQQIHHHHHH", 3, machine, 1, 0, 64, 0, 0, 64, 56, 4, 0, 0, 0)


def _segment(kind: int, flags: int, at: int, length: int) -> bytes:
    """Mapped where it lies in the file."""
    return struct.pack("<IIQQQQQQ", kind, flags, at, at, at, length, length, PAGE)


def _hash_table(functions: int) -> bytes:
    """One bucket: every symbol in one chain, the last pointing at none."""
    chain = [0, *range(2, functions + 1), 0]
    return struct.pack(f"<{3 + len(chain)}I", 1, len(chain), 1, *chain)
