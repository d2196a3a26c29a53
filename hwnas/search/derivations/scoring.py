"""Asking for accuracies while someone watches."""

from __future__ import annotations

import math

from hwnas.latency.budget import Budget
from hwnas.metrics import ShowsFigures
from hwnas.search.protocols import Finished
from hwnas.space import Architecture


class Scoring:
    """The accuracy of one network after the other; each is told to ``finished.progress``, with the best so far.

    Args:
        finished: Whose accuracies.
        budget: Limit and latency model, for the predicted latency of the best.
        total: How many networks are asked for, at most.
    """

    def __init__(self, finished: Finished, budget: Budget, total: int) -> None:
        self._finished, self._budget, self._total, self._done = finished, budget, total, 0
        self._best = {"best_accuracy": -math.inf, "exact_ms": math.nan, "target_ms": budget.max_ms}

    def __call__(self, architecture: Architecture) -> float:
        """The accuracy, from 0 to 1."""
        accuracy = self._finished.evaluate(architecture)
        if accuracy > self._best["best_accuracy"]:
            exact_ms = self._budget.model.exact_ms(architecture)
            self._best = {**self._best, "best_accuracy": accuracy, "exact_ms": exact_ms}
        self._done += 1
        self._tell(self._total)
        return accuracy

    def end(self) -> None:
        """There will be no more."""
        if 0 < self._done < self._total:
            self._tell(self._done)

    def _tell(self, total: int) -> None:
        progress = self._finished.progress
        if isinstance(progress, ShowsFigures):
            progress.show("scoring", self._done, total, self._best)
        else:
            progress("scoring", self._done, total)
