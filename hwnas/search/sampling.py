"""Architectures drawn from probabilities, all of them within a band of latencies."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import softmax
from torch import Tensor

from hwnas.latency.budget import solve
from hwnas.latency.calibration import Array
from hwnas.latency.model import Indices, LatencyModel
from hwnas.search.nodes import among_networks
from hwnas.space import NONE, Architecture, OpSignature, SearchSpace, tidied

NUM_DRAWS = 65_536
"""Draws at once."""

ENOUGH = 64
"""New networks that a batch of untilted draws has to bring, or else draws are tilted."""

MAX_DOUBLINGS = 60


def log_probabilities(probabilities: Mapping[str, Tensor], space: SearchSpace) -> list[Array]:
    """Log-probability of every option, choice by choice in order; no option is less likely than 1e-12."""
    return [probabilities[name].double().clamp_min(1e-12).log().cpu().numpy() for name in space.choice_names]


def tidy(rows: Indices, space: SearchSpace) -> tuple[Indices, Indices]:
    """The same networks with ``none`` for all that changes nothing; see ``tidied``.

    Args:
        rows: Option indices of shape ``(networks, choices)``.
        space: Whose networks they are.

    Returns:
        Rows of the same shape; and of each whether the image reaches the output.
    """
    columns, connected = tidied(list(rows.T), space)
    return np.stack(columns, axis=1).reshape(rows.shape), np.broadcast_to(connected, len(rows))


class Unseen:
    """Remembers networks and lets through new ones.

    Two that have the same operator in every layer are one: they share all weights and build the same network.
    """

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        self._rows: set[tuple[int, ...]] = set()
        self._networks: set[tuple[OpSignature, ...]] = set()

    def __len__(self) -> int:
        return len(self._networks)

    def among(self, rows: Iterable[Sequence[int]]) -> Iterator[Architecture]:
        """The new ones among option indices, in order; one is remembered when the iterator reaches it."""
        for row in rows:
            key = tuple(row)
            if key in self._rows:
                continue
            self._rows.add(key)
            architecture = self._space.architecture(key)
            operators = self._space.operators(architecture)
            if operators not in self._networks:
                self._networks.add(operators)
                yield architecture


class KeptEdges(NamedTuple):
    """Which edges of a node are kept, drawn from the probabilities of their options.

    Args:
        choices: Positions of the edges' choices.
        idle: Of each, number of the option ``none``.
        subsets: Which edges are kept together, booleans of shape ``(subsets, edges)``.
        probabilities: Of the subsets.
    """

    choices: tuple[int, ...]
    idle: tuple[int, ...]
    subsets: Array
    probabilities: Array


def kept_edges(space: SearchSpace, probabilities: Sequence[Array]) -> Iterator[KeptEdges]:
    """For every node, the chances of its edges given that it keeps as many as it must.

    ``P(S) ~ prod_{e in S} (1 - p_e(none)) prod_{e not in S} p_e(none)``: independent options, conditioned.
    """
    for node in space.nodes:
        choices = tuple(space.choice_names.index(name) for name in node.choices)
        idle = tuple(space.choices[choice].options.index(NONE) for choice in choices)
        lost = np.array([probabilities[choice][none] for choice, none in zip(choices, idle, strict=True)])
        edges = [np.isin(range(len(choices)), kept) for kept in itertools.combinations(range(len(choices)), node.kept)]
        logs = np.stack(edges) @ (np.log1p(-lost) - np.log(lost))
        yield KeptEdges(choices, idle, np.stack(edges), softmax(logs))


def _drawn(generator: np.random.Generator, probabilities: Array, num_draws: int) -> Indices:
    numbers = np.searchsorted(np.cumsum(probabilities), generator.random(num_draws), side="right")
    return np.minimum(numbers, len(probabilities) - 1)  # a sum may round to less than 1


@dataclass(frozen=True)
class BandSampler:
    """Draws architectures from independent probabilities, given that ``min_ms <= exact_ms <= max_ms``.

    Given too, where the space has nodes, that these keep as many edges as they must. Operators of a draw that change
    nothing, as only zeros reach them or nothing reads them, become ``none``; a draw in which nothing reaches the output
    does not count.

    Three ways, each where the one before finds too little:

    1. Draw ``p(a) = prod p_k`` and reject what lies outside the band.
    2. Draw with probabilities tilted by latency, ``q_k ~ p_k exp(-mu t_k)``, where ``t_k`` is the mean latency that
       option k causes in the layers that depend on its choice, and ``mu`` puts the expected latency on the band's
       nearer edge. That multiplies the probability of a network by ``exp(-mu t(a))``, ``t`` being the sum of its
       ``t_k``, and nothing else; so a draw within the band is kept with a probability proportional to
       ``exp(mu t(a))``, which is 1 for the network of its batch that the tilt made rarest. What is kept follows
       ``p`` within the band again, up to the chance that a batch misses the network that should set the scale.
       Where every layer depends on one choice, ``t`` is the latency up to a constant and few draws are lost; where
       layers couple choices, more.
    3. The exact programme, most probable first, so that something comes out wherever the band has a network. In
       a large space, a band of about a millionth of its latency can keep it busy for many minutes.

    Args:
        model: Predicts latency.
        scores: Per choice, the log-probability of every option.
        max_ms: Upper end of the band.
        min_ms: Lower end; none if not given.

    Source:
        Exponential tilting for rare events: Asmussen and Glynn, Stochastic Simulation, 2007, chapter VI. A bound
        taken from the draws: Caffo, Booth and Davis, Biometrika 89(4), 2002.
        AttentiveNAS, arXiv 2011.09011, section 4, conditions on multiply-adds by marginals per bin instead.
    """

    model: LatencyModel
    scores: Sequence[Array]
    _: KW_ONLY
    max_ms: float
    min_ms: float = -math.inf

    def distinct(self, seed: int) -> Iterator[Architecture]:
        """Different networks in the order of their first draw, none twice.

        Ends when a whole batch of draws brings nothing new, so it may miss networks that are very improbable, but
        yields at least one where the band has any. Take as many as you need: later ones cost more.

        Args:
            seed: Decides the draws.
        """
        generator, unseen = np.random.default_rng(seed), Unseen(self.model.space)
        for mu in dict.fromkeys((0.0, self.tilt)):
            enough = ENOUGH if mu == 0 and self.tilt else 1
            before = -enough
            while len(unseen) - before >= enough:
                before = len(unseen)
                yield from unseen.among(self.draw(generator, NUM_DRAWS, mu=mu).tolist())
        if not len(unseen):
            yield from unseen.among(solve(self.model, self.scores, max_ms=self.max_ms, min_ms=self.min_ms))

    def draw(self, generator: np.random.Generator, num_draws: int, *, mu: float = 0.0) -> Indices:
        """Draws with a tilt and keeps those within the band.

        Args:
            generator: Source of the draws.
            num_draws: How many to try.
            mu: The tilt, per ms; negative towards slow networks.

        Returns:
            Option indices of shape ``(kept, choices)``, independent and with repetitions.
        """
        tilted = self._tilted(mu)
        rows = np.stack([_drawn(generator, probabilities, num_draws) for probabilities in tilted], axis=1)
        for node in kept_edges(self.model.space, tilted):
            chosen = node.subsets[_drawn(generator, node.probabilities, num_draws)]
            for column, (choice, idle) in enumerate(zip(node.choices, node.idle, strict=True)):
                rest = tilted[choice].copy()
                rest[idle] = 0
                rows[:, choice] = np.where(chosen[:, column], _drawn(generator, rest / rest.sum(), num_draws), idle)
        found, connected = tidy(rows, self.model.space)
        ms = self.model.exact_ms_many(found)
        within = connected & (self.min_ms <= ms) & (ms <= self.max_ms)
        rows, found = rows[within], found[within]
        if mu == 0 or not len(rows):
            return found
        logs = np.zeros(len(rows))
        for choice, ms in enumerate(self.first_order_ms):
            logs += mu * ms[rows[:, choice]]
        kept: Indices = found[generator.random(len(rows)) < np.exp(logs - logs.max())]
        return kept

    @cached_property
    def tilt(self) -> float:
        """Least ``mu`` that brings the expected latency into the band; 0 where it is there, or nothing brings it."""
        mean = self._expected_ms(0.0)
        edge = min(max(mean, self.min_ms), self.max_ms)
        spread = max((float(np.ptp(ms)) for ms in self.first_order_ms), default=0.0)
        if mean == edge or spread == 0:
            return 0.0
        mu = math.copysign(1 / spread, mean - edge)
        for _ in range(MAX_DOUBLINGS):
            if (self._expected_ms(mu) - edge) * (mean - edge) <= 0:
                return float(brentq(lambda some: self._expected_ms(some) - edge, 0.0, mu))
            mu *= 2
        return 0.0

    def _tilted(self, mu: float) -> list[Array]:
        return [softmax(logp - mu * ms) for logp, ms in zip(self.scores, self.first_order_ms, strict=True)]

    def _expected_ms(self, mu: float) -> float:
        names, tilted = self.model.space.choice_names, self._tilted(mu)
        weights = {name: torch.from_numpy(p) for name, p in zip(names, tilted, strict=True)}
        return float(self.model.expected_ms(among_networks(self.model.space, weights)))

    @cached_property
    def first_order_ms(self) -> list[Array]:
        """Per choice, latency of the layers that depend on it given each option, averaged over other choices."""
        probabilities = [softmax(logp) for logp in self.scores]
        means = [np.zeros(count) for count in self.model.space.num_options]
        for factor in self.model.factors:
            for axis, choice in enumerate(factor.choices):
                ms = np.moveaxis(factor.ms, axis, 0)
                for other in reversed(factor.choices[:axis] + factor.choices[axis + 1 :]):
                    ms = ms @ probabilities[other]
                means[choice] = means[choice] + ms
        return means
