"""The runner, built for this machine against the library installed here."""

from __future__ import annotations

import json
import os
import platform
import runpy
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from hwnas.profilers.onnxruntime import load_runtime
from hwnas.profilers.remote.bundle import Bundle
from hwnas.profilers.remote.inputs import fixed_input
from hwnas.profilers.remote.jobs import JobModel
from hwnas.profilers.remote.records import Block, Bye, Failure, Hello, Loaded, Profile, read_lines
from onnx import TensorProto, helper

TOOLS = runpy.run_path(str(Path(__file__).with_name("runner_device.py")))
Device, SHAPE, model, network, needed = (TOOLS[n] for n in ("Device", "SHAPE", "model", "network", "needed"))
only, on_host = TOOLS["only"], TOOLS["on_host"]


@pytest.fixture(scope="session")
def native() -> Bundle:
    """The bundle for this machine."""
    return needed(platform.machine())


@pytest.fixture
def device(native: Bundle, tmp_path: Path) -> Iterator[Device]:
    """This machine; whatever ran must have left nothing in its home."""
    device = Device(native, tmp_path)
    yield device
    assert list(device.home.rglob("*")) == []


def operators(path: Path) -> set[str]:
    """Kinds of nodes of a graph."""
    return {node.op_type for node in onnx.load(path).graph.node}


def test_a_job_from_hello_to_bye(device: Device) -> None:
    path = device.put("a model.onnx", network())
    batches = (tuple(JobModel(i, path) for i in (4, 2, 9)), (JobModel(3, path),))
    job = device.job(batches=batches, reference=JobModel(0, path), rounds=3, name='a "job"\té', evict_bytes=4096)
    hello, *rest = device.run(job)
    assert isinstance(hello, Hello)
    assert (hello.job, hello.ort, hello.threads) == ('a "job"\té', load_runtime().__version__, 1)
    assert hello.machine == platform.machine()
    assert hello.mhz > 100
    assert set(hello.affinity) == os.sched_getaffinity(0)
    loaded, blocks = only(rest, Loaded), only(rest, Block)
    assert [each.id for each in loaded] == [0, 4, 2, 9, 3]
    rounds = [(0, 4, 2, 9), (0, 9, 2, 4), (0, 4, 2, 9), (0, 3), (0, 3), (0, 3)]
    assert [each.id for each in blocks] == [number for ids in rounds for number in ids]
    assert [each.round for each in blocks] == [0] * 4 + [1] * 4 + [2] * 4 + [0, 0, 1, 1, 2, 2]
    assert all(len(each.ns) == 2 and min(each.ns) > 0 and min(each.mhz) > 100 for each in blocks)
    assert [each.t for each in blocks] == sorted(each.t for each in blocks)
    assert loaded[0].hwm_kb >= loaded[0].rss_before_kb > 1000
    assert rest[-1] == Bye(failed=0, lines=len(rest) + 1, **{k: getattr(rest[-1], k) for k in ("mhz", "t", "hwm_kb")})


def test_the_reference_is_timed_between_many(device: Device) -> None:
    path = device.put("a.onnx", network())
    job = device.job(*(JobModel(i, path) for i in range(1, 11)), reference=JobModel(0, path), rounds=2)
    blocks = only(device.run(job), Block)
    first, second = [0, *range(1, 9), 0, 9, 10], [0, *range(10, 2, -1), 0, 2, 1]
    assert [each.id for each in blocks] == first + second
    assert {each.batch for each in blocks} == {1}


def test_many_inputs_in_one_file_make_many_outputs(device: Device) -> None:
    content = network()
    path, images = device.put("a.onnx", content), np.random.default_rng(0).random((5, *SHAPE[1:]), np.float32)
    device.run(device.job(JobModel(1, path, dump=True, feeds={0: device.put("images", images.tobytes())}), rounds=0))
    expected = np.concatenate([on_host(content, {"x": image[None]})[0] for image in images])
    np.testing.assert_allclose(device.output(1, expected), expected, rtol=1e-6, atol=1e-6)
    torn = JobModel(2, path, dump=True, feeds={0: device.put("torn", images.tobytes()[:-4])})
    assert [each.where for each in only(device.run(device.job(torn)), Failure)] == ["feed"]


def test_blocks_last_as_long_as_asked(device: Device) -> None:
    path = device.put("a.onnx", network())
    (block,) = only(device.run(device.job(JobModel(1, path), block_ms=30, runs=1)), Block)
    assert sum(block.ns) > 15e6  # reading the clock is a small part of it
    assert sum(block.ns[:-1]) < 30e6  # the last one began in time, and a machine may stand still in it
    (block,) = only(device.run(device.job(JobModel(1, path), runs=7)), Block)
    assert len(block.ns) == 7


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int8", "uint8", "int32", "int64", "bool"])
def test_inputs_are_those_the_host_makes(device: Device, dtype: str) -> None:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    node = helper.make_node("Identity", ["x"], ["y"])
    path = device.put("a.onnx", model([node], {"x": (kind, [2, 3, 77])}, {"y": (kind, [2, 3, 77])}))
    records = device.run(device.job(JobModel(1, path, dump=True), seed=0xFFFFFFFF, rounds=0))
    (loaded,) = only(records, Loaded)
    expected = fixed_input(0xFFFFFFFF, 0, loaded.inputs[0].shape, loaded.inputs[0].type)
    assert (str(expected.dtype), expected.shape) == (dtype, (2, 3, 77))
    np.testing.assert_array_equal(device.output(1, expected), expected)
    assert len(np.unique(expected)) > {"bool": 1, "int32": 9, "int64": 9}.get(dtype, 150)


def test_outputs_are_those_of_the_host(device: Device) -> None:
    """Same library, same processor: the same bits up to the choice of threads."""
    content = network(batch="n")
    path = device.put("a.onnx", content)
    device.run(device.job(JobModel(5, path, dump=True), images=3, seed=7))
    (expected,) = on_host(content, {"x": fixed_input(7, 0, [3, *SHAPE[1:]])})
    np.testing.assert_allclose(device.output(5, expected), expected, rtol=1e-6, atol=1e-6)


def test_several_inputs_and_outputs_and_files_as_inputs(device: Device) -> None:
    nodes = [helper.make_node("Add", ["u", "v"], ["s"]), helper.make_node("Mul", ["u", "v"], ["m"])]
    content = model(nodes, {"u": (1, [4]), "v": (1, [4])}, {"s": (1, [4]), "m": (1, [4])})
    own = np.arange(4, dtype=np.float32)
    path, feed = device.put("a.onnx", content), device.put("an input", own.tobytes())
    device.run(device.job(JobModel(1, path, dump=True), JobModel(2, path, dump=True, feeds={1: feed})))
    made = [fixed_input(1, index, [4]) for index in (0, 1)]
    assert not np.array_equal(*made)
    np.testing.assert_array_equal(device.output(1, own), made[0] + made[1])
    np.testing.assert_array_equal(device.output(2, own), made[0] + own)
    np.testing.assert_array_equal(device.output(2, own, 1), made[0] * own)


def test_the_optimised_graph_and_the_profile(device: Device) -> None:
    path = device.put("a.onnx", network())
    first = JobModel(1, path, optimised="better.onnx", profile="nodes")
    (profile,) = only(device.run(device.job(first, JobModel(2, path))), Profile)
    assert profile.id == 1
    assert "_kernel_time" in (device.folder / profile.file).read_text()
    assert "Relu" not in operators(device.folder / "better.onnx")  # fused into the convolution before it
    kept = device.run(device.job(JobModel(1, path, optimised="same.onnx"), optimisation=0))
    assert only(kept, Failure) == []
    assert "Relu" in operators(device.folder / "same.onnx")


@pytest.mark.parametrize("warmup_runs", [0, 7])
def test_runs_before_those_that_count(device: Device, warmup_runs: int) -> None:
    """By the runtime's own record; the first run, which makes the outputs, is one of them."""
    path = device.put("a.onnx", network())
    settings = {"warmup_runs": warmup_runs, "block_warmup_runs": 3, "rounds": 2, "runs": 5}
    (profile,) = only(device.run(device.job(JobModel(1, path, profile="runs"), **settings)), Profile)
    events = json.loads((device.folder / profile.file).read_text())
    assert sum(event["name"] == "model_run" for event in events) == 1 + warmup_runs + 2 * (3 + 5)


def test_the_most_memory_is_that_of_each_model(device: Device) -> None:
    """A large model in the first batch, a small one in the second, when the large one is gone."""
    nodes = [helper.make_node("Expand", ["x", "s"], ["a"]), helper.make_node("ReduceSum", ["a"], ["y"], keepdims=0)]
    size = helper.make_tensor("s", TensorProto.INT64, [1], [2**24])  # 64 MiB of float32
    large = device.put("large.onnx", model(nodes, {"x": (1, [1])}, {"y": (1, [])}, [size]))
    batches = ((JobModel(1, large),), (JobModel(2, device.put("small.onnx", network())),))
    first, second = only(device.run(device.job(batches=batches)), Loaded)
    assert first.hwm_kb >= first.rss_before_kb + 2**16
    assert second.hwm_kb < first.hwm_kb - 2**15


def test_eviction_makes_runs_cold(device: Device) -> None:
    """1 MiB of weights is read from the caches, or from memory after 64 MiB of others.

    Of many runs the quickest, as other programs only make them slower. A last cache that holds all of it is still
    slower than the one before it: by half on an AMD EPYC with 32 MiB, of which 16 were written.
    """
    weights = helper.make_tensor("w", 1, [512, 512], np.ones((512, 512), np.float32).tobytes(), raw=True)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    path = device.put("a.onnx", model([node], {"x": (1, [1, 512])}, {"y": (1, [1, 512])}, [weights]))
    found: dict[int, list[int]] = {0: [], 2**26: []}
    for _ in range(3):  # in turns
        for evict_bytes, samples in found.items():
            job = device.job(JobModel(1, path), runs=50, block_warmup_runs=2, evict_bytes=evict_bytes)
            (block,) = only(device.run(job), Block)
            samples += block.ns
    hot, cold = map(min, found.values())
    assert cold > 1.25 * hot


def test_cores_and_threads(device: Device) -> None:
    allowed = tuple(sorted(os.sched_getaffinity(0)))
    path = device.put("a.onnx", network())
    hello, *rest = device.run(device.job(JobModel(1, path), cores=allowed[-1:]))
    assert isinstance(hello, Hello)
    assert hello.affinity == allowed[-1:]
    assert [each.cpu for each in only(rest, Block)] == [(allowed[-1], allowed[-1])]
    # One thread, whatever ORT_INTRA_OP_NUM_THREADS says; no thread of a telemetry
    assert [each.masks for each in only(rest, Loaded)] == [(str(allowed[-1]),)]
    if len(allowed) < 2:
        pytest.skip("this machine lends one core only; two threads need two")
    pair = allowed[-2:]
    _, *rest = device.run(device.job(JobModel(1, path), cores=pair, threads=2))
    assert [sorted(each.masks) for each in only(rest, Loaded)] == [sorted(map(str, pair))]


def test_cores_that_are_not_there(device: Device) -> None:
    """The kernel refuses a mask of missing cores, and silently cuts one of which some are there."""
    allowed, missing = min(os.sched_getaffinity(0)), 1000
    path = device.put("a.onnx", network())
    message = device.refuses(device.job(JobModel(1, path), cores=(missing,)).text(), 4, "cores")
    assert "refuses these cores" in message
    message = device.refuses(device.job(JobModel(1, path), cores=(allowed, missing)).text(), 4, "cores")
    assert "only 1 of 2" in message
    message = device.refuses(device.job(JobModel(1, path), cores=(allowed, allowed)).text(), 4, "cores")
    assert "twice" in message


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("colour red", "line 4 of the job file is not understood: colour red"),
        ("threads", "line 4"),
        ("threads 0", "line 4"),
        ("threads 2x", "line 4"),
        ("seed 4294967296", "line 4"),
        ("cores 1,,x", "line 4"),
        ("proto 2", "line 4"),
        ("batch 3", "line 4"),
        ("model 1 again.onnx", "line 4"),
        ("model x a.onnx", "line 4"),
        ("dump 8", "line 4"),
        ("feed 1 a.bin", "line 4"),
        ("cores 0\nthreads 2", "fewer cores than threads"),
    ],
)
def test_wrong_lines_are_refused(device: Device, line: str, part: str) -> None:
    text = f"library none\nbatch 1\nmodel 1 a.onnx\n{line}\n"
    assert part in device.refuses(text, 2, "job")


def test_wrong_job_files_are_refused(device: Device) -> None:
    assert "names no library" in device.refuses("batch 1\n", 2, "job")
    assert "middle of a line" in device.refuses("library none\nrounds 1", 2, "job")
    command = device.bundle.command(str(device.bundle.folder), str(device.folder / "missing"))
    done = subprocess.run(command, capture_output=True, timeout=20, check=False)
    assert (done.returncode, done.stdout.count(b"cannot be read")) == (2, 1)
    assert subprocess.run(command[:-1], capture_output=True, timeout=20, check=False).returncode == 2


def test_other_libraries_are_refused(device: Device) -> None:
    assert "cannot open" in device.refuses(device.job(library="/missing.so").text(), 3, "library")
    assert "not ONNX Runtime" in device.refuses(device.job(library="libm.so.6").text(), 3, "library")


def test_bad_models_are_named_and_the_others_go_on(device: Device) -> None:
    good, text = device.put("good.onnx", network()), TensorProto.STRING
    identity, inner = helper.make_node("Identity", ["x"], ["y"]), ["n", "m"]
    bad = {
        2: JobModel(2, "missing.onnx"),
        3: JobModel(3, device.put("3.onnx", b"rubbish")),
        4: JobModel(4, device.put("4.onnx", model([identity], {"x": (text, [1])}, {"y": (text, [1])}))),
        5: JobModel(5, device.put("5.onnx", model([identity], {"x": (1, inner)}, {"y": (1, inner)}))),
        6: JobModel(6, good, feeds={0: device.put("short", b"12")}),
        7: JobModel(7, good, feeds={0: "missing"}),
        8: JobModel(8, good, feeds={3: "short"}),
    }
    job = device.job(JobModel(1, good), *bad.values(), JobModel(9, good), rounds=2)
    records = device.run(job)
    failures = {each.id: each for each in only(records, Failure)}
    assert [each.id for each in only(records, Block)] == [1, 9, 9, 1]
    assert {number: each.where for number, each in failures.items()} == dict.fromkeys((2, 3), "CreateSession") | {
        4: "input", 5: "input", 6: "feed", 7: "feed", 8: "feed",
    }  # fmt: skip
    assert not any(each.fatal for each in failures.values())
    assert records[-1].failed == len(bad)  # type: ignore[attr-defined]


def test_a_model_that_fails_while_it_runs(device: Device) -> None:
    """An index that is outside only for some inputs: seen when it runs."""
    node = helper.make_node("Gather", ["t", "x"], ["y"])
    table = helper.make_tensor("t", 1, [1], [1.0])
    bad = device.put("bad.onnx", model([node], {"x": (TensorProto.INT64, [50])}, {"y": (1, [50])}, [table]))
    records = device.run(device.job(JobModel(1, bad), JobModel(2, device.put("a.onnx", network()))))
    (failure,) = only(records, Failure)
    assert (failure.id, failure.where) == (1, "Run")
    assert [each.id for each in only(records, Block)] == [2]


def test_settings_reach_the_runtime(device: Device) -> None:
    path = device.put("a.onnx", network())
    first = JobModel(1, path, optimised="better")
    device.run(device.job(first, config={"session.save_model_format": "ORT"}))
    assert (device.folder / "better").read_bytes()[4:8] == b"ORTM"  # identifies that format


def test_the_deadline_names_the_model(device: Device) -> None:
    path = device.put("a.onnx", network())
    code, records = device.end(device.job(JobModel(12, path), warmup_ms=60_000, deadline_s=1).text())
    assert code == 5
    assert records[-1] == Failure("deadline", "the deadline passed", True, 12)


def test_a_crash_names_the_model(device: Device) -> None:
    path = device.put("a.onnx", network())
    job = device.job(JobModel(30, path), block_ms=20_000, evict_bytes=2**22)  # one block, for seconds
    with device.start(job.text()) as process:
        assert process.stdout is not None
        head = [process.stdout.readline(), process.stdout.readline()]
        process.send_signal(signal.SIGILL)
        out, _ = process.communicate(timeout=20)
    *_, last = read_lines([*head, *out.splitlines()])
    assert process.returncode == 7
    assert last == Failure("signal", f"the processor stopped at signal {int(signal.SIGILL)}", True, 30)


def test_an_output_that_cannot_be_written(device: Device) -> None:
    path = device.put("a.onnx", network())
    with open("/dev/full", "wb") as full, device.start(device.job(JobModel(1, path)).text(), stdout=full) as process:
        assert process.wait(timeout=20) == 6


def test_slow_blocks_are_repeated(device: Device) -> None:
    """By the clock of this machine: whatever it did, the marks and the repeats follow from it."""
    path, drop = device.put("a.onnx", network()), 1
    job = device.job(JobModel(1, path), rounds=30, repeats=2, drop_percent=drop)
    hello, *rest = device.run(job)
    assert isinstance(hello, Hello)
    blocks = only(rest, Block)
    for block in blocks:
        if abs(min(block.mhz) - hello.mhz * 0.99) > 0.01:  # printed with three digits
            assert block.throttled == (min(block.mhz) < hello.mhz * 0.99)
    expected = [(round_, attempt) for round_ in range(30) for attempt in range(3)]
    seen = [(block.round, block.attempt) for block in blocks]
    assert seen == [pair for pair in expected if pair in seen]
    for block in blocks:
        assert ((block.round, block.attempt + 1) in seen) == (block.throttled and block.attempt < 2)
