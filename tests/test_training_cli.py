"""The command ``hwnas train``: every option arrives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision import models


def test_every_option_arrives(hwnas: Any, run: Path, noise: str, tmp_path: Path) -> None:
    torch.save(models.mobilenet_v3_small(num_classes=10).state_dict(), tmp_path / "teacher.pth")
    options = {
        "epochs": 1, "batch_size": 32, "optimizer": "rmsprop", "lr": 0.01, "weight_decay": 0.001,
        "warm_up": 0.2, "label_smoothing": 0.2, "ema": 0.9, "mixup": 0.3, "randaugment": 4, "cutout": 3,
        "grad_clip": 5.0, "teacher": f"mobilenet_v3_small:{tmp_path}/teacher.pth",
    }  # fmt: skip
    compute = {"device": "cpu", "precision": "bf16", "accumulate": 2, "workers": 0}
    flags = [word for name, value in {**options, **compute}.items() for word in (f"--{name.replace('_', '-')}", value)]
    out = hwnas("train", run, "--data", noise, *flags, "--checkpoint-activations", "--channels-first").done()
    document = json.loads((run / "training.json").read_text())
    assert f"top-1 {document['accuracy']:.2%}, top-5 {document['top5']:.2%} on held-out images" in out
    options["num_epochs"] = options.pop("epochs")
    assert {name: document["options"][name] for name in options} == options
    compute["num_workers"] = compute.pop("workers")
    assert document["compute"] == compute | {"checkpoint_activations": True, "compile": False, "channels_last": False}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--optimizer", "lamb"], "unknown optimizer 'lamb'; available: adamw, rmsprop, sgd"),
        (["--teacher", "resnet0"], "unknown teacher 'resnet0'"),
        (["--auxiliary", 0.4], "has no place for a second head"),
        (["--drop-path", 0.2], "no edges are added up"),
        (["--device", "tpu"], "device 'tpu' is unknown"),
        (["--accumulate", 64], "Use --batch-size 128 or more"),
    ],
)
def test_wrong_usage(hwnas: Any, run: Path, flags: list[object], message: str) -> None:
    hwnas("train", run, *flags).failed(2, message)
    assert not (run / "training.pt").exists()
