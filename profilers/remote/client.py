"""One program of this computer that speaks with a device; it never outlives its deadline."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO, NoReturn, Self

from .errors import DeadlineError, MissingToolError

GRACE_S = 1.0
"""How long a client may take to pass the end of its input on to the device."""


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code (128 + n after signal n), standard output, standard error."""

    code: int
    out: bytes
    err: str


class Client:
    """A running program. Its input is a file, or a pipe that stays open until ``close``.

    Standard error goes to a file: nothing waits for it, and a daemon that inherits it blocks nobody.

    Args:
        words: The program and its arguments.
        deadline_s: Seconds from now; later reads raise.
        renewed: The deadline counts from the last output instead.
        stdin: What the program reads, from the current position.
        grace_s: How long ``close`` waits until it kills the program.

    Raises:
        MissingToolError: There is no such program.
    """

    def __init__(
        self,
        words: Sequence[str],
        *,
        deadline_s: float,
        renewed: bool = False,
        stdin: IO[bytes] | None = None,
        grace_s: float = GRACE_S,
    ) -> None:
        self.words, self.deadline_s, self.renewed, self.grace_s = list(words), deadline_s, renewed, grace_s
        self._until = time.monotonic() + deadline_s
        self._err = tempfile.TemporaryFile()  # noqa: SIM115  closed by close()
        reader, self._held = os.pipe() if stdin is None else (stdin.fileno(), -1)
        try:
            self._process = subprocess.Popen(
                self.words, stdin=reader, stdout=subprocess.PIPE, stderr=self._err, start_new_session=True
            )
        except OSError as error:
            self._release()
            self._err.close()
            raise MissingToolError(
                f"cannot start '{self.words[0]}' ({error.strerror}); install it, or put it on the PATH."
            ) from error
        finally:
            if stdin is None:
                os.close(reader)

    def read(self) -> bytes:
        """The next piece of standard output; empty at its end.

        Raises:
            DeadlineError: Nothing came in time. The program has been stopped.
        """
        assert self._process.stdout is not None
        poll = select.poll()
        poll.register(self._process.stdout, select.POLLIN)
        if not poll.poll(max(0.0, self._until - time.monotonic()) * 1000):
            self._late()
        if self.renewed:
            self._until = time.monotonic() + self.deadline_s
        return os.read(self._process.stdout.fileno(), 1 << 16)

    def end(self) -> int:
        """Waits for the end of the program; its exit code."""
        try:
            code = self._process.wait(max(0.0, self._until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._late()
        return code if code >= 0 else 128 - code

    @property
    def err(self) -> str:
        """Standard error so far; after ``close``, what it was then."""
        if self._err.closed:
            return self._said
        size = os.fstat(self._err.fileno()).st_size
        return os.pread(self._err.fileno(), size, 0).decode(errors="replace")

    def close(self) -> None:
        """Ends the input, which ends the command on the device, and then the program."""
        if self._err.closed:
            return
        self._release()
        try:
            self._process.wait(self.grace_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._said = self.err
        self._err.close()

    def _release(self) -> None:
        if self._held >= 0:
            os.close(self._held)
            self._held = -1

    def _late(self) -> NoReturn:
        self.close()
        tail = f" (it said: {self.err.strip()[-200:]})" if self.err.strip() else ""
        raise DeadlineError(
            f"'{self.words[0]}' got no answer from the device within {self.deadline_s:g} s{tail}. "
            "Look whether the device is awake and connected, then try again."
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def finish(words: Sequence[str], *, timeout_s: float, stdin: IO[bytes] | None = None) -> Ended:
    """Runs a program of this computer to its end.

    Raises:
        DeadlineError: It took longer than ``timeout_s``.
        MissingToolError: There is no such program.
    """
    with Client(words, deadline_s=timeout_s, stdin=stdin) as client:
        out = b"".join(iter(client.read, b""))
        return Ended(client.end(), out, client.err)
