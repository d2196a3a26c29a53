"""Reads what decides whether a phone or a board can load a program: the headers of a 64-bit ELF file."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from hwnas.errors import UsageError

MACHINES = {62: "x86_64", 183: "aarch64"}
"""ELF machine number -> name, as ``uname -m`` gives it."""

LEAST_ALIGNMENT = {"x86_64": 4096, "aarch64": 16384}
"""Machine -> bytes of a page; arm64 kernels may have pages of 16 KiB (Android 15) and load nothing aligned to less."""

_LOAD, _DYNAMIC, _STACK = 1, 2, 0x6474E551
_NEEDED, _STRING_TABLE, _SONAME, _TEXTREL, _FLAGS = 1, 5, 14, 22, 30
_EXECUTABLE, _FLAG_TEXTREL = 1, 4


@dataclass(frozen=True)
class Elf:
    """One program or library.

    Args:
        machine: As ``uname -m`` gives it, or the number of another one.
        alignment: Smallest of the loaded segments, bytes.
        needed: File names of the libraries it asks for.
        soname: Name it is asked for by; empty for a program.
        text_relocations: Whether the loader would have to write to its code, which Android forbids.
        executable_stack: Whether it asks for one, which SELinux forbids.
    """

    machine: str
    alignment: int
    needed: tuple[str, ...]
    soname: str
    text_relocations: bool
    executable_stack: bool


@dataclass(frozen=True)
class _Segment:
    kind: int
    flags: int
    offset: int
    address: int
    size: int
    alignment: int


def read_elf(content: bytes) -> Elf:
    """The headers of a file.

    Raises:
        UsageError: It is no 64-bit little-endian ELF file, or it is cut.
    """
    if content[:6] != b"\x7fELF\x02\x01":
        raise UsageError("the file is no 64-bit little-endian ELF program or library.")
    try:
        (machine,) = struct.unpack_from("<H", content, 18)
        segments = list(_segments(content))
        loaded = [each for each in segments if each.kind == _LOAD]
        dynamic = [entry for each in segments if each.kind == _DYNAMIC for entry in _entries(content, each)]
        first = dict(reversed(dynamic))
        names = _file_offset(loaded, first[_STRING_TABLE]) if _STRING_TABLE in first else 0
        needed = tuple(_text(content, names + value) for tag, value in dynamic if tag == _NEEDED)
        soname = _text(content, names + first[_SONAME]) if _SONAME in first else ""
    except (struct.error, ValueError) as error:
        raise UsageError(f"the ELF file is cut or malformed ({error}). Fetch it again.") from error
    return Elf(
        machine=MACHINES.get(machine, str(machine)),
        alignment=min((each.alignment for each in loaded), default=0),
        needed=needed,
        soname=soname,
        text_relocations=_TEXTREL in first or bool(first.get(_FLAGS, 0) & _FLAG_TEXTREL),
        executable_stack=any(each.kind == _STACK and each.flags & _EXECUTABLE for each in segments),
    )


def faults(elf: Elf, machine: str) -> list[str]:
    """Why a device of that machine would not load the file; empty if it would."""
    found = []
    if elf.machine != machine:
        found.append(f"it is for {elf.machine}, not for {machine}")
    least = LEAST_ALIGNMENT[machine]
    if elf.alignment < least:
        found.append(f"its segments are aligned to {elf.alignment} bytes; kernels with large pages need {least}")
    if elf.text_relocations:
        found.append("it has text relocations, which Android forbids")
    if elf.executable_stack:
        found.append("it asks for an executable stack, which SELinux forbids")
    return found


def _segments(content: bytes) -> Iterator[_Segment]:
    (offset,) = struct.unpack_from("<Q", content, 32)
    size, count = struct.unpack_from("<HH", content, 54)
    for i in range(count):
        kind, flags, start, address, _, length, _, alignment = struct.unpack_from(
            "<IIQQQQQQ", content, offset + i * size
        )
        yield _Segment(kind, flags, start, address, length, alignment)


def _entries(content: bytes, dynamic: _Segment) -> Iterator[tuple[int, int]]:
    for at in range(dynamic.offset, dynamic.offset + dynamic.size, 16):
        tag, value = struct.unpack_from("<qQ", content, at)
        if tag == 0:
            return
        yield tag, value


def _file_offset(loaded: list[_Segment], address: int) -> int:
    for segment in loaded:
        if segment.address <= address < segment.address + segment.size:
            return address - segment.address + segment.offset
    raise ValueError("its string table is in no segment")


def _text(content: bytes, start: int) -> str:
    return content[start : content.index(b"\0", start)].decode()
