"""The profiler ``torch`` on a GPU: what its modes compute, what its times mean, what it gives back."""

from __future__ import annotations

import copy
import gc
import time
from typing import Any

import numpy as np
import pytest
import torch
from hwnas.profilers.torch import TorchSession
from torch import nn

from hwnas.errors import MeasurementError
from hwnas.latency.measurement import summarise
from hwnas.ops.blocks import build_op
from hwnas.plugins import create_profiler
from hwnas.space import OpSignature
from hwnas.testing.contracts import check_profiler

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

BLOCK = OpSignature.parse("mbconv k3 e3 r1 s1 8x8x8 -> 8x8x8")

# Relative rounding of each format (half of the gap above 1), times an allowance for a handful of convolutions
# whose partial sums exceed the result by cancellation.
TOLERANCE = {"fp32": 32 * 2**-24, "tf32": 32 * 2**-11, "fp16": 32 * 2**-11, "bf16": 32 * 2**-8}


def on_gpu(signature: OpSignature, **options: Any) -> TorchSession:
    torch.manual_seed(0)
    return session(build_op(signature), signature.in_shape, **options)


def session(module: nn.Module, shape: tuple[int, int, int] = BLOCK.in_shape, **options: Any) -> TorchSession:
    prepared = create_profiler("torch", device="cuda", **options).prepare(module.eval(), shape)
    assert isinstance(prepared, TorchSession)
    return prepared


def images(shape: tuple[int, int, int] = BLOCK.in_shape, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1, *shape), dtype=np.float32)


def exactly(module: nn.Module, inputs: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(copy.deepcopy(module).double()(torch.from_numpy(inputs).double()).numpy())


def best_ms(prepared: TorchSession) -> float:
    return summarise([prepared.time_ms(budget_ms=10) for _ in range(5)]).ms


@pytest.mark.parametrize("mode", ["eager", "compile", "cuda-graph"])
class TestModesOnGpu:
    """Every mode keeps the contract, computes in every precision, and gives its memory back."""

    @pytest.mark.parametrize("batch", [1, 3])
    def test_the_contract_holds(self, mode: str, batch: int) -> None:
        profiler = create_profiler("torch", device="cuda", mode=mode, batch=batch)
        check_profiler(profiler)
        environment = profiler.environment()
        assert (environment.mode, environment.threads) == (mode, 0)
        assert "SMs)" in environment.device
        assert not profiler.environment().differences(environment)

    @pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
    def test_every_precision_computes_the_block(self, mode: str, precision: str) -> None:
        torch.manual_seed(0)
        module = build_op(BLOCK).eval()
        exact = exactly(module, images())
        output = session(module, precision=precision, mode=mode).run(images())
        assert np.abs(output - exact).max() <= TOLERANCE[precision] * np.abs(exact).max()

    def test_closing_gives_the_memory_back(self, mode: str) -> None:
        on_gpu(BLOCK, mode=mode).close()  # libraries set up their own workspaces
        gc.collect()
        before = torch.cuda.memory_allocated()
        prepared = on_gpu(OpSignature.parse("conv k3 s1 256x64x64 -> 256x64x64"), mode=mode)
        assert torch.cuda.memory_allocated() > before + 256 * 256 * 9 * 4
        prepared.close()
        assert torch.cuda.memory_allocated() == before

    def test_times_agree_with_a_synchronised_clock(self, mode: str) -> None:
        # 2.7e11 multiply-adds, 5.5e11 operations, in fp32: 8 ms at the 67e12 a second of an H200 (data sheet).
        module = nn.Conv2d(4096, 4096, 1)
        prepared = session(module, (4096, 128, 128), mode=mode)
        prepared.time_ms(budget_ms=1)
        samples = prepared.time_ms(budget_ms=1)
        host = []
        for _ in range(5):
            torch.cuda.synchronize()
            start = time.perf_counter()
            with prepared._running():
                prepared._launch()
            torch.cuda.synchronize()
            host.append((time.perf_counter() - start) * 1e3)
        assert min(samples) > 4
        # Launching costs the host at most a few tens of microseconds on top.
        assert min(samples) == pytest.approx(min(host), rel=0.1)

    def test_an_operator_without_work_has_a_short_positive_time(self, mode: str) -> None:
        prepared = session(nn.Identity(), mode=mode)
        assert 0 < best_ms(prepared) < 1
        np.testing.assert_array_equal(prepared.run(images()), images())


class TestOnGpu:
    """What holds for CUDA alone."""

    def test_a_graph_computes_exactly_what_eager_computes(self) -> None:
        eager, graph = (on_gpu(BLOCK, mode=mode, precision="fp16") for mode in ("eager", "cuda-graph"))
        for seed in range(3):
            inputs = images(seed=seed)
            np.testing.assert_array_equal(graph.run(inputs), eager.run(inputs))

    def test_a_graph_spares_the_launches(self) -> None:
        # Three kernels of a few microseconds each; launching them eagerly costs more than running them.
        assert best_ms(on_gpu(BLOCK, mode="cuda-graph")) < 0.5 * best_ms(on_gpu(BLOCK))

    def test_a_graph_of_many_copies_says_the_time_of_one(self) -> None:
        # Many copies of the small one fit an interval, none of the large one: a time that forgets to divide by
        # their number, or divides twice, breaks the proportion.
        times = [
            best_ms(on_gpu(OpSignature.parse(f"conv k3 s1 {c}x56x56 -> {c}x56x56"), mode="cuda-graph"))
            for c in (64, 1024)
        ]
        assert 8 < times[1] / times[0] < 512  # 256 times the multiply-adds, better used by the larger one

    def test_tf32_rounds_and_fp32_does_not(self) -> None:
        module = nn.Conv2d(256, 256, 3, padding=1).eval()
        inputs = images((256, 16, 16))
        exact = exactly(module, inputs)
        error = {
            p: np.abs(session(module, (256, 16, 16), precision=p).run(inputs) - exact).max() for p in ("fp32", "tf32")
        }
        # 24 against 11 bits of significand: a factor of 8192; sums of 2304 products blur it.
        assert error["tf32"] > 20 * error["fp32"]

    def test_out_of_memory_is_a_failed_measurement_and_frees_what_it_took(self) -> None:
        on_gpu(BLOCK).close()
        gc.collect()
        before = torch.cuda.memory_allocated()
        with pytest.raises(MeasurementError, match="out of memory") as caught:  # 275 GB
            session(nn.Sequential(nn.Conv2d(1, 4096, 1)), (1, 4096, 4096))
        assert "\n" not in str(caught.value)
        del caught
        gc.collect()
        assert torch.cuda.memory_allocated() == before
        assert best_ms(on_gpu(BLOCK)) > 0
