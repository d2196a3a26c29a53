"""The runner and its libraries on imitated phones and boards: the bundle for arm64 under qemu."""

from __future__ import annotations

import os
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hwnas.profilers.remote.bundle import Bundle
from hwnas.profilers.remote.inputs import fixed_input
from hwnas.profilers.remote.jobs import JobModel
from hwnas.profilers.remote.records import Failure, Hello

from hwnas.onnx_precision import to_precision

write_root = runpy.run_path(str(Path(__file__).with_name("fake_root.py")))["write_root"]
TOOLS = runpy.run_path(str(Path(__file__).with_name("runner_device.py")))
Device, SHAPE, network, needed = (TOOLS[n] for n in ("Device", "SHAPE", "network", "needed"))
only, on_host = TOOLS["only"], TOOLS["on_host"]

QEMU = shutil.which("qemu-aarch64-static")


@pytest.fixture(scope="session")
def arm() -> Bundle:
    """The bundle for phones and boards."""
    if QEMU is None:
        pytest.skip("qemu-aarch64-static is missing; install the package qemu-user-static")
    return needed("aarch64")


@pytest.fixture
def phone(arm: Bundle, tmp_path: Path) -> Callable[..., Device]:
    """An imitated phone: a layout of cores, and those that are off."""

    def make(layout: str, *offline: int) -> Device:
        root = write_root(tmp_path / "root", layout, offline=offline)
        return Device(arm, tmp_path, (str(QEMU), "-cpu", "cortex-a76", "-L", str(root)))

    return make


@pytest.mark.parametrize(
    ("layout", "offline"),
    [
        ("a55:4:1804800,a78:3:2419200,x1:1:2841600", ()),
        ("a55:4:1804800,a78:3:2419200,x1:1:2841600", (4, 7)),
        ("a72:4:1500000", ()),
    ],
)
def test_arm64_computes_what_the_host_computes(
    phone: Callable[..., Device], layout: str, offline: tuple[int, ...]
) -> None:
    device = phone(layout, *offline)
    networks = [network(1), to_precision(network(2), "int8")]
    models = [JobModel(i, device.put(f"{i}.onnx", each), dump=True) for i, each in enumerate(networks)]
    cores = tuple(sorted(os.sched_getaffinity(0)))[:1]
    hello, *rest = device.run(device.job(*models, cores=cores))
    assert isinstance(hello, Hello)
    assert (hello.machine, hello.native_fp16, hello.affinity) == ("aarch64", True, cores)  # qemu's a76 has it
    assert only(rest, Failure) == []
    x = {"x": fixed_input(1, 0, SHAPE)}
    single, whole = (on_host(each, x)[0] for each in networks)
    np.testing.assert_allclose(device.output(0, single), single, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(device.output(1, whole), whole)
    assert list(device.home.rglob("*")) == []
