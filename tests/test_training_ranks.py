"""Several processes train together, as ``torchrun`` starts them."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hwnas.data import load_data
from hwnas.run import RunFolder
from hwnas.steps import trained_network
from hwnas.training import score

pytestmark = pytest.mark.distributed

Start = Callable[..., list[Any]]
COMMON = ["--batch-size", 16, "--mixup", 0.3, "--ema", 0.5, "--device", "cpu"]
STEPS = 4  # 64 // 16


def test_two_ranks_equal_one_process_that_cuts_its_batches(
    run: Path, noise: str, start_ranks: Start, hwnas: Any, tmp_path: Path
) -> None:
    alone = Path(shutil.copytree(run, tmp_path / "alone"))
    ranks = start_ranks("train", run, "--data", noise, "--epochs", 1, *COMMON)
    hwnas("train", alone, "--data", noise, "--epochs", 1, *COMMON, "--accumulate", 2).done()
    (code, words), other = (rank.end() for rank in ranks)
    assert code == 0, words
    assert words.splitlines()[-1].startswith("top-1")
    assert other == (0, ""), "rank 0 speaks for all"

    # Bit for bit: to halve is exact, and a sum of two has one order. Batch-norm statistics are each rank's own.
    together, cut = (load_file(folder / "weights.safetensors") for folder in (run, alone))
    for name in together:
        assert torch.equal(together[name], cut[name]) or "running" in name or "num_batches" in name, name
    documents = [json.loads((folder / "training.json").read_text()) for folder in (run, alone)]
    assert [document["ranks"] for document in documents] == [2, 1]
    alone_again = score(trained_network(RunFolder.open(run)), load_data(noise, resolution=16).val)
    assert (documents[0]["accuracy"], documents[0]["top5"]) == (alone_again.top1, alone_again.top5)
    assert documents[0]["loss"] == pytest.approx(alone_again.loss, rel=1e-5)
    logs = [json.loads((folder / "training.jsonl").read_text()) for folder in (run, alone)]
    assert logs[0]["loss"] == pytest.approx(logs[1]["loss"], rel=1e-5)
    assert logs[0]["step"] == STEPS - 1


def test_a_killed_rank_ends_the_others(run: Path, noise: str, start_ranks: Start, wait_for: Any) -> None:
    first, second = start_ranks("train", run, "--data", noise, "--epochs", 1000, *COMMON, "--checkpoint-seconds", 0.1)
    wait_for(lambda: (run / "training.pt").exists() or first.over)
    second.kill(signal.SIGKILL)
    code, messages = first.end()
    assert code == 1, messages
    assert "error: rank 0 of 2 lost another process" in messages
    assert 0 < torch.load(run / "training.pt", weights_only=True)["step"] < 1000 * STEPS
