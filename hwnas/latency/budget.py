"""A hard latency target, stated once, and the exact programme that respects it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import lil_matrix

from hwnas.errors import InfeasibleBudgetError, UsageError
from hwnas.latency.calibration import Array
from hwnas.latency.model import LatencyModel
from hwnas.space import NONE, whole


@dataclass(frozen=True)
class Budget:
    """A model of latency and the most that a network may take.

    Regularizers, samplers and derivations all read the limit from here.

    Args:
        model: Predicts latency.
        max_ms: The limit in milliseconds.

    Raises:
        UsageError: The limit is infinite.
        InfeasibleBudgetError: No network of the space is that fast; names the smallest reachable latency.
    """

    model: LatencyModel
    max_ms: float

    def __post_init__(self) -> None:
        if self.max_ms == math.inf:
            raise UsageError("an infinite limit limits nothing. Give milliseconds as a number, such as --max-ms 20.")
        low, high = self.reachable_ms
        if not self.max_ms >= low:
            hint, least = "", rounded_up(low)
            if low <= self.max_ms * 1000 <= high:
                hint = f" Is the target in seconds? {self.max_ms:g} s would be --max-ms {self.max_ms * 1000:g}."
            raise InfeasibleBudgetError(
                f"no network of space '{self.model.space.name}' runs in {self.max_ms:g} ms; the smallest "
                f"reachable latency is {least:.4g} ms and the largest {high:.4g} ms. Ask for at least {least:.4g} ms, "
                f"or search a smaller space.{hint}"
            )

    @cached_property
    def reachable_ms(self) -> tuple[float, float]:
        """Predicted latency of the fastest and of the slowest network."""
        return feasible_range_ms(self.model)

    @cached_property
    def slowest_ms(self) -> float:
        """Predicted latency of the slowest network that keeps the limit."""
        return _extreme_ms(self.model, sign=1, max_ms=self.max_ms)

    @property
    def binds(self) -> bool:
        """Whether some network of the space exceeds the limit."""
        return self.max_ms < self.reachable_ms[1]

    def allows(self, ms: float) -> bool:
        """Whether a latency is within the limit."""
        return ms <= self.max_ms


def rounded_up(ms: float, *, figures: int = 4) -> float:
    """A limit of few significant figures that is not below a latency."""
    unit = 10.0 ** (figures - 1 - math.floor(math.log10(ms))) if ms > 0 else 1.0
    return math.ceil(ms * unit) / unit


def feasible_range_ms(model: LatencyModel) -> tuple[float, float]:
    """Predicted latency of the fastest and of the slowest network of the model's space."""
    return _extreme_ms(model, sign=-1), _extreme_ms(model, sign=1)


def _extreme_ms(model: LatencyModel, *, sign: int, max_ms: float = np.inf) -> float:
    """Predicted latency of the slowest network within a limit, or with a sign of -1 of the fastest."""
    extreme = next(solve(model, _no_scores(model), max_ms=max_ms, latency=sign))
    return float(model.exact_ms_many([extreme])[0])


def solve(
    model: LatencyModel,
    scores: Sequence[Array] | Array,
    *,
    max_ms: float = np.inf,
    min_ms: float = -np.inf,
    latency: float = 0.0,
    rare: Sequence[tuple[int, int]] = (),
    max_rare: int = 0,
) -> Iterator[tuple[int, ...]]:
    """Architectures of greatest total score within a limit, best first, exactly.

    A 0/1 programme: one variable for every option, one option a choice, one more variable for every
    combination where layers depend on several choices together, and the latency as a linear constraint.
    After each solution a cut excludes it, so the iterator ends when no network is left. In every one the image reaches
    the output, and no operator changes nothing; see ``hwnas.space.tidied``.

    Args:
        model: Predicts latency.
        scores: Per choice, one score an option; they add up.
        max_ms: Upper limit; none if not given.
        min_ms: Lower limit; none if not given.
        latency: Weight of the predicted latency in the score.
        rare: Number of a choice and of its option: what a network has not more than ``max_rare`` of.
        max_rare: How many of these.

    Yields:
        Option indices.

    Source:
        LANA, arXiv 2107.10624, section 3, equation 3, with additive scores.
    """
    programme = _Programme(model)
    objective = -(programme.of_scores(scores) + latency * programme.cost)
    constraints: list[LinearConstraint] = programme.structure()
    limits = min_ms - model.fixed_ms, max_ms - model.fixed_ms
    constraints.append(LinearConstraint(programme.cost[None], *limits))
    if rare:
        constraints.append(programme.at_most(rare, max_rare))
    while True:
        result = milp(
            objective,
            integrality=programme.integrality,
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": 0.0},
        )
        if result.x is None:
            return
        found = programme.decode(result.x)
        # The solver's feasibility tolerance is 1e-6; what it lets slip over a limit is cut away here.
        if min_ms <= model.exact_ms_many([found])[0] <= max_ms and whole(found, model.space):
            yield found
        constraints.append(programme.cut(found))


class _Programme:
    """Columns: the options of every choice, the combinations of every factor over several, the layers' liveliness.

    The last ones, from 0 to 1, are there where choices are free to be ``none``. One above 0: its layer lies on a way
    from the image to the output: it is no greater than what runs there, than the sum of those that feed it, and than
    the sum of those that read it. An edge that is kept has one such layer.
    """

    def __init__(self, model: LatencyModel) -> None:
        self.space = model.space
        self.options = model.space.num_options
        self.starts = np.concatenate([[0], np.cumsum(self.options)]).astype(int)
        self.joint = [factor for factor in model.factors if len(factor.choices) > 1]
        self.first_layer = int(self.starts[-1] + sum(factor.ms.size for factor in self.joint))
        self.size = self.first_layer + (len(self.space.layers) if self.space.free else 0)
        self.integrality = (np.arange(self.size) < self.first_layer).astype(np.int64)
        self.cost = np.zeros(self.size)
        for factor in model.factors:
            if len(factor.choices) == 1:
                self.cost[self.columns(factor.choices[0])] += factor.ms
        column = int(self.starts[-1])
        for factor in self.joint:
            self.cost[column : column + factor.ms.size] = factor.ms.ravel()
            column += factor.ms.size

    def columns(self, choice: int) -> slice:
        return slice(int(self.starts[choice]), int(self.starts[choice + 1]))

    def of_scores(self, scores: Sequence[Array] | Array) -> Array:
        flat = np.zeros(self.size)
        for choice in range(len(self.options)):
            flat[self.columns(choice)] = scores[choice][: self.options[choice]]
        return flat

    def structure(self) -> list[LinearConstraint]:
        """One option a choice, so many edges a node; a combination is on exactly when all of its options are."""
        rows: list[tuple[Any, float]] = []
        num_rows = len(self.options) + len(self.space.nodes) + sum(sum(f.ms.shape) for f in self.joint)
        matrix = lil_matrix((num_rows, self.size))
        for choice in range(len(self.options)):
            matrix[choice, self.columns(choice)] = 1
            rows.append((choice, 1.0))
        for node in self.space.nodes:
            for name in node.choices:
                choice = self.space.choice_names.index(name)
                matrix[len(rows), self.starts[choice] + self.space.choice(name).options.index(NONE)] = 1
            rows.append((len(rows), float(len(node.choices) - node.kept)))
        row, column = len(rows), int(self.starts[-1])
        for factor in self.joint:
            positions = np.indices(factor.ms.shape).reshape(len(factor.choices), -1)
            for axis, choice in enumerate(factor.choices):
                for option in range(factor.ms.shape[axis]):
                    matrix[row, column + np.flatnonzero(positions[axis] == option)] = 1
                    matrix[row, self.starts[choice] + option] = -1
                    rows.append((row, 0.0))
                    row += 1
            column += factor.ms.size
        equal = np.asarray([value for _, value in rows])
        return [LinearConstraint(matrix.tocsr(), equal, equal), *([self._lively()] if self.space.free else [])]

    def _lively(self) -> LinearConstraint:
        """No layer is livelier than allowed, the last one is, and every edge that is kept has a lively layer."""
        rows: list[tuple[dict[int, float], float]] = []  # column -> factor, and what they add up to at least
        readers: list[list[int]] = [[] for _ in self.space.layers]
        for position, sources in enumerate(self.space.wiring):
            for source in sources:
                if source >= 0:
                    readers[source].append(position)
        starts = dict(zip(self.space.choice_names, self.starts.tolist(), strict=False))
        none = {name: starts[name] + option for name, option in self.space.free.items()}
        layers: dict[str, list[int]] = {name: [] for name in none}
        last = len(readers) - 1
        for position, (layer, sources) in enumerate(zip(self.space.layers, self.space.wiring, strict=True)):
            here = self.first_layer + position
            if min(sources) >= 0:
                rows.append(({here: -1.0} | {self.first_layer + source: 1.0 for source in sources}, 0.0))
            if position < last:
                rows.append(({here: -1.0} | {self.first_layer + reader: 1.0 for reader in readers[position]}, 0.0))
            for name in layer.choices:
                if name in none:
                    layers[name].append(here)
                    rows.append(({here: -1.0, none[name]: -1.0}, -1.0))
        rows.append(({self.first_layer + last: 1.0}, 1.0))
        rows += [({none[name]: 1.0} | dict.fromkeys(layers[name], 1.0), 1.0) for name in none]
        matrix = lil_matrix((len(rows), self.size))
        for number, (row, _) in enumerate(rows):
            for column, factor in row.items():
                matrix[number, column] = factor
        return LinearConstraint(matrix.tocsr(), lb=np.asarray([least for _, least in rows]))

    def decode(self, solution: Array) -> tuple[int, ...]:
        return tuple(int(np.argmax(solution[self.columns(choice)])) for choice in range(len(self.options)))

    def cut(self, found: tuple[int, ...]) -> LinearConstraint:
        """Excludes one architecture."""
        return self.at_most(list(enumerate(found)), len(found) - 1)

    def at_most(self, some: Sequence[tuple[int, int]], count: int) -> LinearConstraint:
        """Of some options, given with their choices, so many are chosen at most."""
        row = np.zeros((1, self.size))
        row[0, [self.starts[choice] + option for choice, option in some]] = 1
        return LinearConstraint(row, ub=count)


def _no_scores(model: LatencyModel) -> Array:
    return np.zeros((len(model.space.choices), max(model.space.num_options, default=0)))
