"""The kinds of part that a recipe is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from torch import Tensor, nn

from hwnas.latency.budget import Budget
from hwnas.latency.model import LatencyModel
from hwnas.metrics import Progress, no_progress
from hwnas.search.nodes import among_networks
from hwnas.space import Architecture, SearchSpace
from hwnas.supernet.gates import Gates
from hwnas.supernet.supernet import Supernet

if TYPE_CHECKING:
    from hwnas.search.recipe import Recipe
    from hwnas.search.step import SearchStep

Logits = Mapping[str, Tensor]
"""Choice name -> architecture logits of shape ``(num_options,)``, on the CPU."""

Candidates = Mapping[str, tuple[int, ...]]
"""Choice name -> numbers of the options that are searched, at least one; of choices without a name here all are."""

Batch = tuple[Tensor, Tensor]
"""Images ``(batch, channels, height, width)`` and integer labels ``(batch,)``."""


class Relaxation(Protocol):
    """Logits -> gates; never sees data and never runs a candidate.

    Attributes:
        differentiable: Whether gradients of the gates' weights reach the logits.
        draws: Whether gates carry the log-probability of their draw.
        probes: Whether options run without a graph, for their gate's gradient.
    """

    differentiable: ClassVar[bool] = True
    draws: ClassVar[bool] = False
    probes: ClassVar[bool] = False

    def __call__(self, logits: Logits, *, progress: float, generator: torch.Generator) -> Gates:
        """Gates of one forward pass; random numbers come from the generator alone."""

    def probabilities(self, logit: Tensor, *, progress: float) -> Tensor:
        """Probability of every option of one choice, shape ``(num_options,)``, differentiable.

        Expected latency and derivations read these. Where the gates' weights are not drawn, these are the weights,
        made to add up to one.
        """
        return torch.softmax(logit, 0)

    def kept(self, logit: Tensor, *, progress: float) -> Tensor | None:
        """Probability, a scalar, that a choice has any of its options, where it can do without all of them.

        None where options compete, so that one of them is certain.
        """
        return None

    def fit(self, space: SearchSpace, candidates: Candidates) -> Relaxation:
        """The same for a space, of which it may want to know the operators; logits are those of the candidates."""
        return self

    def settle(self, logits: Logits, gates: Gates, before: dict[str, Tensor]) -> None:
        """Called after an architecture step, with the gates it used and the logits before it; may correct them."""
        return


@dataclass
class SearchState:
    """Everything that changes during a search; saved and restored as a whole.

    Args:
        supernet: Shared weights.
        logits: Architecture parameters, apart from the supernet.
        weight_optimizer: Moves only the supernet's weights.
        arch_optimizer: Moves only the logits.
        generator: Source of every random gate; seeded anew from the seed and the number of every step.
        step: Steps done.
        arch_batches: Batches of the architecture half that were used.
        scalars: State of regularizers and schemes, such as the latency multiplier.
        candidates: What is still searched.
        history: What was found at the end of every epoch, where the recipe stops early or prunes.
    """

    supernet: Supernet
    logits: dict[str, nn.Parameter]
    weight_optimizer: torch.optim.Optimizer
    arch_optimizer: torch.optim.Optimizer
    generator: torch.Generator
    step: int = 0
    arch_batches: int = 0
    scalars: dict[str, float] = field(default_factory=dict)
    candidates: Candidates = field(default_factory=dict)
    history: list[Epoch] = field(default_factory=list)


@dataclass(frozen=True)
class Epoch:
    """What a search was at the end of one of its epochs.

    Args:
        probabilities: Choice name -> probability of every option.
        figures: What the stopper measured.
        within: The same as ``probabilities``, without weights of edges.
    """

    probabilities: Mapping[str, Tensor]
    figures: Mapping[str, float]
    within: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """What a regularizer may look at.

    Args:
        budget: Latency model and limit.
        gates: Of this step.
        probabilities: Choice name -> probability of every option, differentiable in the logits.
        drawn: The same as far as this step's gradient concerns; of a drawn pair of options their shares.
        scalars: The search state's scalars; a regularizer keeps its own state there.
        progress: From 0 to 1.
        weights: Choice name -> weights of its gate, times that of its edge, ``(num_options,)``, differentiable.
        logits: Choice name -> logits of what is searched, ``(num_candidates,)``, differentiable.
    """

    budget: Budget
    gates: Gates
    probabilities: Mapping[str, Tensor]
    drawn: Mapping[str, Tensor]
    scalars: dict[str, float]
    progress: float
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    logits: Mapping[str, Tensor] = field(default_factory=dict)

    @cached_property
    def expected_ms(self) -> Tensor:
        """Expected latency of the networks that the probabilities favour."""
        return self.mean_cost(self.budget.model, self.probabilities)

    @cached_property
    def drawn_ms(self) -> Tensor:
        """Expected latency whose gradient moves the logits in this step."""
        return self.mean_cost(self.budget.model, self.drawn)

    @cached_property
    def sampled_ms(self) -> Tensor:
        """Latency under the weights of the gates themselves."""
        return self.mean_cost(self.budget.model, self.weights)

    def mean_cost(self, model: LatencyModel, weights: Mapping[str, Tensor]) -> Tensor:
        """What networks cost, averaged over the options that some weights favour.

        Args:
            model: Of the same space.
            weights: Such as ``probabilities`` or ``drawn``.

        Returns:
            Scalar in the unit of the model, differentiable in the weights.
        """
        return model.expected_ms(among_networks(model.space, weights))


class Regularizer(Protocol):
    """(loss, context) -> loss, so that sums, products and hinges all fit."""

    def check(self, budget: Budget) -> None:
        """Refuses, before the first step, a space or a limit for which the term means nothing.

        Raises:
            UsageError: Says what would do.
        """
        return

    def __call__(self, loss: Tensor, context: Context) -> Tensor:
        """The loss with this term."""

    def update(self, context: Context) -> None:
        """Called after each architecture step; changes nothing but ``context.scalars``."""
        return


class Pruner(Protocol):
    """Takes options out of the search, at the end of every epoch."""

    def check(self, recipe: Recipe) -> None:
        """Refuses a recipe whose search it would have no effect on.

        Raises:
            UsageError: Says what would do.
        """
        return

    def __call__(self, step: SearchStep) -> Candidates:
        """What is searched from now on: of every choice a part of what was, or ``none`` alone; at least one option.

        Args:
            step: Of the state as it is now, the epoch that ended last in its history.
        """


class Stopper(Protocol):
    """Ends a search early, and says what of it is the result."""

    @property
    def reach(self) -> int:
        """How many epochs before the last one the result may lie, where a search can go back to it."""
        return 0

    def check(self, recipe: Recipe, space: SearchSpace) -> None:
        """Refuses, before the first step, a recipe or a space of which it cannot say when to end.

        Raises:
            UsageError: Says what would do.
        """
        return

    def measure(self, step: SearchStep) -> dict[str, float]:
        """Figures of the epoch that has just ended, kept in the history; may fetch images."""
        return {}

    def __call__(self, history: Sequence[Epoch]) -> int | None:
        """Number, from 1, of the epoch whose probabilities are the result; None to go on."""


class UpdateScheme(Protocol):
    """Which parameters move on which batch by which gradient.

    Attributes:
        needs_arch_split: Whether batches of the architecture half are used.
        moves_logits: Whether logits ever move.
    """

    needs_arch_split: ClassVar[bool] = True
    moves_logits: ClassVar[bool] = True

    def check(self, recipe: Recipe) -> None:
        """Refuses parts of a recipe that would have no effect, or cannot work, under this scheme.

        Raises:
            UsageError: Names the part and what would do.
        """
        return

    def check_length(self, num_steps: int) -> None:
        """Refuses a search that is over before the logits have moved once.

        Raises:
            UsageError: Says how many steps come first.
        """
        return

    def __call__(self, step: SearchStep) -> dict[str, float]:
        """One search step; returns figures for the log."""


@dataclass(frozen=True)
class Finished:
    """A search that has ended, as a derivation sees it.

    Args:
        probabilities: Choice name -> probability of every option.
        evaluate: Accuracy, from 0 to 1, of one architecture with the supernet's weights after batch-norm
            recalibration, on images that trained no weights. Costly; answers are kept.
        seed: Decides everything random.
        progress: Told about every accuracy.
    """

    probabilities: Mapping[str, Tensor]
    evaluate: Callable[[Architecture], float]
    seed: int = 0
    progress: Progress = no_progress


class Derivation(Protocol):
    """Finished search -> architectures within the budget, best first.

    Attributes:
        evaluates: Whether it asks for accuracies.
        competing: Whether it makes sense of options that compete, so that one of a choice is always certain.
    """

    evaluates: ClassVar[bool] = False
    competing: ClassVar[bool] = True

    def check(self, space: SearchSpace) -> None:
        """Refuses, before the first step, a space that the rule does not fit.

        Raises:
            UsageError: Says which space would do.
        """
        return

    def __call__(self, finished: Finished, budget: Budget) -> Iterator[Architecture]:
        """Yields architectures, each within ``budget``."""
