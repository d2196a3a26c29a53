"""The search itself: batches in, probabilities out, resumable at every step."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hwnas.checkpoint import DeferredSignals, load_checkpoint, save_checkpoint
from hwnas.data import BatchStream, ImageData, channels_last, split_stratified
from hwnas.errors import NumericsError, RunError
from hwnas.latency.budget import Budget
from hwnas.metrics import Progress, RunLog, no_progress
from hwnas.run import RunFolder
from hwnas.search.objective import Objective
from hwnas.search.protocols import Batch, SearchState
from hwnas.search.recipe import Recipe
from hwnas.search.regularizers import MULTIPLIER
from hwnas.supernet.supernet import Supernet

NUM_LOGGED = 500
"""A log holds about this many steps, however long the search."""

LOGIT_STD = 1e-3
"""Logits start near zero. Source: DARTS, arXiv 1806.09055, released code."""


@dataclass(frozen=True)
class SearchResult:
    """A finished search.

    Args:
        supernet: Trained shared weights.
        probabilities: Choice name -> probability of every option.
    """

    supernet: Supernet
    probabilities: dict[str, Tensor]


def search(
    budget: Budget,
    data: ImageData,
    recipe: Recipe,
    run: RunFolder,
    *,
    seed: int = 0,
    checkpoint_seconds: float = 60.0,
    progress: Progress = no_progress,
) -> SearchResult:
    """Trains weights and architecture together, on disjoint halves of the training images.

    Goes on from the run's checkpoint if there is one; a resumed search equals an uninterrupted one bit
    for bit on a CPU. Ctrl-C and SIGTERM save a checkpoint before they end it.

    Args:
        budget: Limit and latency model; its model names the space.
        data: Images at the space's resolution.
        recipe: The method.
        run: Where logs and checkpoints go.
        seed: Decides weights, batches and gates.
        checkpoint_seconds: Time between checkpoints.
        progress: Told about every step.

    Raises:
        DataError: The training images cannot be split, or are fewer than a batch.
        NumericsError: A loss became NaN or infinite; names the step and the checkpoint that is kept.
        RunError: The checkpoint belongs to another space.
        KeyboardInterrupt: After a signal, once the checkpoint is written.
    """
    state = _initial_state(budget, recipe, seed)
    streams = [
        BatchStream(half, recipe.batch_size, seed=seed + offset)
        for offset, half in enumerate(split_stratified(data.train, 0.5, seed=seed))
    ]
    total = recipe.num_epochs * streams[0].steps_per_epoch
    path = run.file("search.pt")
    if path.exists():
        _restore(state, load_checkpoint(path), path.name)
    every, saved = max(1, total // NUM_LOGGED), time.monotonic()
    batches = zip(*(channels_last(stream.batches(state.step)) for stream in streams), strict=True)
    with DeferredSignals() as signals, RunLog(run.path, "search", start_step=state.step) as log:
        while state.step < total:
            figures = _step(state, recipe, budget, next(batches), state.step / total)
            if not all(map(math.isfinite, figures.values())):
                kept = f"the checkpoint {path} from before it is kept" if path.exists() else "no checkpoint yet"
                raise NumericsError(f"the loss is not finite at step {state.step} ({figures}); {kept}.")
            if state.step % every == 0 or state.step == total - 1:
                log.add(state.step, figures | _architecture_figures(state))
            state.step += 1
            progress("searching", state.step, total)
            if signals.received or time.monotonic() - saved > checkpoint_seconds or state.step == total:
                save_checkpoint(path, _snapshot(state))
                saved = time.monotonic()
            if signals.received:
                raise KeyboardInterrupt
    return SearchResult(state.supernet, state.probabilities())


def _initial_state(budget: Budget, recipe: Recipe, seed: int) -> SearchState:
    space = budget.model.space
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        supernet = Supernet(space)
    logits = {
        choice.name: nn.Parameter(LOGIT_STD * torch.randn(len(choice.options), generator=generator))
        for choice in space.choices
    }
    return SearchState(
        supernet.train().to(memory_format=torch.channels_last),
        logits,
        recipe.weight_optimizer(supernet.parameters()),
        recipe.arch_optimizer(logits.values()),
        generator,
    )


def _step(
    state: SearchState, recipe: Recipe, budget: Budget, batches: tuple[Batch, Batch], progress: float
) -> dict[str, float]:
    objective = Objective(recipe, budget, progress)
    for group in state.weight_optimizer.param_groups:
        group["lr"] = objective.weight_lr
    weight_batch, arch_batch = batches
    return recipe.scheme.step(state, weight_batch, arch_batch, objective)


def _architecture_figures(state: SearchState) -> dict[str, Any]:
    probabilities = state.probabilities()
    entropy = [float(-(p * p.clamp_min(1e-12).log()).sum()) for p in probabilities.values()]
    return {
        "entropy": sum(entropy) / max(1, len(entropy)),
        "multiplier": state.scalars.get(MULTIPLIER, 0.0),
        "probabilities": {name: [round(float(v), 5) for v in p] for name, p in probabilities.items()},
    }


def _snapshot(state: SearchState) -> dict[str, Any]:
    return {
        "space": state.supernet.space.fingerprint,
        "supernet": state.supernet.state_dict(),
        "logits": {name: logit.detach() for name, logit in state.logits.items()},
        "weight_optimizer": state.weight_optimizer.state_dict(),
        "arch_optimizer": state.arch_optimizer.state_dict(),
        "generator": state.generator.get_state(),
        "step": state.step,
        "scalars": state.scalars,
    }


def _restore(state: SearchState, snapshot: dict[str, Any], name: str) -> None:
    fingerprint = state.supernet.space.fingerprint
    if snapshot["space"] != fingerprint:
        raise RunError(f"checkpoint {name} is of another space ({snapshot['space']}, here {fingerprint}).")
    state.supernet.load_state_dict(snapshot["supernet"])
    for choice, values in snapshot["logits"].items():
        state.logits[choice].data.copy_(values)
    state.weight_optimizer.load_state_dict(snapshot["weight_optimizer"])
    state.arch_optimizer.load_state_dict(snapshot["arch_optimizer"])
    state.generator.set_state(snapshot["generator"])
    state.step, state.scalars = snapshot["step"], dict(snapshot["scalars"])
