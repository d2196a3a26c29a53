"""The kinds of part that a recipe is made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from hwnas.latency.budget import Budget
from hwnas.space import Architecture
from hwnas.supernet.gates import Gates
from hwnas.supernet.supernet import Supernet

if TYPE_CHECKING:
    from hwnas.search.objective import Objective

Logits = Mapping[str, nn.Parameter]
"""Choice name -> architecture logits of shape ``(num_options,)``."""

Batch = tuple[Tensor, Tensor]
"""Images ``(batch, channels, height, width)`` and integer labels ``(batch,)``."""


class Relaxation(Protocol):
    """Logits -> gates; never sees data and never runs a candidate."""

    def __call__(self, logits: Logits, *, progress: float, generator: torch.Generator) -> Gates:
        """Gates of one forward pass; random numbers come from the generator alone."""


@dataclass
class SearchState:
    """Everything that changes during a search; saved and restored as a whole.

    Args:
        supernet: Shared weights.
        logits: Architecture parameters, apart from the supernet.
        weight_optimizer: Moves only the supernet's weights.
        arch_optimizer: Moves only the logits.
        generator: Source of every random gate.
        step: Steps done.
        scalars: State of regularizers, such as the latency multiplier.
    """

    supernet: Supernet
    logits: dict[str, nn.Parameter]
    weight_optimizer: torch.optim.Optimizer
    arch_optimizer: torch.optim.Optimizer
    generator: torch.Generator
    step: int = 0
    scalars: dict[str, float] = field(default_factory=dict)

    def probabilities(self) -> dict[str, Tensor]:
        """Softmax of every choice's logits, detached."""
        return {name: torch.softmax(logit.detach(), 0) for name, logit in self.logits.items()}


@dataclass(frozen=True)
class Context:
    """What a regularizer may look at.

    Args:
        expected_ms: Expected latency under the softmax of the logits, differentiable in them.
        budget: Latency model and limit.
        scalars: The search state's scalars; a regularizer keeps its own state there.
        progress: From 0 to 1.
    """

    expected_ms: Tensor
    budget: Budget
    scalars: dict[str, float]
    progress: float


class Regularizer(Protocol):
    """(loss, context) -> loss, so that sums, products and hinges all fit."""

    def __call__(self, loss: Tensor, context: Context) -> Tensor:
        """The loss with this term."""

    def update(self, context: Context) -> None:
        """Called after each architecture step; changes nothing but ``context.scalars``."""


class UpdateScheme(Protocol):
    """Which parameters move on which batch by which gradient."""

    def step(
        self, state: SearchState, weight_batch: Batch, arch_batch: Batch, objective: Objective
    ) -> dict[str, float]:
        """One search step; returns figures for the log."""


class Derivation(Protocol):
    """Finished search -> architectures within the budget, best first."""

    def __call__(self, probabilities: Mapping[str, Tensor], budget: Budget) -> Iterator[Architecture]:
        """Yields architectures, each within ``budget``."""
