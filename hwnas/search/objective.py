"""The losses of a recipe at one moment of a search."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hwnas.latency.budget import Budget
from hwnas.search.protocols import Batch, Context, SearchState
from hwnas.search.recipe import Recipe
from hwnas.search.schedules import value_at


@dataclass(frozen=True)
class Objective:
    """What an update scheme differentiates.

    Args:
        recipe: Gives relaxation and regularizers.
        budget: Latency model and limit.
        progress: From 0 to 1.
    """

    recipe: Recipe
    budget: Budget
    progress: float

    @property
    def weight_lr(self) -> float:
        """Learning rate of the weights now."""
        return value_at(self.recipe.weight_lr, self.progress)

    def weight_loss(self, state: SearchState, batch: Batch) -> tuple[Tensor, float]:
        """Cross-entropy and top-1 accuracy of one drawn path; no graph reaches the logits."""
        with torch.no_grad():
            gates = self.recipe.relaxation(state.logits, progress=self.progress, generator=state.generator)
        images, labels = batch
        outputs = state.supernet(images, gates)
        loss = cross_entropy(outputs, labels, label_smoothing=self.recipe.label_smoothing)
        return loss, accuracy(outputs, labels)

    def arch_loss(self, state: SearchState, batch: Batch) -> tuple[Tensor, float, Context]:
        """Loss with every regularizer, top-1 accuracy, and what the regularizers saw."""
        gates = self.recipe.relaxation(state.logits, progress=self.progress, generator=state.generator)
        images, labels = batch
        outputs = state.supernet(images, gates)
        probabilities = {name: torch.softmax(logit, 0) for name, logit in state.logits.items()}
        context = Context(self.budget.model.expected_ms(probabilities), self.budget, state.scalars, self.progress)
        loss = cross_entropy(outputs, labels)
        for regularizer in self.recipe.regularizers:
            loss = regularizer(loss, context)
        return loss, accuracy(outputs, labels), context


def accuracy(outputs: Tensor, labels: Tensor) -> float:
    """Share of images whose largest logit is the label's."""
    return float((outputs.detach().argmax(1) == labels).float().mean())
