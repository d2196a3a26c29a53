"""One method, as a composition of parts."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from hwnas.errors import UsageError
from hwnas.search.protocols import Derivation, Pruner, Regularizer, Relaxation, Stopper, UpdateScheme
from hwnas.search.schedules import Scalar, probed
from hwnas.space import SearchSpace, create_space
from hwnas.supernet.supernet import Supernet

if TYPE_CHECKING:
    from hwnas.latency.budget import Budget
    from hwnas.search.stoppers import RollBack

log = logging.getLogger("hwnas")

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "weight_lr": ("a finite number of at least 0", lambda number: 0 <= number < math.inf),
    "arch_lr": ("a finite number of at least 0", lambda number: 0 <= number < math.inf),
    "weight_share": ("more than 0 and at most 1", lambda number: 0 < number <= 1),
    "label_smoothing": ("from 0 to below 1", lambda number: 0 <= number < 1),
    "grad_clip": ("more than 0; math.inf clips nothing", lambda number: number > 0),
    "logit_std": ("a finite number of at least 0", lambda number: 0 <= number < math.inf),
    "skip_dropout": ("from 0 to below 1", lambda number: 0 <= number < 1),
    "drop_path": ("from 0 to below 1", lambda number: 0 <= number < 1),
    "cutout": ("from 0 to 1", lambda number: 0 <= number <= 1),
}
"""Field of a recipe -> what is expected of it, in words, and whether a number is that."""


@dataclass(frozen=True)
class Recipe:
    """One method: its parts, its optimizers and how long it runs.

    Args:
        name: As registered.
        relaxation: Logits -> gates.
        scheme: Order and gradients of the updates.
        regularizers: Applied to the architecture loss in order.
        derivation: Finished search -> architectures.
        weight_optimizer: Builds the optimizer of the supernet's weights.
        weight_lr: Its learning rate.
        arch_optimizer: Builds the optimizer of the logits.
        num_epochs: Passes over the weight half of the training images, or a part of one; 0 derives at once.
        arch_lr: Learning rate of the logits; the optimizer's own if None.
        weight_relaxation: Gates of the weight steps, where they differ from those of the architecture steps.
        weight_share: Share of the training images that trains weights; the rest is for the architecture.
        batch_size: Images a step, for weights and for architecture alike.
        label_smoothing: Of the weight loss only.
        grad_clip: Largest norm of the weights' gradient; infinite for none.
        logit_std: Standard deviation of the logits at the start.
        proxy: Options of the space in which the supernet differs from the networks that are derived, such as its
            number of cells.
        edge_weights: Weigh the edges into every node against one another, by logits of their own.
        pruner: Takes options out of the search between epochs.
        stopper: May end the search between epochs.
        stages: Searches that come first, one after the other; each begins anew with the options that are left.
        partial_channels: Edges are searched on one of so many parts of their channels; see ``PartialOp``.
        skip_dropout: Share of the features that are dropped after every skip; see ``SkipDropout``.
        drop_path: Share of the images whose edge is dropped, edge by edge.
        cutout: Share of the images of the weight steps that CutOut takes a square of 16 pixels from.
        roll_back: Goes back to where the stopper says, instead of ending there.

    Raises:
        UsageError: A number is out of range, or a part would have no effect beside the others.
    """

    name: str
    relaxation: Relaxation
    scheme: UpdateScheme
    regularizers: tuple[Regularizer, ...]
    derivation: Derivation
    weight_optimizer: OptimizerFactory
    weight_lr: Scalar
    arch_optimizer: OptimizerFactory
    num_epochs: float
    arch_lr: Scalar | None = None
    weight_relaxation: Relaxation | None = None
    weight_share: float = 0.5
    batch_size: int = 64
    label_smoothing: float = 0.0
    grad_clip: float = 5.0
    logit_std: float = 1e-3
    proxy: Mapping[str, int | float] = field(default_factory=dict)
    edge_weights: bool = False
    pruner: Pruner | None = None
    stopper: Stopper | None = None
    stages: tuple[Stage, ...] = ()
    partial_channels: int = 1
    skip_dropout: Scalar = 0.0
    drop_path: Scalar = 0.0
    cutout: Scalar = 0.0
    roll_back: RollBack | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.num_epochs < math.inf or self.batch_size < 2:
            raise UsageError(
                f"recipe '{self.name}' needs at least 0 epochs and batches of at least 2 images (batch-norm); "
                f"got {self.num_epochs} epochs and batches of {self.batch_size}."
            )
        self._check_numbers()
        if self.weight_share == 1 and (self.scheme.needs_arch_split or self.derivation.evaluates):
            part = self.scheme if self.scheme.needs_arch_split else self.derivation
            raise UsageError(
                f"recipe '{self.name}' leaves no images for the architecture (weight_share is 1), which "
                f"{type(part).__name__} needs. Use for example 0.8."
            )
        if self.weight_share < 1 and not (self.scheme.needs_arch_split or self.derivation.evaluates):
            raise UsageError(
                f"recipe '{self.name}': neither {type(self.scheme).__name__} nor {type(self.derivation).__name__} uses "
                f"images that train no weights; a weight_share of {self.weight_share:g} wastes them. Use 1."
            )
        if not self.derivation.competing and self._competing:
            raise UsageError(
                f"recipe '{self.name}': {type(self.derivation).__name__} judges options one by one; under "
                f"{type(self.relaxation).__name__} they compete, and the strongest of a choice would always do. Use "
                "Sigmoid(), or another derivation."
            )
        self.scheme.check(self)
        if self.pruner:
            self.pruner.check(self)
        if self.roll_back:
            self.roll_back.check(self)

    def _check_numbers(self) -> None:
        for name, (expected, fits) in RANGES.items():
            scalar: Scalar | None = getattr(self, name)
            for number in () if scalar is None else probed(scalar):
                if not fits(number):
                    raise UsageError(f"recipe '{self.name}' has a {name} of {number:g}; expected {expected}.")

    @property
    def resolved(self) -> str:
        """Every part and number as text, the same in every process."""
        return re.sub(r" at 0x[0-9a-f]+", "", repr(self))  # where functions and objects lie in memory

    def searched(self, space: SearchSpace) -> SearchSpace:
        """The space of the supernet: the one whose networks are derived, or its proxy.

        Raises:
            UsageError: They have not the same choices, images and classes, or the space takes no such option.
        """
        if not self.proxy:
            return space
        proxy = create_space(space.name, **{**space.options, **self.proxy})
        alike = [(each.choices, each.nodes, each.input_shape, each.num_classes) for each in (space, proxy)]
        if alike[0] != alike[1]:
            raise UsageError(
                f"space '{space.name}' with {dict(self.proxy)} has other choices, images or classes; a proxy may "
                "differ in channels, and in the number of cells that share their choices. Leave the others out."
            )
        return proxy

    def check(self, budget: Budget) -> None:
        """Refuses, before the first step, a limit or a space that a part cannot treat; of stages, too.

        Raises:
            UsageError: Says what would do.
        """
        space = budget.model.space
        for recipe in (*(stage.recipe for stage in self.stages), self):
            for term in recipe.regularizers:
                term.check(budget)
            recipe.derivation.check(space)
            if recipe.stopper:
                recipe.stopper.check(recipe, space)
            recipe.relaxation.fit(space, space.candidates)
            recipe._check_nodes(space)
            recipe._check_candidates(space)

    def _check_nodes(self, space: SearchSpace) -> None:
        if self.edge_weights and not space.nodes:
            raise UsageError(
                f"recipe '{self.name}' weighs the edges into a node, of which space '{space.name}' has none that keep "
                "a number of them. Use a space of cells, such as darts-cell."
            )

    def _check_candidates(self, space: SearchSpace) -> None:
        alone = all(len(choice.candidates) == 1 for choice in space.choices)
        if alone and self._competing and self.scheme.moves_logits and not self.edge_weights:
            raise UsageError(
                f"recipe '{self.name}' has nothing to choose in space '{space.name}': every choice has one candidate, "
                f"and of options that compete, as under {type(self.relaxation).__name__}, one is always there. Use a "
                "recipe with Sigmoid(), such as gold_nas, or another space."
            )

    @property
    def _competing(self) -> bool:
        """Whether one option of every choice is certain."""
        return self.relaxation.kept(torch.zeros(2), progress=1.0) is None

    def supernet(self, space: SearchSpace) -> Supernet:
        """A supernet with random weights, to search a space with.

        Raises:
            UsageError: The space lacks what the recipe is about.
        """
        self._check_nodes(space)
        return Supernet(
            self.searched(space),
            partial_channels=self.partial_channels,
            drops_skips=self.skip_dropout != 0.0,
            drops_paths=self.drop_path != 0.0,
        )

    def in_proxy(self, options: Mapping[str, int | float]) -> Recipe:
        """The same in a supernet of other options, and so all stages.

        Args:
            options: As of ``proxy``; they come on top of those.
        """
        for name, value in options.items():
            own = [each.proxy.get(name) for each in (*(stage.recipe for stage in self.stages), self)]
            if len(set(own)) > 1:
                log.warning("All searches of recipe '%s' have %s=%g, not %s.", self.name, name, value, own)
        stages = tuple(replace(stage, recipe=stage.recipe.in_proxy(options)) for stage in self.stages)
        return replace(self, proxy={**self.proxy, **options}, stages=stages)

    @property
    def drops(self) -> bool:
        """Whether anything is dropped at random."""
        return self.skip_dropout != 0.0 or self.drop_path != 0.0

    @property
    def between_epochs(self) -> bool:
        """Whether anything happens there."""
        return self.pruner is not None or self.stopper is not None

    @property
    def of_weights(self) -> Relaxation:
        """The relaxation of the weight steps."""
        return self.weight_relaxation or self.relaxation


@dataclass(frozen=True)
class Stage:
    """A search before another one.

    Args:
        recipe: Its parts, its size and its length.
        keep: Most probable options of every choice that the next one searches.
    """

    recipe: Recipe
    keep: int

    def __post_init__(self) -> None:
        if self.keep < 1 or self.recipe.stages:
            raise UsageError(f"a stage keeps at least 1 option and has no stages of its own; got {self.keep}.")
