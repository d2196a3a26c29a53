"""What the runner is told: writing a job file; ``records.py`` reads what it answers.

A job is a text file of lines ``key value``. The models of a batch are in memory together; a round times each of them
once, the reference first, the others in their order and in every other round reversed. See ``Job`` for the keys.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from hwnas.errors import UsageError

PROTO = 1
"""Version of job files and lines; the runner refuses another one."""


@dataclass(frozen=True)
class JobModel:
    """One network of a job. Paths are on the device, relative to the folder of the job file.

    Args:
        id: Any number that no other model of the job has.
        path: Its ONNX file.
        dump: Write output ``k`` to ``ID.k.out``, raw, in the folder of the job file.
        feeds: Input number -> file with its raw content; the others are ``inputs.fixed_input``. A file may hold several
            inputs one behind another; the outputs of all of them are then dumped one behind another.
        optimised: Where the runtime's own optimised graph is written; empty for nowhere.
        profile: Prefix of the file into which the runtime's profiler writes; it slows the runs. Empty for none.
    """

    id: int
    path: str
    dump: bool = False
    feeds: Mapping[int, str] = field(default_factory=dict)
    optimised: str = ""
    profile: str = ""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One start of the runner.

    Args:
        name: Comes back in the first line.
        library: ONNX Runtime's library on the device: a path, or a name that the loader finds.
        batches: Models that are in memory together.
        reference: Timed first in every round of every batch, and again after every eighth model.
        cores: Numbers to run on, at least as many as threads; empty for no pinning.
        threads: Inside one operator; with cores, each thread on one of its own, in their order.
        images: Where a model's first dimension is open.
        seed: Of the inputs, 1 to 2**32 - 1.
        optimisation: ONNX Runtime's level: 0, 1, 2 or 99 (all).
        warmup_runs, warmup_ms: At least that after loading a model.
        block_warmup_runs: Untimed runs at the start of a block.
        runs, block_ms: At least that in a block, at most 65536 runs.
        rounds: Blocks of every model; 0 loads, dumps and warms up only.
        evict_bytes: Memory written to before every run; the inputs are then read again.
        deadline_s: The runner ends itself after so many seconds.
        step_s: It ends, naming the model, when loading, running on a part of the feeds, or a block takes longer.
        lock: File that holds off other jobs with the same one; empty for none.
        lock_s: How long to wait for it: a job whose host went away ends soon.
        cool_s: Most seconds to rest before a block while the clock is ``drop_percent`` below that of the start; at most
            a quarter of the job is rest.
        repeats: How often a block is repeated in which the clock fell that far.
        config: ONNX Runtime's session configuration entries.
    """

    library: str
    batches: tuple[tuple[JobModel, ...], ...]
    name: str = ""
    reference: JobModel | None = None
    cores: tuple[int, ...] = ()
    threads: int = 1
    images: int = 1
    seed: int = 1
    optimisation: int = 99
    warmup_runs: int = 5
    warmup_ms: int = 200
    block_warmup_runs: int = 1
    runs: int = 2
    block_ms: int = 10
    rounds: int = 1
    evict_bytes: int = 0
    deadline_s: int = 600
    step_s: int = 120
    lock: str = ""
    lock_s: int = 10
    cool_s: int = 0
    repeats: int = 0
    drop_percent: int = 3
    config: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """The job file.

        Raises:
            UsageError: Two models have one id, there are fewer cores than threads, or a text is more than one line.
        """
        models = [model for batch in self.batches for model in batch]
        ids = [model.id for model in models + ([self.reference] if self.reference else [])]
        if len(set(ids)) < len(ids):
            raise UsageError("two models of a job have the same id; number them.")
        if self.cores and len(self.cores) < self.threads:
            raise UsageError(f"{self.threads} threads need as many cores; got {len(self.cores)}.")
        lines = [f"proto {PROTO}", *self._settings()]
        if self.reference is not None:
            lines += _model_lines("reference", self.reference)
        for number, batch in enumerate(self.batches, 1):
            lines.append(f"batch {number}")
            lines += [line for model in batch for line in _model_lines("model", model)]
        torn = [line for line in lines if "\n" in line or "\0" in line]
        if torn:
            raise UsageError(f"job entry {torn[0]!r} is more than one line; use paths and names without line breaks.")
        return "\n".join(lines) + "\n"

    def _settings(self) -> Iterator[str]:
        if self.name:
            yield f"job {self.name}"
        yield f"library {self.library}"
        if self.lock:
            yield f"lock {self.lock}"
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if isinstance(value, int):
                yield f"{each.name} {value}"
        if self.cores:
            yield f"cores {','.join(map(str, self.cores))}"
        for key, value in self.config.items():
            yield f"config {key} {value}"


def _model_lines(kind: str, model: JobModel) -> Iterator[str]:
    yield f"{kind} {model.id} {model.path}"
    if model.dump:
        yield f"dump {model.id}"
    for number, path in model.feeds.items():
        yield f"feed {model.id} {number} {path}"
    if model.optimised:
        yield f"optimised {model.id} {model.optimised}"
    if model.profile:
        yield f"profile {model.id} {model.profile}"
