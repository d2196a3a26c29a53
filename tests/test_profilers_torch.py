"""The profiler ``torch`` on the processor: what it computes, what it leaves alone, what it refuses."""

from __future__ import annotations

import copy
import gc
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hwnas.profilers.cuda import query_smi
from hwnas.profilers.torch import TorchSession, deployable
from torch import Tensor, nn

from hwnas.errors import MeasurementError, UsageError
from hwnas.latency.items import Item, models_for
from hwnas.latency.measurement import summarise
from hwnas.ops.blocks import build_op
from hwnas.plugins import create_profiler
from hwnas.space import OpSignature
from hwnas.space.library import SPACES, create_space
from hwnas.testing.contracts import check_profiler

BLOCK = OpSignature.parse("mbconv k3 e3 r1 s1 8x8x8 -> 8x8x8")

# Relative rounding of each format (half of the gap above 1), times an allowance for a handful of convolutions
# whose partial sums exceed the result by cancellation.
TOLERANCE = {"fp32": 32 * 2**-24, "tf32": 32 * 2**-11, "fp16": 32 * 2**-11, "bf16": 32 * 2**-8}


def block(signature: OpSignature = BLOCK) -> nn.Module:
    """The operator with batch statistics that are not those of a fresh network."""
    torch.manual_seed(0)
    module = nn.Sequential(build_op(signature)).eval()
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(norm.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    return module


def session(module: nn.Module, shape: tuple[int, int, int] = BLOCK.in_shape, **options: Any) -> TorchSession:
    profiler = create_profiler("torch", **options)
    prepared = profiler.prepare(module, shape)
    assert isinstance(prepared, TorchSession)
    return prepared


def images(batch: int = 1, shape: tuple[int, int, int] = BLOCK.in_shape) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((batch, *shape), dtype=np.float32)


def assert_computes(module: nn.Module, precision: str, **options: Any) -> None:
    with torch.no_grad():
        exact = copy.deepcopy(module).double()(torch.from_numpy(images()).double()).numpy()
    output = session(module, precision=precision, **options).run(images())
    assert output.dtype == np.float32
    assert np.abs(output - exact).max() <= TOLERANCE[precision] * np.abs(exact).max()


def test_threads_are_part_of_the_contract() -> None:
    if (os.cpu_count() or 1) < 2:
        pytest.skip("needs two cores")
    profiler = create_profiler("torch", threads=2)
    check_profiler(profiler)
    assert profiler.environment().threads == 2


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_every_precision_computes_the_block(precision: str) -> None:
    assert_computes(block(), precision)


def test_formats_with_fewer_bits_round_more() -> None:
    module = block()
    with torch.no_grad():
        exact = module(torch.from_numpy(images())).numpy()
    errors = [np.abs(session(module, precision=p).run(images()) - exact).max() for p in ("fp32", "fp16", "bf16")]
    assert errors == sorted(errors)
    assert errors[0] < errors[1] < errors[2]


def test_the_environment_says_how_to_build_the_profiler_again() -> None:
    environment = create_profiler("torch", precision="bf16", batch=2).environment()
    assert (environment.runtime, environment.runtime_version) == ("torch", torch.__version__)
    assert environment.arguments == {"device": "cpu", "mode": "eager"}
    again = create_profiler(
        environment.runtime,
        precision=environment.precision,
        batch=environment.batch,
        threads=environment.threads,
        **environment.arguments,
    )
    assert not environment.differences(again.environment())


def test_the_callers_module_stays_as_it_is() -> None:
    module = block().train()
    before = copy.deepcopy(module.state_dict())
    prepared = session(module, precision="fp16")
    prepared.run(images())
    prepared.time_ms(budget_ms=0)
    prepared.close()
    assert module.training
    assert all(p.requires_grad for p in module.parameters())
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
        assert (value.dtype, value.is_contiguous()) == (before[name].dtype, True)


@pytest.mark.parametrize("places", [1, 3])
def test_batch_norm_is_folded_once_wherever_a_module_stands(places: int) -> None:
    module = nn.Sequential(*([block()] * places)).double()
    folded = deployable(module)
    assert not [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
    # Three convolutions a block, weights and biases, for every place of its own.
    assert len(list(folded.parameters())) == 6 * places
    with torch.no_grad():
        x = torch.from_numpy(images()).double()
        torch.testing.assert_close(folded(x), module(x))


@pytest.mark.parametrize("name", SPACES)
def test_networks_of_every_space_are_computed(name: str) -> None:
    space = create_space(name, resolution=32)
    profiler = create_profiler("torch")
    ((model, module),) = models_for([Item.network(space, *space.distinct(1, seed=3))], profiler)
    inputs = images(1, space.input_shape)
    with torch.no_grad():
        exact = copy.deepcopy(module).double()(torch.from_numpy(inputs).double()).numpy()
    output = profiler.prepare(model, space.input_shape).run(inputs)
    # Rounding errors of at most 100 layers add up: 100 * 2^-24, and an allowance of 32 as above.
    assert np.abs(output - exact).max() <= 100 * TOLERANCE["fp32"] * np.abs(exact).max()


class Probe(nn.Module):
    """A module that notes PyTorch's global settings while it runs."""

    def __init__(self, *, fails: bool = False) -> None:
        super().__init__()
        self.seen: list[tuple[Any, ...]] = []
        self._fails = fails

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(global_settings())
        if self._fails:
            raise RuntimeError("the first line\nthe second line")
        return x


def global_settings() -> tuple[Any, ...]:
    backends: Any = torch.backends
    parts = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul)
    return (
        torch.get_num_threads(),
        torch.is_inference_mode_enabled(),
        torch.backends.cudnn.benchmark,
        *(part.fp32_precision for part in parts),
    )


@pytest.mark.parametrize("fails", [False, True])
def test_global_settings_hold_while_it_runs_and_not_longer(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    probe = Probe()
    # Tracing would run the module once and leave nothing of it: this test is about what surrounds a run.
    monkeypatch.setattr("hwnas.profilers.torch.deployable", lambda module: module)
    before = global_settings()
    prepared = session(probe)
    probe.seen.clear()
    probe._fails = fails
    if fails:
        for act in (lambda: prepared.run(images()), lambda: prepared.time_ms(budget_ms=1)):
            with pytest.raises(MeasurementError, match=r"^torch cannot (run|time) the module: the first line$"):
                act()
    else:
        prepared.run(images())
        prepared.time_ms(budget_ms=1)
    assert set(probe.seen) == {(1, True, True, "ieee", "ieee", "ieee", "ieee")}
    assert global_settings() == before


def test_more_work_is_more_milliseconds() -> None:
    texts = ("conv k3 s1 8x8x8 -> 8x8x8", "conv k3 s1 64x32x32 -> 64x32x32")
    signatures = [OpSignature.parse(text) for text in texts]
    small, large = (
        summarise([session(build_op(s), s.in_shape).time_ms(budget_ms=5) for _ in range(3)]) for s in signatures
    )
    # 1024 times the multiply-adds; a factor of 5 leaves room for any call overhead and any noise.
    assert large.ms > 5 * small.ms


def test_times_are_milliseconds_of_this_clock() -> None:
    prepared = session(build_op(OpSignature.parse("conv k3 s1 64x32x32 -> 64x32x32")), (64, 32, 32))
    start = time.perf_counter()
    samples = prepared.time_ms(budget_ms=50)
    elapsed_ms = (time.perf_counter() - start) * 1e3
    # All samples lie within the call and, after the warm-up, nothing but them fills it.
    assert 0.5 * 50 < sum(samples) <= elapsed_ms


def test_what_run_returns_is_not_overwritten_by_the_next_run() -> None:
    prepared = session(nn.Identity())
    first = prepared.run(images())
    prepared.run(-images())
    np.testing.assert_array_equal(first, images())


def test_images_of_another_shape_are_refused() -> None:
    with pytest.raises(UsageError, match=r"the session takes \(3, 8, 8, 8\)"):
        session(block(), batch=3).run(images(1))


def test_a_closed_session_keeps_no_weights() -> None:
    def weights() -> int:
        return sum(type(o) is nn.Parameter and o.shape == (23, 8, 1, 1) and not o.is_meta for o in gc.get_objects())

    module = nn.Sequential(nn.Conv2d(8, 23, 1), nn.Conv2d(23, 8, 1)).eval()
    gc.collect()
    gc.disable()  # a device must not wait for the garbage collector
    try:
        prepared = session(module)
        assert weights() == 2  # the caller's and the session's own
        prepared.close()
        assert weights() == 1
    finally:
        gc.enable()


class Branches(nn.Module):
    """Its path depends on its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Conv2d(5, 8, 1), r"cannot prepare the module: .*expected input.* 5 channels, but got 8"),
        (Branches(), r"cannot be traced .* Write its forward pass without control flow"),
    ],
)
def test_a_module_that_does_not_run_is_a_failed_measurement(module: nn.Module, message: str) -> None:
    with pytest.raises(MeasurementError, match=message) as caught:
        session(module)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "has no device 'gpu'; it takes cuda or cuda:N"),
        ({"device": "cuda:99"}, "finds no CUDA device 'cuda:99' here"),
        ({"precision": "int8"}, "no precision 'int8' on device 'cpu'; it takes fp32, fp16, bf16"),
        ({"precision": "tf32"}, "no precision 'tf32' on device 'cpu'"),
        ({"mode": "cuda-graph"}, "no mode 'cuda-graph' on device 'cpu'; it takes eager, compile"),
        ({"device": "cuda", "threads": 4}, "threads 0 to 1 on device 'cuda'"),
        ({"threads": 0}, "threads 1 to"),
        ({"batch": 0}, "batch must be at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        create_profiler("torch", **options)
    with pytest.raises(UsageError, match="takes a PyTorch module"):
        create_profiler("torch").prepare(b"bytes", (3, 8, 8))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("echo '580.95, P0, 1980 MHz'", ["580.95", "P0", "1980 MHz"]), ("echo 'No devices'; exit 6", None), ("", None)],
)
def test_clocks_are_read_where_the_driver_tells_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, expected: list[str] | None
) -> None:
    if answer:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{answer}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    assert query_smi("uuid", ["driver_version", "pstate", "clocks.sm"]) == expected


@pytest.mark.slow
def test_compiled_modules_keep_the_contract_in_any_number() -> None:
    profiler = create_profiler("torch", mode="compile")
    check_profiler(profiler)
    # Compiled code is kept per function and limited to 8 versions of it; sessions must not share that limit.
    modules = [nn.Conv2d(8, 1 + n, 1) for n in range(10)]
    sessions = [profiler.prepare(m, BLOCK.in_shape) for m in modules]
    for module, prepared in zip(modules, sessions, strict=True):
        with torch.no_grad():
            expected = module(torch.from_numpy(images())).numpy()
        np.testing.assert_allclose(prepared.run(images()), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_compiling_without_a_compiler_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # what is compiled already needs no compiler
    with (
        config.patch({"cpp.cxx": (None, str(tmp_path / "absent"))}),  # what PyTorch reads from CXX when it is imported
        pytest.raises(MeasurementError, match=r"torch cannot prepare the module: InvalidCxxCompiler.*install g\+\+"),
    ):
        session(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()), (3, 8, 8), mode="compile")
