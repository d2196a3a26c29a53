"""A command on a device, and how its end is known for certain.

Old adb loses exit codes, a cut connection looks like success to newer ones, and ssh answers 255 in either case. So
every command runs below a few lines of shell that print a random mark before it, and the mark and the exit code after
it. What comes before the first mark is a login shell's greeting; without the second there was no end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from .client import Client
from .errors import TransportError

WATCHED = """t=$1; shift
printf '\\036%s\\n' "$t"
exec 3<&0
trap 'kill -9 $!; exit' HUP TERM
"$@" </dev/null 3<&- & p=$!
trap 'kill -9 $p' HUP TERM
(cat <&3; kill -9 $p) >/dev/null 2>&1 & w=$!
exec 3<&-
wait $p; c=$?
kill -9 $w 2>/dev/null
printf '\\036%s %d\\n' "$t" $c"""
"""Runs a command without input; it dies when the input of this shell ends, that is, when our side goes away.

The first trap is for a signal that comes before the command's number is known. The watcher needs signal 9: mksh has a
``cat`` of its own, which goes on after others.
"""

FED = """t=$1; shift
printf '\\036%s\\n' "$t"
"$@"
printf '\\036%s %d\\n' "$t" $?"""
"""Runs a command that reads our input."""

SINGLE = """t=$1 i=$2 e=$3; shift 3
printf '\\036%s\\n' "$t"
(: >"$e") 2>/dev/null || e=/dev/null
trap 'kill -9 $!; exit' HUP TERM
"$@" <"$i" 2>"$e" & p=$!
trap 'kill -9 $p' HUP TERM
wait $p; c=$?
printf '\\036%s %d\\n' "$t" $c
[ "$e" = /dev/null ] || { cat "$e"; rm -f "$e"; }
[ "$i" = /dev/null ] || rm -f "$i\""""
"""For a connection with one stream from the device and none to it: standard error follows the mark."""


class Running:
    """A command that runs on a device. A context manager: leaving it ends the command.

    Args:
        client: The program that speaks with the device.
        token: The mark's random part.
        broken: Builds the error for an end without a mark, from what the client said.
        single: Standard error follows the mark.
    """

    def __init__(
        self, client: Client, token: str, broken: Callable[[str], TransportError], *, single: bool = False
    ) -> None:
        self._client, self._broken, self._single = client, broken, single
        self._first, self._mark = f"\x1e{token}\n".encode(), f"\x1e{token} ".encode()
        self._begun, self._kept = False, b""
        self._lines = self._split()
        self._code: int | None = None
        self._err = b""

    def pieces(self) -> Iterator[bytes]:
        """Standard output as it comes.

        Raises:
            LostError: The connection broke; another ``TransportError`` says what else went wrong.
            DeadlineError: The deadline has passed; the command has been stopped.
        """
        while self._code is None and (piece := self._client.read()):
            self._kept += piece
            if not self._begun:
                _, first, rest = self._kept.partition(self._first)
                if not first:
                    continue
                self._begun, self._kept = True, rest
            before, mark, after = self._kept.partition(self._mark)
            start = before.rfind(b"\x1e")
            whole = len(before) if mark or start < 0 or not self._mark.startswith(before[start:]) else start
            self._kept = before[whole:]
            if mark:
                self._finished(after)
            if whole:
                yield before[:whole]
        if self._code is None:
            self._client.close()
            rest, self._kept = self._kept, b""
            if self._begun and rest:
                yield rest
            raise self._broken(self._client.err + ("" if self._begun else rest.decode(errors="replace")))

    def lines(self) -> Iterator[str]:
        """Lines of standard output as they come, without their ends; raises as ``pieces`` does."""
        return self._lines

    def _split(self) -> Iterator[str]:
        kept = b""
        for piece in self.pieces():
            *whole, kept = (kept + piece).split(b"\n")
            yield from (line.decode(errors="replace") for line in whole)
        if kept:
            yield kept.decode(errors="replace")

    def end(self) -> int:
        """Waits for the end, and drops unread output; the exit code, 128 + n after signal n."""
        for _ in self.pieces():
            pass
        assert self._code is not None
        return self._code

    @property
    def err(self) -> str:
        """Standard error so far (over a connection with a single stream: empty until the end)."""
        return self._err.decode(errors="replace") + self._client.err

    def kill(self) -> None:
        """Ends the command on the device."""
        self._client.close()

    def _finished(self, tail: bytes) -> None:
        """Reads the code; waits for nothing more than is needed, as another process may hold the output open."""
        while (self._single or b"\n" not in tail) and (piece := self._client.read()):
            tail += piece
        code, newline, self._err = tail.partition(b"\n")
        if newline:  # otherwise the connection broke within the number
            self._code = int(code)
            self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.kill()
