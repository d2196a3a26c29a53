"""Named fixed networks: the published sizes, measured in one table, failures told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from hwnas.errors import MeasurementError, UnknownNameError, UsageError
from hwnas.latency.networks import NETWORKS, profile_networks
from hwnas.space import Shape
from hwnas.testing.toys import AnalyticProfiler, AnalyticSession

Run = Callable[..., Any]

# Millions of parameters and multiply-adds at 224x224 with 1000 classes, from torchvision's model documentation.
PUBLISHED = {
    "efficientnet_b0": (5.29, 386), "mnasnet1_0": (4.38, 314), "mobilenet_v2": (3.50, 301),
    "mobilenet_v3_large": (5.48, 217), "mobilenet_v3_small": (2.54, 57), "resnet18": (11.69, 1814),
    "resnet50": (25.56, 4089),
}  # fmt: skip


def test_sizes_are_the_published_ones() -> None:
    results = {each.name: each for each in profile_networks(list(NETWORKS), AnalyticProfiler(), num_rounds=1)}
    assert set(results) == set(PUBLISHED)
    for name, (mega_parameters, mega_macs) in PUBLISHED.items():
        assert results[name].parameters == pytest.approx(mega_parameters * 1e6, rel=2e-3)
        assert results[name].macs == pytest.approx(mega_macs * 1e6, rel=1e-2)


def test_results_are_sorted_and_a_refused_network_is_last() -> None:
    class Picky(AnalyticProfiler):
        def prepare(self, model: bytes | nn.Module, input_shape: Shape) -> AnalyticSession:
            if sum(p.numel() for p in model.parameters()) > 5e6:  # type: ignore[union-attr]
                raise MeasurementError("too large for this device")
            return super().prepare(model, input_shape)

    names = ["mobilenet_v3_large", "mobilenet_v2", "mobilenet_v3_small"]
    results = profile_networks(names, Picky(), resolution=64, num_rounds=2)
    assert [each.name for each in results] == ["mobilenet_v3_small", "mobilenet_v2", "mobilenet_v3_large"]
    assert results[-1].measurement.error == "too large for this device"
    assert results[0].measurement.ms < results[1].measurement.ms


def test_wrong_usage() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown network 'mobilenet_v4'.*Did you mean 'mobilenet_v2'\?"):
        profile_networks(["mobilenet_v4"], AnalyticProfiler())
    with pytest.raises(UsageError, match="resolution of at least 32"):
        profile_networks(["resnet18"], AnalyticProfiler(), resolution=16)


def test_command(hwnas: Run) -> None:
    arguments = ["profile", "--network", "resnet18", "--resolution", 64, "--rounds", 2]
    out = hwnas(*arguments, "--network", "mobilenet_v3_small", "--profiler", "analytic").done()
    assert out.index("mobilenet_v3_small") < out.index("resnet18"), "the fastest first"
    assert "11.69 M" in out
    assert "onnxruntime" in hwnas(*arguments).done()  # the default; this one is exported faster
    for wrong in ([], ["--space", "tiny-mbconv"], ["--network", "resnet18", "--output", "t.csv"]):
        hwnas("profile", *wrong).failed(2, "give --space with --output TABLE.csv", "or --network alone")
