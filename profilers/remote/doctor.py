"""What only the device itself can tell: whether it can be measured, and how well."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hwnas._version import __version__
from hwnas.errors import HwnasError, MeasurementError
from hwnas.onnx_precision import to_precision

from ..onnxruntime import load_runtime
from .about import About, read_about, read_state
from .device import FOLDER, LAUNCHER, Connection, Device
from .inputs import fixed_input
from .records import Hello, Loaded
from .session import RemoteSession
from .targets import Target, create_target
from .topology import format_cores

SHAPE = (1, 16, 14, 14)
TOLERANCE = 1e-5
"""For fp32, against this machine: another order of summation rounds differently; int8 is exact."""

TIMED_ROUNDS, TIMED_MS = 20, 20.0
LOAD_S, LOAD_MS = 20.0, 250.0
"""Length of the check under load, and of one round of it."""

STEADY = 0.1
"""How much slower the last quarter of the load may be than the first, and most rounds than the quickest."""

SENT_BYTES = 2**22

TELEMETRY = """for d in "$HOME/.cache/Microsoft" "$1"; do
  find "$d" -name 'onnxruntime.db*' -exec stat -c '%n %Y %s' {} + 2>/dev/null
  find "$d" -name deviceid -exec stat -c '%n %Y %s' {} + 2>/dev/null
done; true"""
"""Files that ONNX Runtime's telemetry writes, with their times and sizes."""


@dataclass
class Doctor:
    """Checks a device from the first command to the first latency.

    Args:
        name: As ``create_target`` takes it.
        say: Told every line of the report.
    """

    name: str
    say: Callable[[str], None]
    num_failed: int = 0
    about: About | None = field(default=None, init=False)
    connection: Connection | None = field(default=None, init=False)
    _before: set[str] = field(default_factory=set, init=False)

    def checked(self, what: str, check: Callable[[], str], *, essential: bool = True) -> bool:
        """Runs a check and says what it found; whether it passed."""
        begun = time.monotonic()
        try:
            verdict, found = "ok", check()
        except HwnasError as error:
            verdict, found = "FAILED" if essential else "no", str(error)
            self.num_failed += essential
        self.say(f"{verdict:<7} {what:<12} {found} [{time.monotonic() - begun:.2f} s]")
        return verdict == "ok"

    def examine(self) -> None:
        """All checks; later ones need the earlier ones."""
        if not (self.checked("answers", self.answers) and self.checked("bundle", self.bundle)):
            return
        assert self.about is not None
        assert self.connection is not None
        for cluster in self.about.clusters:
            cores = cluster.cores[-1:]
            self.checked(f"core {format_cores(cores)}", lambda cores=cores: self.core(cores))  # type: ignore[misc]
        self.checked("all cores", self.threads, essential=False)
        device = Device(self.connection, self.about.clusters[-1].cores[-1:] if self.about.clusters else ())
        for precision, tolerance in (("fp32", TOLERANCE), ("int8", 0.0), ("fp16", 1e-2)):
            essential = precision != "fp16"
            check = lambda p=precision, t=tolerance: self.numbers(device, p, t)  # noqa: E731
            self.checked(precision, check, essential=essential)
        self.checked("transfer", lambda: self.transfer(device))
        self.checked("timing", lambda: self.timing(device))
        self.checked("steady", lambda: self.steady(device), essential=False)
        self.checked("telemetry", self.telemetry)
        self.checked("hang-up", self.hang_up, essential=False)
        self.checked("state", self.state, essential=False)
        device.clean()

    def answers(self) -> str:
        """Whether commands run, and how long one takes."""
        target = create_target(self.name, launcher=os.environ.get(LAUNCHER, ""), folder=os.environ.get(FOLDER))
        self.about = read_about(target.transport)
        self._before = self._telemetry_files(target)
        begun = time.monotonic()
        for _ in range(3):
            target.transport.run(["true"], timeout_s=30)
        each = (time.monotonic() - begun) / 3
        target.transport.close()
        about = self.about
        clusters = "; ".join(map(str, about.clusters)) or "its cores cannot be told"
        system = f"kernel {about.kernel} {about.machine}, Android {about.build or 'no'}"
        free = f"{about.free_bytes / 2**20:.0f} MiB of memory free"
        return f"{about.name}; cores {clusters}; {system}; {free}; a command takes {each:.2f} s"

    def bundle(self) -> str:
        """Whether our files arrive, may be executed, and start: on a phone this asks SELinux."""
        self.connection = Connection.open(self.name)
        hello = self._hello(())
        native = "yes" if hello.native_fp16 else "no"
        return (
            f"ONNX Runtime {hello.ort} in {self.connection.folder}, pages of {hello.page} bytes, hwcap {hello.hwcap} "
            f"{hello.hwcap2}, native fp16 {native}, library loaded in {hello.dlopen_ms:.0f} ms"
        )

    def core(self, cores: tuple[int, ...]) -> str:
        """Whether a thread can be bound to a core, and its clock."""
        hello = self._hello(cores)
        return f"granted, {hello.mhz:.0f} MHz by counting, {','.join(map(str, hello.khz))} kHz by the governor"

    def threads(self) -> str:
        """Whether each thread of the fastest cluster gets a core of its own."""
        assert self.about is not None
        cores = self.about.clusters[-1].cores
        device = Device(self._open(), cores)
        with closing(self._session(device, "fp32")) as session:
            (loaded,) = [r for r in device.records(session.job(0)) if isinstance(r, Loaded)]
        return f"{len(cores)} threads on cores {', '.join(loaded.masks)}"

    def numbers(self, device: Device, precision: str, tolerance: float) -> str:
        """Whether the device computes what this machine computes."""
        if precision == "fp16" and device.hello and not device.hello.native_fp16:
            raise MeasurementError("the processor has no arithmetic in fp16")
        images = fixed_input(1, 0, SHAPE)
        with closing(self._session(device, precision)) as session:
            theirs = session.run(images)
        graph = to_precision(golden_model(), precision)
        runtime = load_runtime().InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
        (ours,) = runtime.run(None, {"x": images.astype("float16" if precision == "fp16" else "float32")})
        worst = float(np.abs(ours.astype(np.float32) - theirs).max() / np.abs(ours).max())
        if not worst <= tolerance:
            raise MeasurementError(f"outputs differ from this machine's by {worst:.1e} of the largest")
        return f"outputs differ from this machine's by {worst:.1e} of the largest"

    def timing(self, device: Device) -> str:
        """What a latency looks like."""
        lows = self._rounds(device, TIMED_ROUNDS, TIMED_MS)
        return f"a small network takes {np.median(lows):.4g} ms, the quickest of {len(lows)} rounds {lows.min():.4g} ms"

    def steady(self, device: Device) -> str:
        """Whether latencies stay what they are under load: other programs, and heat, show here."""
        lows = self._rounds(device, max(8, round(1e3 * LOAD_S / LOAD_MS)), LOAD_MS)
        quarter = len(lows) // 4
        slower = float(np.median(lows[-quarter:]) / np.median(lows[:quarter])) - 1
        spread = float(np.quantile(lows, 0.9) / lows.min()) - 1
        tally = device.tally.details()
        found = (
            f"under load the end is {slower:+.1%} slower than the start, nine tenths of the rounds lie within "
            f"{spread:.1%}; slow blocks {tally['slow_blocks']}; lowest clock {tally['lowest_clock']}"
        )
        if max(slower, spread) > STEADY:
            raise MeasurementError(f"{found}. Let it cool, close other programs, or take --cores big.")
        return found

    def transfer(self, device: Device) -> str:
        """Whether files arrive and come back as they were, and how fast."""
        content, begun = os.urandom(SENT_BYTES), time.monotonic()
        device.put({"sent": content})
        sent = time.monotonic()
        if device.pull("sent") != content:
            raise MeasurementError("a file came back with another content; try another cable or network")
        rates = [SENT_BYTES / 2**20 / each for each in (sent - begun, time.monotonic() - sent)]
        return f"{rates[0]:.0f} MiB/s there, {rates[1]:.0f} MiB/s back"

    def _rounds(self, device: Device, count: int, budget_ms: float) -> np.ndarray:
        """The tenth of the run times of a small network, in milliseconds, of every round."""
        with closing(self._session(device, "fp32")) as session:
            visits = list(session.time_with({}, num_rounds=count, budget_ms=budget_ms))
        return np.array([np.quantile(found, 0.1) for _, _, found in visits if isinstance(found, list)])

    def telemetry(self) -> str:
        """Whether ONNX Runtime wrote anything of its own since the first check."""
        written = self._telemetry_files(self._open().target) - self._before
        if written:
            raise MeasurementError(f"files of a telemetry were written: {', '.join(sorted(written))}")
        return "off, no file of it was written"

    def _telemetry_files(self, target: Target) -> set[str]:
        ended = target.transport.run(["sh", "-c", TELEMETRY, "sh", target.folder], timeout_s=60)
        return set(ended.out.decode(errors="replace").splitlines())

    def hang_up(self) -> str:
        """Whether a command ends when this side goes away."""
        transport = self._open().target.transport
        with transport.start(["sh", "-c", "echo $$; exec sleep 60"], silence_s=30) as running:
            process = next(running.lines())
        for _ in range(20):
            if transport.run(["kill", "-0", process], timeout_s=30).code:
                return "a command ends with its connection"
            time.sleep(0.1)
        with suppress(MeasurementError):
            transport.run(["kill", "-9", process], timeout_s=30)
        raise MeasurementError("a command outlives its connection; it ends by its own deadline")

    def state(self) -> str:
        """What can be read of clock, temperature and battery."""
        return ", ".join(f"{name} {value}" for name, value in read_state(self._open().target.transport).items())

    def _open(self) -> Connection:
        assert self.connection is not None
        return self.connection

    def _hello(self, cores: tuple[int, ...]) -> Hello:
        device = Device(self._open(), cores)
        (hello,) = [r for r in device.records(device.job(batches=(), rounds=0)) if isinstance(r, Hello)]
        device.clean()
        return hello

    def _session(self, device: Device, precision: str) -> RemoteSession:
        model = to_precision(golden_model(), precision).SerializeToString()
        kind = "float16" if precision == "fp16" else "float32"
        return RemoteSession(device, model, input_shape=SHAPE[1:], input_type=kind, batch=1, metadata={})


def golden_model() -> Any:
    """An inverted residual of fixed weights: expansion, depthwise 5x5, projection, and the input added."""
    from onnx import helper

    def weight(name: str, *shape: int) -> Any:
        values = fixed_input(sum(shape), 0, shape) / np.sqrt(np.prod(shape[1:]))
        return helper.make_tensor(name, 1, shape, values.astype(np.float32).tobytes(), raw=True)

    weights = [weight("e", 48, 16, 1, 1), weight("d", 48, 1, 5, 5), weight("p", 16, 48, 1, 1)]
    nodes = [
        helper.make_node("Conv", ["x", "e"], ["a"], name="expand"),
        helper.make_node("Relu", ["a"], ["b"], name="act"),
        helper.make_node("Conv", ["b", "d"], ["c"], name="depthwise", pads=[2] * 4, group=48),
        helper.make_node("Relu", ["c"], ["f"], name="act2"),
        helper.make_node("Conv", ["f", "p"], ["g"], name="project"),
        helper.make_node("Add", ["g", "x"], ["y"], name="add"),
    ]
    ends = [helper.make_tensor_value_info(name, 1, SHAPE) for name in "xy"]
    graph = helper.make_graph(nodes, "golden", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def doctor(target: str, say: Callable[[str], None]) -> int:
    """Examines a device.

    Args:
        target: ``local``, ``ssh://[user@]host[:port]`` or ``adb:SERIAL``.
        say: Told every line of a report to paste.

    Returns:
        How many things failed that measuring needs.

    Raises:
        UsageError: The name cannot be read.
    """
    create_target(target)
    say(f"hwnas {__version__}, device {target}, launcher {os.environ.get(LAUNCHER) or 'none'}")
    examination = Doctor(target, say)
    examination.examine()
    return examination.num_failed
