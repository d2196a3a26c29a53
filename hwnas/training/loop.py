"""The training of a fixed network, resumable at every step."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial

from torch import nn

from hwnas.checkpoint import DeferredSignals
from hwnas.compute import Compute
from hwnas.data import ImageData
from hwnas.distributed import any_rank, rank, require_same, world_size
from hwnas.errors import NumericsError
from hwnas.memory import measured_peak, mib
from hwnas.metrics import Meter, Progress, RunLog, no_progress
from hwnas.run import RunFolder
from hwnas.training.evaluation import Scores
from hwnas.training.job import Batch, TrainingJob, create_stream
from hwnas.training.objective import TrainingObjective
from hwnas.training.optimizers import create_average, create_optimizer
from hwnas.training.options import TrainingOptions
from hwnas.training.regularized import regularized
from hwnas.training.rehearsal import PredictedPeak, predicted_peak, total_bytes
from hwnas.training.state import Identity, TrainingState, kept
from hwnas.training.teacher import create_teacher
from hwnas.training.wrapping import wrapped


def train(
    network: nn.Module,
    data: ImageData,
    run: RunFolder,
    *,
    options: TrainingOptions | None = None,
    compute: Compute | None = None,
    seed: int = 0,
    identity: str = "",
    checkpoint_seconds: float = 60.0,
    progress: Progress = no_progress,
    say: Callable[[str], None] | None = None,
) -> Scores:
    """Trains in place and evaluates on the held-out images; the network ends with the averaged weights, if any.

    Goes on from the run's checkpoint if there is one; a resumed training equals an uninterrupted one bit
    for bit on a CPU. Inside a process group (``hwnas.distributed.process_group``) every rank calls it: each
    works on its share of every batch, and rank 0 alone writes and reports.

    Args:
        network: Freshly initialised from ``seed`` by the caller; moved to the device.
        data: Training and held-out images.
        run: Where logs and checkpoint go: ``training.jsonl`` has every epoch, ``training-speed.jsonl`` what
            it cost.
        options: Hyper-parameters; their defaults if not given.
        compute: Device, precision, and what saves memory; the defaults if not given.
        seed: Decides batches, augmentation and mixing.
        identity: What is trained; a checkpoint of something else is refused.
        checkpoint_seconds: Time between checkpoints.
        progress: Told about every step.
        say: Told, on rank 0, the predicted peak memory before the first step, and the measured one after it.

    Raises:
        NumericsError: The loss became NaN or infinite; names the step and the checkpoint that is kept.
        MemoryExhaustedError: The GPU is too small; says what would fit.
        RunError: The checkpoint is of another network, other images or other options.
        DataError: More than one in a thousand images cannot be read; lists them.
        UsageError: Options that exclude each other, such as a batch smaller than its parts.
        KeyboardInterrupt: After a signal to any rank, once the checkpoint is written.
    """
    options, compute = options or TrainingOptions(), compute or Compute()
    compute.check_parts(options.batch_size, world_size())
    stream = create_stream(data, options, compute, seed)
    how = {"precision": compute.precision, "parts": compute.accumulate * world_size()}
    facts: Identity = {"network": identity, "data": data.fingerprint, "seed": seed, **asdict(options), **how}
    student = regularized(network, options, seed).train()
    teacher = create_teacher(options.teacher, data) if options.teacher else None
    objective = TrainingObjective(options, len(data.classes), seed, teacher)
    rehearsed = functools.cache(partial(predicted_peak, student, objective, data, compute))
    with contextlib.ExitStack() as stack:
        stack.enter_context(compute.memory_guard(options.batch_size, lambda: total_bytes(rehearsed())))
        for module in (student, teacher):
            if module is not None:
                compute.move(module)
        state = TrainingState(student, create_optimizer(student, options), create_average(student, options))
        path = run.file("training.pt")
        if path.exists():
            state.restore(path, facts)
        require_same("steps to start from", state.step)
        job = TrainingJob(state, wrapped(student, compute), objective, options, compute, data, stream.steps_per_epoch)
        first = partial(_measured, job, rehearsed, say) if say and rank() == 0 else job.step
        batches = stack.enter_context(contextlib.closing(stream.batches(state.step)))
        scores = _run(job, first, batches, run, facts, checkpoint_seconds, progress) or job.evaluate()
    if state.average:
        student.load_state_dict(state.average.network.state_dict())
    return scores


def _measured(
    job: TrainingJob, rehearsed: Callable[[], PredictedPeak | None], say: Callable[[str], None], batch: Batch
) -> float:
    """The first step; says what memory it was predicted to need, and what it needed."""
    predicted = rehearsed()
    if predicted:
        say(str(predicted))
    if not predicted or job.compute.compile:  # compiled graphs cannot be looked into
        return job.step(batch)
    with measured_peak(job.compute.place) as peak:
        loss = job.step(batch)
    say(
        f"measured in the first step: {mib(peak.bytes)} MiB of activations, gradients and new state, "
        f"predicted {mib(predicted.step_bytes)}"
    )
    return loss


def _run(
    job: TrainingJob,
    step: Callable[[Batch], float],
    batches: Iterator[Batch],
    run: RunFolder,
    facts: Identity,
    checkpoint_seconds: float,
    progress: Progress,
) -> Scores | None:
    """Does the steps that are left, the first one as given; returns the scores after the last, if there was one."""
    state, path, scores, saved = job.state, run.file("training.pt"), None, time.monotonic()
    images, device = job.options.batch_size, job.compute.place
    meter = Meter(progress if rank() == 0 else no_progress, "training", images_per_step=images, device=device)
    with DeferredSignals() as signals, _log(run, state.step) as run_log:
        while state.step < job.total:
            figures, step = {"loss": step(next(batches))}, job.step
            if not math.isfinite(figures["loss"]):
                raise NumericsError(f"the loss is {figures['loss']} at step {state.step} of {job.total}; {kept(path)}")
            if job.finish_step(figures["loss"]):
                scores, epoch, speed = job.finish_epoch()
                figures["accuracy"] = scores.top1
                if run_log:
                    run_log.add(state.step - 1, epoch, meter.costs() | speed)
            stop = any_rank(signals.received)
            meter(state.step, job.total, figures)
            due = stop or state.step == job.total or time.monotonic() - saved > checkpoint_seconds
            if due and rank() == 0:
                state.save(path, facts)
                saved = time.monotonic()
            if stop:
                raise KeyboardInterrupt
    return scores


def _log(run: RunFolder, start_step: int) -> contextlib.AbstractContextManager[RunLog | None]:
    return RunLog(run.path, "training", start_step=start_step) if rank() == 0 else contextlib.nullcontext()
