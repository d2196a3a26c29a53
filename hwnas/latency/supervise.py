"""Runs a sweep as a child process and gives up on an operator that hangs or kills it.

Nothing inside a process can stop a device that does not answer, nor outlive the out-of-memory killer. The child says
over a pipe what it is about to do; the parent kills it when the answer is late, writes the failure into the journal
that the child leaves behind, and starts it again: the sweep goes on without that operator.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hwnas.latency.journal import record_failure

PIPE = "HWNAS_WATCH"
"""Environment variable with the number of the pipe's file descriptor, in the child."""

DEVICE_LOST = 75
"""Exit code of a child whose device stopped answering."""

MAX_RESTARTS = 20


def watch_of_parent(journal: Path) -> Callable[[str], None] | None:
    """What the child tells its parent through; None where there is no parent.

    Args:
        journal: The sweep's journal, which the parent will write failures to.
    """
    if PIPE not in os.environ:
        return None
    pipe = int(os.environ[PIPE])

    def watch(key: str) -> None:
        try:
            os.write(pipe, f"{key}\n".encode())
        except BrokenPipeError:  # the parent was killed: nobody waits for this any more
            sys.exit(1)

    watch(str(journal))
    return watch


@dataclass(frozen=True)
class Death:
    """How a child ended.

    Args:
        code: Its exit code; negative for a signal.
        journal: Where it kept what it measured; None if it did not come that far.
        key: What the device was doing; empty for nothing.
        reason: Why the operator is given up, if it is.
    """

    code: int
    journal: Path | None
    key: str
    reason: str


def supervised(command: Sequence[str], *, timeout_seconds: float, say: Callable[[str], None]) -> int:
    """Runs a command that sweeps, again after every operator that hangs or kills it.

    Args:
        command: What to run; it finds its pipe by ``watch_of_parent``.
        timeout_seconds: Longest time for one operator to be prepared, or to be timed once.
        say: Prints one line.

    Returns:
        The command's exit code.
    """
    lost = ""
    for _ in range(MAX_RESTARTS):
        death = _run(command, timeout_seconds)
        if not death.key or death.journal is None or (death.code >= 0 and death.code != DEVICE_LOST):
            break
        if death.code == DEVICE_LOST and death.key != lost:
            lost = death.key  # once may be the device; twice at the same operator is the operator
            say(f"the device was lost at '{death.key}'; trying again.")
            continue
        record_failure(death.journal, death.key, death.reason)
        say(f"gave up '{death.key}': {death.reason}; the sweep goes on without it.")
    return 1 if death.code < 0 or death.code == DEVICE_LOST else death.code


def _run(command: Sequence[str], timeout_seconds: float) -> Death:
    read, write = os.pipe()
    child = subprocess.Popen(command, pass_fds=[write], env={**os.environ, PIPE: str(write)})
    os.close(write)
    previous = {s: signal.signal(s, _forward(child)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        with os.fdopen(read, "rb", buffering=0) as pipe:
            lines, in_time = _listen(pipe.fileno(), timeout_seconds)
        if not in_time:
            child.kill()
        code = child.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    reason = f"no answer for {timeout_seconds:g} s" if not in_time else _why(code)
    return Death(code, Path(lines[0]) if lines else None, lines[-1] if len(lines) > 1 else "", reason)


def _listen(pipe: int, timeout_seconds: float) -> tuple[list[str], bool]:
    """First and last line of what the child said until it ended, and whether it ended in time."""
    first, last, rest = "", "", b""
    started = time.monotonic()
    while True:
        left = started + timeout_seconds - time.monotonic() if last else None
        if not select.select([pipe], [], [], None if left is None else max(0.0, left))[0]:
            return [first, last], False
        received = os.read(pipe, 65536)
        if not received:
            return ([first, last] if first else []), True
        *whole, rest = (rest + received).split(b"\n")
        if whole:
            texts = [line.decode() for line in whole]
            if not first:
                first, *texts = texts
            last, started = (texts[-1] if texts else last), time.monotonic()


def _forward(child: subprocess.Popen[bytes]) -> Callable[[int, object], None]:
    """Lets the child end in its own way; a terminal's Ctrl-C has reached it already."""

    def handler(number: int, frame: object) -> None:
        if number != signal.SIGINT or not sys.stdin.isatty():
            child.send_signal(number)

    return handler


def _why(code: int) -> str:
    if code == -signal.SIGKILL:
        return "the process was killed while it ran, most likely for lack of memory"
    return f"the process ended by {signal.Signals(-code).name} while it ran" if code < 0 else "the device was lost"
