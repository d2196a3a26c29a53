"""``benchmarks/loader.py`` runs, and names the slower of the two things that it times."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # Python 3.12+, torch's threads
@pytest.mark.parametrize(("network", "resolution"), [("tiny-mbconv", 16), ("mobilenet_v3_small", 32)])
def test_dry_run(
    network: str,
    resolution: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    load_benchmark: Callable[[str], ModuleType],
) -> None:
    rng = np.random.default_rng(0)
    for name in ("train/a/1", "train/a/2", "train/b/1", "train/b/2", "val/a/1", "val/b/1"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    script = load_benchmark("loader")
    kept = tmp_path / "kept" / "loader.txt"
    options = f"--resolution {resolution} --workers 0,1 --batch-size 4 --network {network} --device cpu --dry-run"
    monkeypatch.setattr(sys, "argv", ["loader.py", f"imagefolder:{tmp_path}", *options.split(), "--output", str(kept)])
    script.main()
    out = capsys.readouterr().out
    assert kept.read_text() == out
    loader = max(int(number) for number in re.findall(r"loader, [01] workers: (\d+) images/s", out))
    (step,) = map(int, re.findall(rf"training step, {network}, fp32: (\d+) images/s", out))
    slower = "loader" if loader < step else "training step"
    assert re.search(rf"bottleneck: the {slower}, [\d.]+ times slower", out), out
