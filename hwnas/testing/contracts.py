"""What profilers, exporters and tables must do; a package that adds one calls the same checks."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from hwnas.latency.items import Item, models_for
from hwnas.latency.table import LatencyTable
from hwnas.plugins import Exporter, GroupSession, Profiler, Session
from hwnas.space import OpSignature
from hwnas.supernet.supernet import Network
from hwnas.testing.toys import toy_space

TOLERANCE = {"fp32": 1e-4, "tf32": 5e-3, "fp16": 1e-2, "bf16": 5e-2, "int8": 0.15}
"""Precision -> most that one block may differ from fp32, relative to the largest output.

About ten roundings of the format's mantissa (23, 10, 10, 7 bits); 8-bit ranges come from random images.
"""


def check_profiler(profiler: Profiler) -> None:
    """A profiler describes itself, computes what PyTorch computes, and times in milliseconds.

    Raises:
        AssertionError: Names the broken promise.
    """
    environment = profiler.environment()
    assert isinstance(profiler, Profiler), "it lacks a method of the protocol"
    assert profiler.consumes in ("onnx", "module"), "consumes is 'onnx' or 'module'"
    assert not environment.differences(profiler.environment()), "the environment must not change by itself"
    assert all((environment.device, environment.runtime, environment.runtime_version)), "it must name itself"
    signature = OpSignature.parse("mbconv k3 e3 r1 s1 8x8x8 -> 8x8x8")
    torch.manual_seed(0)
    ((model, module),) = models_for([Item.operator(signature)], profiler)
    session = profiler.prepare(model, signature.in_shape)
    assert isinstance(session, Session), "prepare must return a Session"
    images = np.random.default_rng(0).standard_normal((environment.batch, *signature.in_shape), dtype=np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(images)).numpy()
    difference = float(np.abs(session.run(images) - expected).max() / np.abs(expected).max())
    assert difference <= TOLERANCE[environment.precision], f"it computes otherwise, by {difference:.2g} of the range"
    samples = session.time_ms(budget_ms=5.0)
    assert samples, "it must time at least one run"
    assert all(math.isfinite(s) and s > 0 for s in samples), "times are positive and finite"
    if isinstance(session, GroupSession):
        other = profiler.prepare(model, signature.in_shape)
        visits = list(session.time_with({"other": other}, num_rounds=2, budget_ms=1.0))
        assert all(isinstance(found, list) and min(found) > 0 for _, _, found in visits), "it must time both"
        rounds = {name: {number for who, number, _ in visits if who == name} for name in ("", "other")}
        assert rounds[""] == rounds["other"], "both are timed in every round"
        assert len(rounds[""]) == 2, "in as many rounds as were asked for"
        other.close()
    session.close()


def check_exporter(exporter: Exporter, folder: Path) -> Path:
    """An exporter writes one complete file with the suffix it promises, and no other.

    Raises:
        AssertionError: Names the broken promise.
    """
    space = toy_space()
    network = Network(space, space.architecture([0, 1, 2])).eval()
    path = folder / f"model{exporter.suffix}"
    before = set(folder.iterdir())
    images = [np.random.default_rng(0).standard_normal((1, *space.input_shape), dtype=np.float32)]
    returned = exporter.export(
        network, path, input_shape=space.input_shape, metadata={"space": space.name}, calibration=images
    )
    assert returned == path, "it must return the path"
    assert path.stat().st_size > 0, "the file must not be empty"
    assert path in set(folder.iterdir()) - before, "the file must be where it was asked for"
    return path


def check_table(table: LatencyTable, folder: Path) -> None:
    """A table survives a round trip through its files exactly.

    Raises:
        AssertionError: Names the broken promise.
    """
    path, again = folder / "round_trip.csv", folder / "again.csv"
    table.save(path)
    LatencyTable.load(path).save(again)
    for suffix in (".csv", ".json"):
        assert path.with_suffix(suffix).read_bytes() == again.with_suffix(suffix).read_bytes(), "not exact"
