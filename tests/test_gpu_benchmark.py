"""``benchmarks/gpu.py`` keeps what a part said, and ends all that it started."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from hwnas.errors import HwnasError

STARTS_ANOTHER = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def gpu(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("gpu")


def running(pid: int) -> bool:
    """Whether a process is there and no mere zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_part_that_is_too_slow_ends_with_its_children_and_keeps_its_words(
    gpu: ModuleType, wait_for: Callable[[Callable[[], bool]], None], tmp_path: Path
) -> None:
    log = tmp_path / "part.log"
    assert gpu.ended([sys.executable, "-c", STARTS_ANOTHER], log, 3) == "FAILED: not done in 3 s"
    child = int(log.read_text())
    wait_for(lambda: not running(child))


def test_a_part_that_ends_says_how(gpu: ModuleType, tmp_path: Path) -> None:
    write = "import os, pathlib; pathlib.Path(os.environ['OUT'], 'file').touch()"
    assert gpu.ended([sys.executable, "-c", write], tmp_path / "part.log", 60) == ""
    assert (tmp_path / "file").exists()
    assert gpu.ended([sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "part.log", 60) == "FAILED with status 3"


def test_lines_are_there_before_the_script_ends(gpu: ModuleType, tmp_path: Path) -> None:
    waits = "import os, time\nprint('one')\nwhile not os.path.exists('go'): time.sleep(0.01)\nprint('two')\nexit(4)"
    rows = gpu.printed("name", ["-c", waits], tmp_path)
    assert next(rows) == ("name", "one")
    (tmp_path / "go").touch()  # in the folder where it runs
    assert next(rows) == ("name", "two")
    with pytest.raises(HwnasError, match="name ended with status 4"):
        next(rows)


def test_rows_of_a_part_that_fails_are_kept_with_its_last_words(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def failing(command: list[str], log: Path, seconds: float) -> str:
        (tmp_path / "modes.rows").write_text('["a", "1 ms"]\n')
        log.write_text("".join(f"{n}\n" for n in range(50)))
        return "FAILED"

    monkeypatch.setattr(gpu, "ended", failing)
    rows = gpu.in_process("modes", True, tmp_path)
    assert rows[:2] == [("a", "1 ms"), ("modes", "FAILED")]
    assert rows[-1] == ("modes", "49")
    assert os.listdir(tmp_path) == ["modes.log"]
