"""The search itself: batches in, probabilities out, resumable at every step."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hwnas.checkpoint import DeferredSignals
from hwnas.compute import Compute
from hwnas.data import BatchStream, ImageData, ImageDataset, split_stratified
from hwnas.distributed import any_rank, rank, world_size
from hwnas.errors import DataError, NumericsError, UsageError
from hwnas.latency.budget import Budget
from hwnas.metrics import Meter, Progress, RunLog, no_progress
from hwnas.run import RunFolder
from hwnas.search.candidates import Narrowed
from hwnas.search.checkpoints import Checkpoints
from hwnas.search.cutout import cut_out
from hwnas.search.epochs import end_epoch, most_probable, stopped
from hwnas.search.measuring import ARCH, WEIGHTS, FirstPeaks, MeasuredStep
from hwnas.search.nodes import among_networks
from hwnas.search.protocols import Candidates, Epoch, SearchState
from hwnas.search.recipe import Recipe
from hwnas.search.regularizers import MULTIPLIER, mean_entropy
from hwnas.search.rehearsal import predicted_peak
from hwnas.search.schedules import value_at
from hwnas.search.state import initial_state
from hwnas.search.stoppers import decay_of
from hwnas.supernet.supernet import Supernet

logger = logging.getLogger("hwnas")

Step = tuple[int, dict[str, float]]
"""How many steps there are in all, and the figures of one."""

NUM_LOGGED = 500
"""A log holds about this many steps, however long the search."""


@dataclass(frozen=True)
class SearchResult:
    """A finished search.

    Args:
        supernet: Trained shared weights.
        probabilities: Choice name -> probability of every option.
        weight_images: What trained the weights.
        arch_images: The other training images; None where all trained weights.
        candidates: What was searched in the end.
        history: What was found at the end of every epoch, where the recipe stops early or prunes.
        within: The same as ``probabilities``, without weights of edges.
    """

    supernet: Supernet
    probabilities: dict[str, Tensor]
    weight_images: ImageDataset
    arch_images: ImageDataset | None = None
    candidates: Candidates = field(default_factory=dict)
    history: tuple[Epoch, ...] = ()
    within: dict[str, Tensor] = field(default_factory=dict)


def search(
    budget: Budget,
    data: ImageData,
    recipe: Recipe,
    run: RunFolder,
    *,
    seed: int = 0,
    compute: Compute = Compute(device="cpu"),
    weights: dict[str, Tensor] | None = None,
    candidates: Candidates | None = None,
    checkpoint_seconds: float = 60.0,
    progress: Progress = no_progress,
    say: Callable[[str], None] = logger.info,
) -> SearchResult:
    """Trains weights and architecture together, on disjoint parts of the training images.

    Goes on from the run's checkpoint if there is one; a resumed search equals an uninterrupted one bit
    for bit on a CPU. Ctrl-C and SIGTERM save a checkpoint before they end it. Under ``torchrun`` every process
    takes its share of each batch, and rank 0 writes.

    Args:
        budget: Limit and latency model; its model names the space.
        data: Images at the space's resolution.
        recipe: The method.
        run: Where logs and checkpoints go.
        seed: Decides weights, batches and gates.
        compute: Device, number format and memory savings.
        weights: State of a supernet of this space to start from.
        candidates: What is searched; the candidates of the space if not given.
        checkpoint_seconds: Time between checkpoints.
        progress: Told about every step.
        say: Told the predicted peak memory before the first step, and what the first weight step and the first
            architecture step needed.

    Raises:
        UsageError: ``compute`` asks for compilation.
        DataError: The training images cannot be split, or are fewer than a batch.
        NumericsError: A loss or a weight became NaN or infinite; names the step and the checkpoint that is kept.
        RunError: The checkpoint is of another space, or was made with other images.
        RankError: Another process was lost, or drew another path.
        MemoryExhaustedError: The device has too little memory.
        KeyboardInterrupt: After a signal, once the checkpoint is written.
    """
    _check(compute, recipe, budget)
    again = partial(
        search, seed=seed, compute=compute, checkpoint_seconds=checkpoint_seconds, progress=progress, say=say
    )
    candidates = _after_stages(partial(again, budget, data), recipe, run, candidates)
    images, path = _split(data.train, recipe, seed), run.file("search.pt")
    checkpoints = _checkpoints(path, recipe, checkpoint_seconds, data)
    with _naming_what_is_kept(path), contextlib.ExitStack() as stack:
        need = partial(_predicted_bytes, budget, recipe, compute, candidates)
        stack.enter_context(compute.memory_guard(recipe.batch_size, need))
        state = initial_state(budget.model.space, recipe, seed, compute, weights=weights, candidates=candidates)
        checkpoints.restore(state)
        signals = stack.enter_context(DeferredSignals())
        log = stack.enter_context(RunLog(run.path, "search", start_step=state.step)) if rank() == 0 else None
        meter = _meter(progress, recipe, compute, budget)
        steps = _steps(images, state, recipe, budget, compute, seed, say if rank() == 0 else _silent)
        stack.callback(steps.close)
        for total, figures in _finite(steps, state):
            checkpoints.proven()
            figures = _logged(log, figures, state, recipe, budget, total, meter)
            state.step += 1
            meter(state.step, total, figures)
            stop = any_rank(signals.received)
            checkpoints.offer(state, now=stop or _over(state, recipe, total))
            if stop:
                raise KeyboardInterrupt
    if not state.step:  # no epochs at all
        _keep_at_once(checkpoints, state, weights)
    if _rolled_back(state, recipe, checkpoints, say if rank() == 0 else _silent):
        return again(budget, data, recipe, run, weights=weights, candidates=candidates)
    return _result(state, recipe, images)


def _after_stages(
    again: Callable[..., SearchResult], recipe: Recipe, run: RunFolder, candidates: Candidates | None
) -> Candidates | None:
    """What the searches before this one leave of the candidates."""
    for number, stage in enumerate(recipe.stages, 1):
        first = again(stage.recipe, run.stage(number), candidates=candidates)
        candidates = most_probable(first.within, first.candidates, stage.keep)
    return candidates


def _checkpoints(path: Path, recipe: Recipe, seconds: float, data: ImageData) -> Checkpoints:
    reach = recipe.stopper.reach if recipe.stopper and recipe.roll_back else None
    return Checkpoints(path, seconds, data.fingerprint, reach=reach)


def _keep_at_once(checkpoints: Checkpoints, state: SearchState, weights: dict[str, Tensor] | None) -> None:
    if weights is None and rank() == 0:
        logger.warning(
            "The search has no steps: networks will be compared with random weights. Search for more --epochs, or "
            "start from a trained supernet with --weights-from RUN."
        )
    checkpoints.offer(state, now=True)


def _result(state: SearchState, recipe: Recipe, images: tuple[ImageDataset, ImageDataset | None]) -> SearchResult:
    probabilities, within = (_probabilities(state, recipe, progress=1.0, within=only) for only in (False, True))
    return SearchResult(state.supernet, probabilities, *images, state.candidates, tuple(state.history), within)


def _rolled_back(state: SearchState, recipe: Recipe, checkpoints: Checkpoints, say: Callable[[str], None]) -> bool:
    """Whether a search that its stopper has ended is to go on from an earlier epoch; if not, none of these is kept."""
    epoch = stopped(state, recipe)
    decay = recipe.roll_back.next(decay_of(state.weight_optimizer)) if recipe.roll_back else None
    if epoch is None or decay is None:
        checkpoints.finish()
        return False
    say(f"back from epoch {len(state.history)} to epoch {epoch}, and on with a weight decay of {decay:g}")
    checkpoints.roll_back(epoch, decay)
    return True


def _meter(progress: Progress, recipe: Recipe, compute: Compute, budget: Budget) -> Meter:
    return Meter(
        progress, "searching", images_per_step=recipe.batch_size, device=compute.place, target_ms=budget.max_ms
    )


def _finite(steps: Iterator[Step], state: SearchState) -> Iterator[Step]:
    """The same steps, up to one that is not finite."""
    for total, figures in steps:
        if not all(map(math.isfinite, figures.values())):
            raise NumericsError(f"a loss is not finite at step {state.step} ({figures})")
        yield total, figures


@contextlib.contextmanager
def _naming_what_is_kept(path: Path) -> Iterator[None]:
    """An error about numbers inside the block names the checkpoint that is left."""
    try:
        yield
    except NumericsError as error:
        kept, start = "there is no checkpoint yet", ""
        if path.exists():
            kept = f"the checkpoint {path} from before it is kept"
        if path.exists() and path.with_name("run.json").exists():  # a stage has none
            start = f", from these weights with --weights-from {path.parent}"
        raise NumericsError(
            f"{error}; {kept}. Search into another output with a lower learning rate{start}: of the logits by --set "
            "arch_lr=..., of the weights by the weight_lr of a recipe of your own. Or look for broken images."
        ) from error


def _check(compute: Compute, recipe: Recipe, budget: Budget) -> None:
    compute.check_parts(recipe.batch_size, world_size())
    recipe.check(budget)
    if compute.compile:
        raise UsageError(
            "torch.compile does not pay in a search: every candidate would be compiled by itself, which takes longer "
            "than it saves (benchmarks/compile.py). Leave it out, and compile the training of the result."
        )


def _predicted_bytes(budget: Budget, recipe: Recipe, compute: Compute, candidates: Candidates | None) -> int:
    return predicted_peak(budget, recipe, compute=compute, candidates=candidates).total_bytes


def _silent(line: str) -> None:
    """Says nothing."""


def _split(train: ImageDataset, recipe: Recipe, seed: int) -> tuple[ImageDataset, ImageDataset | None]:
    if recipe.weight_share == 1:
        return train, None
    return split_stratified(train, recipe.weight_share, seed=seed)


def _steps(
    images: tuple[ImageDataset, ImageDataset | None],
    state: SearchState,
    recipe: Recipe,
    budget: Budget,
    compute: Compute,
    seed: int,
    say: Callable[[str], None],
) -> Generator[Step, None, None]:
    """Does one step after the other; yields how many there are in all, and the figures of each."""
    weight_images, arch_images = images
    weight_stream = _stream(weight_images, recipe, compute, seed)
    arch_stream = _arch_stream(arch_images, recipe, compute, seed)
    epoch_steps = weight_stream.steps_per_epoch
    total = math.ceil(round(recipe.num_epochs * epoch_steps, 6))
    recipe.scheme.check_length(total)
    if state.step >= total:
        return
    predicted = predicted_peak(budget, recipe, compute=compute, candidates=state.candidates)
    say(str(predicted))
    kinds = {WEIGHTS: predicted.weight_step_bytes}
    if recipe.scheme.needs_arch_split:
        kinds[ARCH] = predicted.arch_step_bytes
    peaks = FirstPeaks(compute.place, kinds, say)
    with contextlib.ExitStack() as stack:
        weight_batches = stack.enter_context(contextlib.closing(weight_stream.batches(state.step)))
        arch_batches = arch_stream.batches(state.arch_batches) if arch_stream else iter(())
        stack.callback(getattr(arch_batches, "close", bool))
        while not _over(state, recipe, total):
            state.generator.manual_seed(_step_seed(seed, state.step))
            progress, (pixels, labels) = state.step / total, next(weight_batches)
            batch = cut_out(pixels, value_at(recipe.cutout, progress), state.generator), labels
            step = MeasuredStep(state, recipe, budget, compute, progress, batch, lambda: next(arch_batches), peaks)
            with peaks, compute.seeded(seed, state.step, rank()):
                figures = recipe.scheme(step)
                if recipe.between_epochs and (state.step + 1) % epoch_steps == 0:
                    end_epoch(step)
            yield total, figures


def _over(state: SearchState, recipe: Recipe, total: int) -> bool:
    return state.step >= total or stopped(state, recipe) is not None


def _arch_stream(images: ImageDataset | None, recipe: Recipe, compute: Compute, seed: int) -> BatchStream | None:
    if images is None or not recipe.scheme.needs_arch_split:
        return None
    if len(images) < recipe.batch_size:
        raise DataError(
            f"recipe '{recipe.name}' leaves {len(images)} images for the architecture ({recipe.weight_share:g} of all "
            f"train weights), fewer than a batch of {recipe.batch_size}. "
            + (
                "Use a smaller --batch-size, or --set weight_share=0.8."
                if recipe.weight_share > 0.9
                else "Use a smaller --batch-size, or more images."
            )
        )
    return _stream(images, recipe, compute, seed + 1)


def _stream(images: ImageDataset, recipe: Recipe, compute: Compute, seed: int) -> BatchStream:
    return BatchStream(
        images, recipe.batch_size, seed=seed, num_workers=compute.num_workers, rank=rank(), num_ranks=world_size()
    )


def _step_seed(seed: int, step: int) -> int:
    """Seed of the gates of one step, the same on every rank and after every resumption."""
    words = np.random.SeedSequence(seed, spawn_key=(step,)).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


@torch.no_grad()
def _probabilities(state: SearchState, recipe: Recipe, *, progress: float, within: bool = False) -> dict[str, Tensor]:
    """Those of the moment, or those of the epoch that a stopper chose; ``within``: without weights of edges."""
    last = stopped(state, recipe)
    if last is not None:
        epoch = state.history[last - 1]
        return dict(epoch.within if within else epoch.probabilities)
    narrowed = Narrowed.to(state.supernet.space, recipe.relaxation, state.candidates)
    return (narrowed.within if within else narrowed.probabilities)(state.logits, progress=progress)


def _logged(
    log: RunLog | None,
    figures: dict[str, float],
    state: SearchState,
    recipe: Recipe,
    budget: Budget,
    total: int,
    meter: Meter,
) -> dict[str, float]:
    """Logs the step if it is one of those; returns its figures, with those of the architecture if it was logged."""
    if log is None:
        return figures
    log.sample(figures)
    if state.step % max(1, total // NUM_LOGGED) and state.step != total - 1:
        return figures
    probabilities = _probabilities(state, recipe, progress=state.step / total)
    expected_ms = float(budget.model.expected_ms(among_networks(budget.model.space, probabilities)))
    latencies = {"expected_ms": expected_ms, "target_ms": budget.max_ms}
    figures = {**latencies, **figures, "entropy": float(mean_entropy(probabilities))}
    if MULTIPLIER in state.scalars:
        figures["multiplier"] = state.scalars[MULTIPLIER]
    values = {name: [round(float(v), 5) for v in p] for name, p in probabilities.items()}
    log.add(state.step, {**figures, "probabilities": values}, meter.costs())
    return figures
