"""Makes a small finished run by the real steps, but for exporting and timing; see the fixture ``finished``."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hwnas.compute import Compute
from hwnas.data import ImageData, load_data
from hwnas.latency.budget import Budget
from hwnas.latency.calibration import calibration_record
from hwnas.latency.environment import Environment
from hwnas.latency.measurement import Measurement
from hwnas.latency.model import LatencyModel
from hwnas.latency.table import LatencyTable
from hwnas.run import RunFolder, origin, table_hash
from hwnas.search.loop import SearchResult
from hwnas.search.target import DerivationRound
from hwnas.space import OpSignature, SearchSpace, create_space, macs
from hwnas.steps import train_run, write_derivation
from hwnas.supernet.supernet import Supernet
from hwnas.training import TrainingOptions

TARGET_MS, OVERHEAD_MS = 0.25, -0.05

PROOF = """{
  "file": "model.onnx", "precision": "fp32", "bytes": 123456, "note": "", "failures": [], "numerics": {
    "num_images": 4, "max_difference": 3.8e-06, "mean_difference": 4.9e-07, "max_relative_difference": 6e-07,
    "min_cosine": 0.99999976, "top1_agreement": 1.0, "accuracy_pytorch": 0.75, "accuracy_exported": 0.5
  }, "latency": {
    "target_ms": 0.25, "measured_ms": 0.1953, "slowdown": 1.0, "p50_ms": 0.2017, "p90_ms": 0.2111, "p99_ms": 0.3499,
    "met": true, "statistic": "10% quantile of 99 runs, as in the table"
  }
}"""
"""What ``hwnas verify`` would write; exporting and timing take too long for a test of the report."""


def entry_ms(signature: OpSignature) -> float:
    """Every operator takes 0.01 ms and 1 ms for 10 million multiply-adds."""
    return 0.01 + macs(signature) / 1e7


def saved_table(space: SearchSpace, folder: Path) -> LatencyTable:
    """Networks measured exactly ``OVERHEAD_MS`` off the sum: the fit must find slope 1 and that overhead."""
    environment = Environment("Test <chip>", "onnxruntime", "1.0", details={"governor": "performance"})
    entries = {s: Measurement(entry_ms(s), entry_ms(s), entry_ms(s), 0.01, 100) for s in space.signatures()}
    networks = [(a, OVERHEAD_MS + sum(map(entry_ms, space.network(a)[0].values()))) for a in space.distinct(6, seed=1)]
    calibrations = {space.fingerprint: calibration_record(space, networks)}
    return LatencyTable(environment, entries, calibrations, {"date": "today"}).save(folder / "table.csv")


def tiny_data(folder: Path) -> ImageData:
    """8 training and 4 held-out images of two classes."""
    rng, labels = np.random.default_rng(0), np.arange(8) % 2
    images = rng.integers(0, 256, (8, 16, 16), dtype=np.uint8)
    np.savez(folder / "tiny.npz", x_train=images, y_train=labels, x_test=images[:4], y_test=labels[:4])
    return load_data(f"npz:{folder / 'tiny.npz'}", resolution=16)


def finished_run(folder: Path) -> Path:
    """Makes a run that was searched, trained and verified, of two rounds and two exported files."""
    space = create_space("tiny-mbconv", resolution=16, num_classes=2)
    table, data = saved_table(space, folder), tiny_data(folder)
    budget = Budget(LatencyModel.from_table(space, table), TARGET_MS)
    config = {
        "space": space.describe(),
        "table": {"path": str(table.path), "sha256": table_hash(table)},
        "max_ms": TARGET_MS,
        "recipe": {"name": "gates", "arguments": {"num_epochs": 3, "arch_every": 1}},
        "data": data.spec,
    } | {"seed": 7, "other_device": False, "classes": None}
    run = RunFolder.create(folder / "run", config, resume=False)
    moments = [
        {c.name: (torch.linspace(1, 2, len(c.options)) * s / 8).softmax(0) for c in space.choices} for s in range(9)
    ]
    chosen = space.architecture([len(c.options) - 1 for c in space.choices])
    rounds = [
        DerivationRound(space.architecture([0] * len(space.choices)), TARGET_MS, 0.24, 0.26, met=False),
        DerivationRound(chosen, 0.23, budget.model.exact_ms(chosen), 0.2, met=True),
    ]
    result = SearchResult(Supernet(space), moments[-1], data.train)
    write_derivation(run, budget, rounds, result, data, Compute(device="cpu"))
    log: list[dict[str, Any]] = [
        {"step": s, "weight_loss": 2 - s / 9, "probabilities": {name: p.tolist() for name, p in moment.items()}}
        for s, moment in enumerate(moments)
    ]
    log[7]["expected_ms"], log[8]["expected_ms"], log[8]["arch_loss"] = 0.22, 0.21, math.nan
    run.file("search.jsonl").write_text("".join(json.dumps(each) + "\n" for each in log))
    train_run(run, options=TrainingOptions(num_epochs=2, batch_size=4, ema=0.5), compute=Compute(device="cpu"))
    proof = json.loads(PROOF) | {"environment": table.environment.to_dict()}
    verification = proof | {"architecture": chosen.id, "origin": origin()}
    layers = budget.model.layers_ms(chosen)
    verification["layers"] = [{"name": name, "predicted_ms": ms, "measured_ms": 0.0125} for name, ms in layers]
    half = proof | {"file": "model-fp16.onnx", "precision": "fp16", "note": "It computes in fp32."}
    half["failures"] = ["top-1 agrees on 98.00%; at least 99.0% is required"]
    half["environment"] = {**proof["environment"], "device": "Other <chip>"}
    verification |= {"files": [proof, half], "not_run": [{"file": "model-fp16.engine", "reason": "No GPU."}]}
    verification["latency"]["predicted_ms"] = budget.model.exact_ms(chosen)
    run.file("verification.json").write_text(json.dumps(verification))
    return Path(run.path)
