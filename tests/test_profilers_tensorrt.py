"""TensorRT: engines built for real on any machine with TensorRT for RTX; on a GPU, what they compute and how fast."""

from __future__ import annotations

import contextlib
import functools
import gc
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hwnas.profilers.nodes import typical_ms
from hwnas.profilers.tensorrt import TensorRTProfiler, converted, layer_clock
from onnx import helper, numpy_helper

from hwnas.errors import MeasurementError, MissingPackageError, UsageError
from hwnas.latency.measurement import summarise
from hwnas.onnx_graph import export_onnx
from hwnas.ops.blocks import build_op
from hwnas.plugins import PROFILERS, available, create_profiler
from hwnas.space import OpSignature
from hwnas.tensorrt_engine import CLASSIC, RTX, EngineBuilder, Flavour
from hwnas.testing.contracts import check_profiler

BLOCK = OpSignature.parse("mbconv k3 e3 r1 s1 8x8x8 -> 8x8x8")
NAMES = ["tensorrt", "tensorrt-rtx"]


def missing(name: str) -> str:
    """Why this machine cannot run that profiler; empty if it can."""
    plugin = available(PROFILERS)[name]
    if plugin.missing:
        return f"needs {', '.join(plugin.missing)}: {plugin.remedy}"
    if not torch.cuda.is_available():
        return "needs a CUDA device"
    try:
        create_profiler(name)
    except UsageError as error:
        return str(error)
    return ""


needs_rtx = [
    pytest.mark.tensorrt,
    pytest.mark.skipif(bool(available(PROFILERS)["tensorrt-rtx"].missing), reason="needs TensorRT for RTX"),
]
on_device = [pytest.mark.gpu, pytest.mark.tensorrt]


@functools.cache
def block() -> bytes:
    torch.manual_seed(0)
    module = build_op(BLOCK).eval()
    for norm in (each for each in module.modules() if isinstance(each, torch.nn.BatchNorm2d)):
        torch.nn.init.normal_(norm.bias)  # as in a trained network: a bias of zero would vanish from the graph
    return bytes(export_onnx(module, BLOCK.in_shape).SerializeToString())


def graph(operator: str, *, dtype: type = np.float32, weights: tuple[int, ...] = (), **attributes: Any) -> bytes:
    """A model of one node."""
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    values = np.random.default_rng(0).standard_normal(weights).astype(dtype)
    inputs = ["images", "weights"] if weights else ["images"]
    node = helper.make_node(operator, inputs, ["logits"], name=f"the_{operator.lower()}", **attributes)
    images = helper.make_tensor_value_info("images", element, (1, 256, 8, 8))
    logits = helper.make_tensor_value_info("logits", element, None)
    initializers = [numpy_helper.from_array(values, "weights")] if weights else []
    model = helper.make_model(
        helper.make_graph([node], "g", [images], [logits], initializers),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    return bytes(model.SerializeToString())


CONVOLUTION = (256, 256, 3, 3)


def convolution(dtype: type = np.float32) -> bytes:
    return graph("Conv", dtype=dtype, weights=CONVOLUTION, pads=[1] * 4)


class TestEngines:
    """Built with TensorRT for RTX, which needs no GPU for it."""

    pytestmark = needs_rtx

    @pytest.mark.parametrize("capabilities", [(), ("8.9",), ("7.5",), ("8.6", "12.0")])
    def test_a_block_becomes_an_engine(self, capabilities: tuple[str, ...]) -> None:
        assert EngineBuilder(RTX, capabilities=capabilities).build(block()).data

    def test_numbers_keep_the_format_of_the_graph(self) -> None:
        builder, count = EngineBuilder(RTX, capabilities=["8.9"]), int(np.prod(CONVOLUTION))
        half, single = (len(builder.build(convolution(dtype)).data) for dtype in (np.float16, np.float32))
        # An engine holds its weights, 2 or 4 bytes each, and at most half as much again of other things.
        assert 2 * count < half < 3 * count
        assert 4 * count < single < 6 * count

    @pytest.mark.parametrize("precision", ["fp16", "int8"])
    def test_converted_blocks_become_engines(self, precision: str) -> None:
        assert converted(block(), precision) != block()
        assert EngineBuilder(RTX, capabilities=["8.9"]).build(converted(block(), precision)).data

    def test_fp32_does_not_round_to_tf32(self) -> None:
        ieee, again, tf32 = (
            EngineBuilder(RTX, capabilities=["8.9"], tf32=on).build(convolution()).data for on in (0, 0, 1)
        )
        assert ieee == again
        assert ieee != tf32

    def test_many_engines_from_one_builder_equal_engines_from_many(self) -> None:
        builder, other = (EngineBuilder(RTX, capabilities=["8.9"]) for _ in range(2))
        assert builder.build(block()).data == builder.build(block()).data == other.build(block()).data
        assert builder.timing_cache == b""  # this flavour times nothing while it builds

    def test_a_workspace_limit_is_kept(self) -> None:
        with pytest.raises(MeasurementError, match=r"builds no engine of the model: .*workspace"):
            EngineBuilder(RTX, capabilities=["8.9"], workspace_mib=1).build(convolution())
        assert EngineBuilder(RTX, capabilities=["8.9"], workspace_mib=64).build(convolution()).data

    @pytest.mark.parametrize(
        ("model", "message"),
        [
            (graph("Det"), r"refuses operator 'Det' \(node 'the_det'\): UNSUPPORTED_NODE"),
            (b"not a model", r"cannot read the ONNX model: .*[Ff]ailed to parse"),
        ],
    )
    def test_a_refusal_names_the_operator_and_the_next_model_is_built(self, model: bytes, message: str) -> None:
        builder = EngineBuilder(RTX, capabilities=["8.9"])
        with pytest.raises(MeasurementError, match=message):
            builder.build(model)
        assert builder.build(block()).data

    def test_shapes_that_are_not_fixed_are_refused_with_the_reason(self) -> None:
        model = onnx.load_from_string(graph("Relu"))
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
        with pytest.raises(MeasurementError, match="dynamic or shape inputs"):
            EngineBuilder(RTX, capabilities=["8.9"]).build(model.SerializeToString())

    def test_unknown_compute_capabilities_are_refused(self) -> None:
        # Hopper is no GPU of the RTX family: TensorRT for RTX, support matrix.
        with pytest.raises(UsageError, match=r"no compute capability '9.0'; it builds for 7.5, .*8.9, .*12.0"):
            EngineBuilder(RTX, capabilities=["9.0"])


class TestLayerTimes:
    pytestmark = needs_rtx

    def test_the_clock_adds_up_what_tensorrt_tells_between_readings(self) -> None:
        clock = layer_clock(RTX)
        for name, ms in (("a", 0.5), ("b", 1.0), ("a", 0.25)):
            clock.report_layer_time(name, ms)
        assert clock.read() == {"a": 0.75, "b": 1.0}
        assert clock.read() == {}

    def test_tensorrt_takes_it(self) -> None:
        import tensorrt_rtx

        assert isinstance(layer_clock(RTX), tensorrt_rtx.IProfiler)


def test_disturbed_runs_say_nothing_about_layers() -> None:
    quiet = [(1.0 + run / 100, {"a": 0.4, "b": 0.6 + run / 100}) for run in range(2)]
    disturbed = [(9.0, {"a": 8.0, "b": 1.0})] * 18
    found = typical_ms([*disturbed[:9], *quiet, *disturbed[9:]])
    assert found == pytest.approx({"a": 0.4, "b": 0.605})


def test_an_absent_package_is_named_with_the_extra() -> None:
    absent = Flavour("tensorrt", "tensorrt_that_is_not_installed", "tensorrt", needs_gpu=True)
    with pytest.raises(MissingPackageError, match=r"cannot be imported.*pip install 'hwnas\[tensorrt\]'"):
        EngineBuilder(absent)


@pytest.mark.parametrize("name", NAMES)
def test_without_tensorrt_or_a_gpu_nothing_stands_in(name: str) -> None:
    if not (reason := missing(name)):
        pytest.skip("everything is here")
    with pytest.raises((MissingPackageError, UsageError)) as caught:
        create_profiler(name)
    if reason == "needs a CUDA device":
        assert "finds no CUDA device 'cuda' here" in str(caught.value)
    elif available(PROFILERS)[name].missing:
        assert f"pip install 'hwnas[{RTX.extra if 'rtx' in name else CLASSIC.extra}]'" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "bf16"}, "no precision 'bf16'; it takes fp32, tf32, fp16, int8"),
        ({"mode": "eager"}, "no mode 'eager'; it takes enqueue, cuda-graph"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"threads": 2}, "threads 0 or 1"),
        ({"workspace_mib": "much"}, "workspace_mib a whole number"),
    ],
)
def test_what_cannot_be_measured_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TensorRTProfiler(**options)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    """A profiler that this machine can run."""
    if reason := missing(request.param):
        pytest.skip(reason)
    return str(request.param)


class TestOnDevice:
    """Needs a GPU and TensorRT."""

    pytestmark = on_device

    @pytest.mark.parametrize("mode", ["enqueue", "cuda-graph"])
    @pytest.mark.parametrize("batch", [1, 3])
    def test_the_contract_holds_in_every_mode(self, name: str, mode: str, batch: int) -> None:
        check_profiler(create_profiler(name, mode=mode, batch=batch))

    @pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "int8"])
    def test_a_graph_computes_what_enqueuing_computes(self, name: str, precision: str) -> None:
        images = np.random.default_rng(1).standard_normal((1, *BLOCK.in_shape), dtype=np.float32)
        outputs = [
            create_profiler(name, mode=mode, precision=precision).prepare(block(), BLOCK.in_shape).run(images)
            for mode in ("enqueue", "cuda-graph")
        ]
        # Two builds may choose other kernels, so the sums may round otherwise; int8 has steps of about 1/127.
        tolerance = {"fp32": 1e-4, "tf32": 1e-2, "fp16": 1e-2, "int8": 5e-2}[precision]
        assert np.abs(outputs[0] - outputs[1]).max() <= tolerance * np.abs(outputs[0]).max()

    def test_more_work_is_more_milliseconds(self, name: str) -> None:
        texts = ("conv k3 s1 8x8x8 -> 8x8x8", "conv k3 s1 512x64x64 -> 512x64x64")
        ms = []
        for signature in map(OpSignature.parse, texts):
            model = export_onnx(build_op(signature).eval(), signature.in_shape).SerializeToString()
            session = create_profiler(name, mode="cuda-graph").prepare(model, signature.in_shape)
            ms.append(summarise([session.time_ms(budget_ms=5)]).ms)
        # 260 000 times the multiply-adds; small kernels cost microseconds, 9.7e9 multiply-adds at least 0.1 ms.
        assert ms[1] > 5 * ms[0]

    @pytest.mark.parametrize("mode", ["enqueue", "cuda-graph"])
    def test_layers_are_timed_and_named_after_what_they_do(self, name: str, mode: str) -> None:
        signature = OpSignature.parse("conv k3 s1 512x64x64 -> 512x64x64")
        model = export_onnx(build_op(signature).eval(), signature.in_shape).SerializeToString()
        profiler = create_profiler(name, mode=mode)
        assert isinstance(profiler, TensorRTProfiler)
        engine = EngineBuilder(profiler.flavour).build(model).data
        with contextlib.closing(profiler.open(engine)) as session:
            whole = summarise([session.time_ms(budget_ms=20)]).ms
        layers = profiler.node_ms(engine, budget_ms=20)
        assert any("conv" in layer.lower() for layer in layers)
        assert 0.5 * whole < sum(layers.values()) < 3 * whole  # one kernel does nearly all of it

    def test_closing_gives_the_memory_back(self, name: str) -> None:
        profiler = create_profiler(name)
        profiler.prepare(block(), BLOCK.in_shape).close()
        gc.collect()
        before = torch.cuda.memory_allocated()
        session = profiler.prepare(block(), BLOCK.in_shape)
        assert torch.cuda.memory_allocated() > before
        session.close()
        assert torch.cuda.memory_allocated() == before

    def test_kernel_times_are_kept_from_engine_to_engine(self) -> None:
        if reason := missing("tensorrt"):
            pytest.skip(reason)
        builder = EngineBuilder(CLASSIC)
        builder.build(block())
        first = builder.timing_cache
        builder.build(block())
        assert len(builder.timing_cache) == len(first) > 0
        builder.build(convolution())
        assert len(builder.timing_cache) > len(first)
