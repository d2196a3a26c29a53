"""One network on a device elsewhere, and many of them in one job."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hwnas.errors import DeviceLostError, MeasurementError, UsageError

from .device import Device
from .errors import DeadlineError, RunnerError, TransportError, UnreachableError
from .jobs import Job, JobModel
from .records import Block, Failure, Loaded, Record

MEMORY_FACTOR = 4
MODEL_BYTES = 2**21
"""A loaded network takes about this many times its file, and so much besides."""

REPEATS = 1
COOL_S = 5
DROP_PERCENT = 3
"""A block in which the clock fell by so many percent is repeated, after a rest of at most so many seconds; one that is
slow again does not count, and its network is visited again after all others. What is slow even then counts."""

RECONNECT_S = 60.0
"""How long a device may be away."""

KILLED = 128 + 9
"""Exit code of a runner that the kernel ends, mostly for lack of memory."""

TOO_LATE = 5
"""Exit code of a runner at the end of its time."""

Visit = tuple[str, int, list[float] | MeasurementError]


class RemoteSession:
    """A network that is sent when it is first needed; a ``GroupSession`` and a ``ManySession`` of ``hwnas.plugins``.

    Args:
        device: Where it runs.
        model: The bytes of its ONNX file.
        input_shape: Channels, height, width.
        input_type: Of its input, as numpy names it.
        batch: Images of a run.
        metadata: What the file holds.
    """

    many = True

    def __init__(
        self,
        device: Device,
        model: bytes,
        *,
        input_shape: tuple[int, ...],
        input_type: str,
        batch: int,
        metadata: Mapping[str, str],
    ) -> None:
        self.device, self.input_shape, self.metadata = device, input_shape, dict(metadata)
        self._type, self.batch, self.batches = input_type, batch, (batch, None)
        self.name: str | None = device.keep(model)

    def run(self, images: np.ndarray) -> np.ndarray:
        """Output for float32 images of shape ``(batch, channels, height, width)``, or a multiple of them, in one job.

        Raises:
            UsageError: Another number of images.
            MeasurementError: The device refuses the model, or went away.
        """
        if len(images) == 0 or len(images) % self.batch:
            raise UsageError(f"the network runs {self.batch} images at a time; got {len(images)}.")
        feed = np.ascontiguousarray(images, self._type).tobytes()
        job = self.job(0, dump=True, feed="images")
        (loaded,) = [r for r in _sound(self.device.records(job, {"images": feed})) if isinstance(r, Loaded)]
        output = loaded.outputs[0]
        values = np.frombuffer(self.device.pull("0.0.out"), output.type)
        return values.reshape(len(images), *output.shape[1:]).astype(np.float32)

    def job(self, rounds: int, *, dump: bool = False, feed: str = "", profile: str = "", block_ms: float = 0) -> Job:
        """A job of this network alone."""
        self.device.send([self._name()])
        feeds = {0: feed} if feed else {}
        model = JobModel(0, f"models/{self._name()}", dump=dump, feeds=feeds, profile=profile)
        settings = _timing(block_ms) if rounds else {"warmup_runs": 0, "warmup_ms": 0}
        return self.device.job(batches=((),), reference=model, images=self.batch, rounds=rounds, **settings)

    def time_ms(self, *, budget_ms: float) -> list[float]:
        """Time of every run, for about ``budget_ms``; a start of the runner each: better ``time_with`` for many."""
        (samples,) = _only(self.time_with({}, num_rounds=1, budget_ms=budget_ms))
        return samples

    def time_with(self, others: Mapping[str, Any], *, num_rounds: int, budget_ms: float) -> Generator[Visit]:
        """See ``hwnas.plugins.GroupSession``."""
        sessions = {"": self, **others}
        work = _Work({key: session._name() for key, session in sessions.items()}, self, num_rounds, budget_ms)
        return work.visits()

    def close(self) -> None:
        """Lets the device forget it."""
        if self.name is not None:
            self.device.drop(self.name)
            self.name = None

    def _name(self) -> str:
        if self.name is None:
            raise UsageError("this network is closed; prepare it again.")
        return self.name


@dataclass
class _Work:
    """Rounds over networks that are still to be done, over as many starts of the runner as it takes."""

    names: Mapping[str, str]
    leader: RemoteSession
    num_rounds: int
    budget_ms: float
    left: dict[str, int] = field(init=False)
    num_batches: int = field(init=False)
    first: int = 0
    advanced: bool = True
    again: bool = False

    def __post_init__(self) -> None:
        self.left = {key: self.num_rounds for key in self.names if key}
        sizes = [self.leader.device.size(name) * MEMORY_FACTOR + MODEL_BYTES for name in self.names.values()]
        free = self.leader.device.connection.about.free_bytes // 2
        self.num_batches = max(1, math.ceil(sum(sizes) / free)) if free else 1

    def visits(self) -> Generator[Visit]:
        """See ``time_with``."""
        done = False
        while not done:
            try:
                self.leader.device.send(list(self.names.values()))
                yield from self._job()
                done, self.again = self.again or not self.left, True
            except RunnerError as error:
                if error.code == KILLED and self.num_batches < len(self.left):
                    self.num_batches *= 2
                elif error.code == KILLED and self.left:
                    yield self._failed(next(iter(self.left)), error)
                elif error.model > 0:
                    yield self._failed(list(self.names)[error.model], error)
                elif error.code == TOO_LATE and error.model < 0 and self.advanced:
                    self.advanced = False
                else:
                    raise
            except (UnreachableError, DeadlineError, DeviceLostError) as error:
                self._wait(error)
            done = done or not (self.left or len(self.names) == 1)

    def _failed(self, key: str, error: MeasurementError) -> Visit:
        self.left.pop(key, None)
        return key, self.first, error

    def _wait(self, error: Exception) -> None:
        """Goes on when the device is back, unless it went away twice without an answer in between."""
        try:
            if not self.advanced:
                raise error
            self.advanced = False
            self.leader.device.reconnected(RECONNECT_S)
        except (TransportError, DeviceLostError) as also:
            raise DeviceLostError(
                f"the device went away: {also} What was measured is kept; the same command goes on from there."
            ) from also

    def _job(self) -> Iterator[Visit]:
        """One start of the runner."""
        keys = list(self.names)
        models = {key: JobModel(i, f"models/{self.names[key]}") for i, key in enumerate(keys)}
        waiting = [models[key] for key in self.left]
        batches = tuple(tuple(waiting[i :: self.num_batches]) for i in range(self.num_batches))
        rounds = max(self.left.values(), default=self.num_rounds)
        first, self.first = self.first, self.first + rounds * len(batches)
        job = self.leader.device.job(
            batches=batches, reference=models[keys[0]], images=self.leader.batch, rounds=rounds, repeats=REPEATS,
            cool_s=COOL_S, drop_percent=DROP_PERCENT, **_timing(self.budget_ms),
        )  # fmt: skip
        with closing(self.leader.device.records(job)) as records:
            for record in records:
                if isinstance(record, Failure) and not record.fatal and record.id >= 0:
                    error = MeasurementError(f"ONNX Runtime refuses the model on the device: {record.msg}")
                    yield self._failed(keys[record.id], error)
                if isinstance(record, Block) and self._stands(record, keys[record.id]):
                    key = keys[record.id]
                    if key in self.left:
                        self.left[key] -= 1
                        if not self.left[key]:
                            del self.left[key]
                    number = first + (record.batch - 1) * rounds + record.round
                    yield key, number, [ns / 1e6 for ns in record.ns]

    def _stands(self, block: Block, key: str) -> bool:
        """Whether a block counts: it was not slow, or the last try was; those of the reference tell of slow times."""
        self.advanced = True
        if not block.throttled:
            return True
        kept = block.attempt == REPEATS and (self.again or not key)
        self.leader.device.tally.num_kept += kept
        return kept


def _timing(block_ms: float) -> dict[str, int]:
    return {"block_ms": max(1, round(block_ms)), "warmup_runs": 2, "warmup_ms": 20}


def _sound(records: Iterator[Record]) -> list[Record]:
    """All records of a job without failures."""
    found = list(records)
    for record in found:
        if isinstance(record, Failure):
            raise MeasurementError(f"ONNX Runtime refuses the model on the device: {record.msg}")
    return found


def _only(visits: Iterator[Visit]) -> list[list[float]]:
    found = list(visits)
    for _, _, samples in found:
        if isinstance(samples, MeasurementError):
            raise samples
    return [samples for _, _, samples in found if not isinstance(samples, MeasurementError)]
