"""Job files, and the runner's lines as a host may receive them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hwnas.profilers.remote.inputs import fixed_input
from hwnas.profilers.remote.jobs import Job, JobModel
from hwnas.profilers.remote.records import Block, Bye, Failure, Hello, Record, ended_well, read_lines

from hwnas.errors import DeviceLostError, MeasurementError, UsageError

HELLO: dict[str, Any] = {
    "ev": "hello", "proto": 1, "job": "j", "ort": "1.31.1", "build": "b", "providers": ["CPU"], "dlopen_ms": 1.5,
    "machine": "aarch64", "release": "6", "page": 4096, "hwcap": "119ffb", "hwcap2": "0", "ncpu": 8, "affinity": [4],
    "threads": 1, "mhz": 2400.0, "khz": [-1],
}  # fmt: skip
BLOCK: dict[str, Any] = {
    "ev": "block", "proto": 1, "id": 3, "batch": 1, "round": 0, "attempt": 0, "throttled": False, "t": 0.5,
    "rested": 0, "cpu": [4, 4], "mhz": [2400.0, 2399.5], "khz": [-1], "nivcsw": 0, "faults": 2, "ns": [1000, 999],
}  # fmt: skip
BYE: dict[str, Any] = {"ev": "bye", "proto": 1, "failed": 0, "lines": 3, "mhz": 2400, "t": 1.5, "hwm_kb": 9000}
FATAL: dict[str, Any] = {"ev": "error", "proto": 1, "where": "cores", "msg": "no", "fatal": True}


def said(*documents: dict[str, Any] | str) -> list[Record]:
    """Records of lines; a document becomes one."""
    return list(read_lines([d if isinstance(d, str) else json.dumps(d) + "\n" for d in documents]))


def test_records_in_their_order() -> None:
    hello, block, bye = said(HELLO, BLOCK, BYE)
    assert isinstance(hello, Hello)
    assert (hello.affinity, hello.native_fp16) == ((4,), True)
    assert isinstance(block, Block)
    assert (block.id, block.mhz, block.ns, block.throttled) == (3, (2400.0, 2399.5), (1000, 999), False)
    assert bye == Bye(0, 3, 2400, 1.5, 9000)


def test_half_precision_needs_both_bits() -> None:
    for hwcap, machine, native in [("600", "aarch64", True), ("200", "aarch64", False), ("600", "x86_64", False)]:
        (hello, *_) = said(HELLO | {"hwcap": hwcap, "machine": machine}, BLOCK, BYE)
        assert isinstance(hello, Hello)
        assert hello.native_fp16 is native


def test_what_others_print_and_later_versions_add() -> None:
    noise = "W onnxruntime: Unknown CPU vendor\n"
    records = said(noise, HELLO | {"colour": "red"}, BLOCK, {"ev": "later", "proto": 1}, noise, BYE | {"lines": 4})
    assert [each.event for each in records] == ["hello", "block", "bye"]


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [HELLO, BLOCK],
        [HELLO, BLOCK, "{"],
        [HELLO, BYE],
        [HELLO, json.dumps(BLOCK)[:-20] + "\n", BYE],
        [HELLO, '{"ev": 3}\n', BYE],
    ],
)
def test_lines_that_end_early_or_were_lost(lines: Sequence[dict[str, Any] | str]) -> None:
    with pytest.raises(DeviceLostError):
        said(*lines)


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (HELLO | {"proto": 2}, "version 2 of its protocol"),
        ({k: v for k, v in HELLO.items() if k != "proto"}, "version None of its protocol"),
        ({k: v for k, v in BLOCK.items() if k != "ns"}, "lacks 'ns'"),
        (BLOCK | {"ns": ["1"]}, "no sound 'ns'"),
        (BLOCK | {"ns": 5}, "no sound 'ns'"),
        (BLOCK | {"id": True}, "no sound 'id'"),
        (BLOCK | {"t": None}, "no sound 't'"),
        (BLOCK | {"throttled": 0}, "no sound 'throttled'"),
    ],
)
def test_other_versions_are_refused(line: dict[str, Any], part: str) -> None:
    with pytest.raises(MeasurementError, match=part):
        said(line, BLOCK, BYE)


def test_ends_of_the_runner() -> None:
    (failure,) = said(FATAL)
    assert failure == Failure("cores", "no", True)
    assert isinstance(failure, Failure)
    ended_well(0, None)
    for code, part in [(4, "the cores were refused: no"), (0, "no .cores."), (77, "exit code 77")]:
        with pytest.raises(MeasurementError, match=part):
            ended_well(code, failure)
    with pytest.raises(MeasurementError, match="it crashed"):
        ended_well(7, None)
    with pytest.raises(MeasurementError, match="in model 8"):
        ended_well(7, Failure("signal", "stopped", True, 8))


def test_the_text_of_a_job() -> None:
    special = JobModel(2, "b c.onnx", dump=True, feeds={1: "in put"}, optimised="o", profile="p")
    job = Job(
        name="n",
        library="/d/lib.so",
        batches=((JobModel(1, "a.onnx"), special), (JobModel(3, "c.onnx"),)),
        reference=JobModel(0, "r.onnx"),
        cores=(4, 7),
        threads=2,
        config={"mlas.disable_kleidiai": "1"},
    )
    lines = job.text().splitlines()
    assert {"proto 1", "job n", "library /d/lib.so", "cores 4,7", "threads 2", "config mlas.disable_kleidiai 1"} < {
        *lines
    }
    assert lines[lines.index("reference 0 r.onnx") :] == [
        "reference 0 r.onnx",
        "batch 1",
        "model 1 a.onnx",
        "model 2 b c.onnx",
        "dump 2",
        "feed 2 1 in put",
        "optimised 2 o",
        "profile 2 p",
        "batch 2",
        "model 3 c.onnx",
    ]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"batches": ((JobModel(1, "a"),), (JobModel(1, "b"),))}, "same id"),
        ({"reference": JobModel(1, "r")}, "same id"),
        ({"cores": (1,), "threads": 2}, "2 threads need as many cores"),
        ({"name": "a\ndeadline_s 1"}, "more than one line"),
        ({"batches": ((JobModel(1, "a\nb"),),)}, "more than one line"),
    ],
)
def test_jobs_that_contradict_themselves(change: dict[str, Any], part: str) -> None:
    with pytest.raises(UsageError, match=part):
        Job(**{"library": "l", "batches": ((JobModel(1, "a"),),)} | change).text()


def test_inputs_follow_the_published_generator() -> None:
    """Shifts 13, 17, 5, written out step by step."""
    state, expected = 12345, []
    for _ in range(1000):
        state ^= state << 13 & 0xFFFFFFFF
        state ^= state >> 17
        state ^= state << 5 & 0xFFFFFFFF
        expected.append((state >> 8) / 2**23 - 1)
    np.testing.assert_array_equal(fixed_input(12345, 0, (1000,)), np.array(expected, np.float32))
    assert fixed_input(1, 0, (0, 3)).shape == (0, 3)
    with pytest.raises(UsageError, match="no inputs of type 'other'"):
        fixed_input(1, 0, (3,), "other")
