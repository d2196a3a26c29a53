"""Starts commands as processes of their own, forked off this one, which has everything imported.

To import takes longer than the commands themselves. Reads one JSON object a line from its standard input:
the arguments, folders of installed packages, environment variables, and a folder that gets ``err``, ``pid`` and at
last ``code``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import sklearn.datasets  # noqa: F401
import torch.utils.tensorboard  # noqa: F401

import hwnas.latency.sweep
import hwnas.steps  # noqa: F401
from hwnas.cli import main


def write(path: Path, number: int) -> None:
    """Writes a number so that nobody reads half of it."""
    path.with_suffix(".new").write_text(str(number))
    path.with_suffix(".new").rename(path)


def run(arguments: list[str], folders: list[str], folder: Path, environment: dict[str, str]) -> None:
    """Runs a command, and ends this process."""
    code: object = 70
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the suite runs in the background
    with (folder / "err").open("w") as err:
        os.dup2(err.fileno(), 1)
        os.dup2(err.fileno(), 2)
    os.environ.update(environment)
    sys.argv, sys.path[:0] = ["hwnas", *arguments], folders
    try:
        main()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def watch(request: dict[str, Any]) -> None:
    """Starts a command, waits for its end, and ends this process."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    folder = Path(request["folder"])
    child = os.fork()
    if child == 0:
        run(request["arguments"], request["folders"], folder, request["environment"])
    write(folder / "pid", child)
    write(folder / "code", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    os._exit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the watchers
    for line in sys.stdin:
        if os.fork() == 0:
            watch(json.loads(line))
