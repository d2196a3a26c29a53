"""What the runner answers: its JSON lines as records."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

from hwnas.errors import DeviceLostError, MeasurementError

from .errors import RunnerError
from .jobs import PROTO

REMOVE = "remove hwnas's folder on the device and run the same command again"
EXIT_CODES = MappingProxyType(
    {
        2: ("the job file was refused", f"it is of another version: {REMOVE}"),
        3: ("ONNX Runtime did not load", f"{REMOVE}; 'hwnas device doctor' says more"),
        4: ("the cores were refused", "take others with --cores, or wake the device: sleeping cores may be off"),
        5: ("it took too long", "see that nothing else runs there, and run the same command again"),
        6: ("its output could not be written", "make room on the device"),
        7: ("it crashed", "'hwnas device doctor' says whether simpler networks run"),
        8: ("memory ran out", "close other programs there, or take a smaller batch or resolution"),
        9: ("the device is busy", "wait until the other job has ended, or end it there"),
        126: ("its program cannot be executed", "it is of another kind of machine; see HWNAS_LAUNCHER, HWNAS_WHEEL"),
        127: ("its program is not there", "run the same command again, which sends it; see HWNAS_LAUNCHER"),
        137: ("the system ended it", "mostly for lack of memory: close other programs there, or take a smaller batch"),
    }
)
"""How the runner, or the shell that starts it, ends where it does not end with 0, and what to do; ``runner/lines.h``
is the other half."""

ASK = "'hwnas device doctor' examines the device"

_Record = TypeVar("_Record", bound="Record")


@dataclass(frozen=True)
class Tensor:
    """An input or output as the runner bound it; ``type`` is a name of numpy, or ``other``."""

    name: str
    type: str
    shape: tuple[int, ...]


class Record:
    """One line of the runner."""

    event: ClassVar[str]


@dataclass(frozen=True)
class Hello(Record):
    """The device as the runner found it; ``mhz`` is its clock under load, ``khz`` what the governor says of each core.

    ``affinity`` are the cores granted, ``page`` is in bytes, ``hwcap`` and ``hwcap2`` are the kernel's bits in
    hexadecimal.
    """

    event: ClassVar[str] = "hello"
    job: str
    ort: str
    build: str
    providers: tuple[str, ...]
    dlopen_ms: float
    machine: str
    release: str
    page: int
    hwcap: str
    hwcap2: str
    ncpu: int
    affinity: tuple[int, ...]
    threads: int
    mhz: float
    khz: tuple[int, ...]

    @property
    def native_fp16(self) -> bool:
        """Whether the processor computes in half precision (Arm: FPHP and ASIMDHP); only known of aarch64."""
        return self.machine == "aarch64" and int(self.hwcap, 16) & 0x600 == 0x600


@dataclass(frozen=True)
class Loaded(Record):
    """A model that was loaded, run once and warmed up; ``masks`` are the cores each thread may run on."""

    event: ClassVar[str] = "model"
    id: int
    batch: int
    load_ms: float
    first_ms: float
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    dumped: bool
    rss_before_kb: int
    rss_kb: int
    hwm_kb: int
    masks: tuple[str, ...]


@dataclass(frozen=True)
class Block(Record):
    """Consecutive timed runs of one model; ``batch`` is that of the models around it, for the reference, too.

    ``t`` are seconds since the runner's start, ``rested`` seconds spent cooling before; ``cpu`` and ``mhz`` hold the
    values before and after; ``nivcsw`` counts involuntary switches; ``ns`` is the time of every run.
    """

    event: ClassVar[str] = "block"
    id: int
    batch: int
    round: int
    attempt: int
    throttled: bool
    t: float
    rested: float
    cpu: tuple[int, ...]
    mhz: tuple[float, ...]
    khz: tuple[int, ...]
    nivcsw: int
    faults: int
    ns: tuple[int, ...]


@dataclass(frozen=True)
class Profile(Record):
    """Where the runtime's profiler wrote, relative to the folder of the job file."""

    event: ClassVar[str] = "profile"
    id: int
    file: str


@dataclass(frozen=True)
class Failure(Record):
    """A model that failed, after which the others go on; or, if fatal, what ended the runner. ``id`` -1: no model."""

    event: ClassVar[str] = "error"
    where: str
    msg: str
    fatal: bool
    id: int = -1


@dataclass(frozen=True)
class Bye(Record):
    """The last line of a job that ran to its end; ``lines`` counts all, ``failed`` the models."""

    event: ClassVar[str] = "bye"
    failed: int
    lines: int
    mhz: float
    t: float
    hwm_kb: int


_RECORDS: dict[str, type[Record]] = {each.event: each for each in (Hello, Loaded, Block, Profile, Failure, Bye)}


@dataclass
class Tally:
    """What jobs were like: sums over their timed blocks, the lowest clock, and the most memory."""

    num_blocks: int = 0
    num_slow: int = 0
    num_kept: int = 0
    num_switches: int = 0
    num_faults: int = 0
    least_mhz: float = math.inf
    most_kb: int = 0

    def add(self, record: Record) -> None:
        """Takes in a line of the runner."""
        if isinstance(record, Block):
            self.num_blocks += 1
            self.num_slow += record.throttled
            self.num_switches += record.nivcsw
            self.num_faults += record.faults
            self.least_mhz = min(self.least_mhz, *record.mhz)
        elif isinstance(record, Loaded | Bye):
            self.most_kb = max(self.most_kb, record.hwm_kb)

    def details(self) -> dict[str, str]:
        """The same in words."""
        clock = f"{self.least_mhz:.0f} MHz by counting" if self.num_blocks else "not measured yet"
        return {
            "slow_blocks": f"{self.num_slow} of {self.num_blocks} with a fallen clock, of which {self.num_kept} count",
            "lowest_clock": clock,
            "interruptions": f"{self.num_switches} involuntary switches, {self.num_faults} page faults while timing",
            "most_memory": f"{self.most_kb / 1024:.0f} MiB",
        }


def read_lines(lines: Iterable[str | bytes]) -> Iterator[Record]:
    """What the runner says, as it says it.

    Lines that do not start with a brace are those of others and skipped; so are events and keys of later versions.

    Args:
        lines: Of its standard output, with or without their ends.

    Raises:
        DeviceLostError: They end without a last line, or some were lost; what came before is sound.
        MeasurementError: Another version of the runner, or a line that is not its own.
    """
    seen, last = 0, None
    for line in lines:
        text = line.decode("utf-8", "replace") if isinstance(line, bytes) else line
        if not text.startswith("{"):
            continue
        document = _parse(text)
        if document is None:
            continue  # counted below: a cut line is missing in the sum
        seen += 1
        kind = _RECORDS.get(document["ev"])
        if kind is not None:
            last = _build(kind, document)
            yield last
    if isinstance(last, Failure) and last.fatal:
        return
    if not isinstance(last, Bye):
        raise DeviceLostError("the runner's answers ended without its last line. Look after the device and resume.")
    if last.lines != seen:
        raise DeviceLostError(f"{last.lines - seen} of the runner's {last.lines} lines were lost on the way. Resume.")


def ended_well(code: int, failure: Failure | None, said: str = "") -> None:
    """Checks how the runner ended.

    Args:
        code: Its exit code; the shell of an old Android always says 0.
        failure: Its last record, if that was a fatal failure.
        said: Its standard error.

    Raises:
        RunnerError: It did not end well; says why.
    """
    if code == 0 and failure is None:
        return
    meaning, advice = EXIT_CODES.get(code, (f"exit code {code}", ASK)) if code else ("it says", ASK)
    detail = f": {failure.msg} ({failure.where})" if failure else ""
    model = f", in model {failure.id}" if failure and failure.id >= 0 else ""
    tail = f" ({said.strip()[-300:]})" if said.strip() and failure is None else ""
    message = f"the runner gave up on the device: {meaning}{detail}{model}{tail}. What to do: {advice}."
    culprit = failure.id if failure and failure.where != "deadline" else -1
    raise RunnerError(message, code=code, model=culprit)


def _parse(text: str) -> dict[str, Any] | None:
    """The object of a line; None for what is none, such as a line that was cut."""
    try:
        document = json.loads(text)
    except ValueError:
        return None
    if not isinstance(document, dict) or not isinstance(document.get("ev"), str):
        return None
    if document.get("proto") != PROTO:
        raise MeasurementError(
            f"the runner speaks version {document.get('proto')} of its protocol, this is version {PROTO}. Remove "
            "hwnas's folder on the device; the next run sends the right runner."
        )
    return document


def _build(kind: type[_Record], document: Mapping[str, Any]) -> _Record:
    values = {}
    for each in dataclasses.fields(kind):  # type: ignore[arg-type]
        if each.name in document:
            try:
                values[each.name] = _READERS[str(each.type)](document[each.name])
            except (TypeError, ValueError, KeyError) as error:
                raise MeasurementError(
                    f"the runner's line '{kind.event}' has no sound '{each.name}': {document[each.name]!r:.80}."
                ) from error
        elif each.default is dataclasses.MISSING:
            raise MeasurementError(f"the runner's line '{kind.event}' lacks '{each.name}'; it is of another version.")
    return kind(**values)


def _exactly(*kinds: type) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if type(value) not in kinds:
            raise TypeError
        return value

    return read


def _each(read: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    return lambda values: tuple(read(value) for value in _exactly(list)(values))


def _tensor(value: Any) -> Tensor:
    text, numbers = _exactly(str), _each(_exactly(int))
    return Tensor(text(value["name"]), text(value["type"]), numbers(value["shape"]))


_READERS: dict[str, Callable[[Any], Any]] = {
    "str": _exactly(str),
    "int": _exactly(int),
    "float": _exactly(int, float),
    "bool": _exactly(bool),
    "tuple[str, ...]": _each(_exactly(str)),
    "tuple[int, ...]": _each(_exactly(int)),
    "tuple[float, ...]": _each(_exactly(int, float)),
    "tuple[Tensor, ...]": _each(_tensor),
}
