"""Evolution of architectures by their accuracy with shared weights."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import numpy as np

from hwnas.errors import UsageError
from hwnas.latency.budget import Budget
from hwnas.latency.model import Indices
from hwnas.search.derivations.band import HIGHEST_DRAWN, check_floor, sampler_within
from hwnas.search.derivations.scoring import Scoring
from hwnas.search.protocols import Derivation, Finished
from hwnas.search.sampling import BandSampler, Unseen, tidy
from hwnas.space import Architecture

LOGGER = logging.getLogger("hwnas")

TRIES = 100
"""Tries for every mutation and every crossover; most break the limit or are known already in a small space."""


@dataclass(frozen=True)
class Evolution(Derivation):
    """Breeds architectures within the limit; yields all that were evaluated, the most accurate first.

    The first population is drawn from the final probabilities, which are uniform where nothing moved them. Each
    further one has mutations and crossovers of the best architectures so far, filled up with draws where these
    bring nothing new. A network is evaluated once; the search ends early where draws find no more.

    Args:
        population: Architectures a generation.
        generations: Populations, with the first.
        num_parents: Best architectures so far, which breed.
        num_mutations: Children of one parent; each option is drawn anew, uniformly, at the mutation rate.
        num_crossovers: Children of two parents; each option is that of either. The edges of a node count as one option.
        mutation_rate: Probability to draw an option anew, above 0 and at most 1.
        floor: Share of the limit to use at least, from 0 to 0.99; lowered where the space has no network in that band.

    Raises:
        UsageError: A number is out of range, or children do not fit into the population.

    Source:
        SPOS, arXiv 1904.00420, section 3.4 and algorithm 1; 50, 20, 10, 25, 25 and 0.1 are its values.
        Differs: a limit in milliseconds, not multiply-adds; places that children leave empty are filled with draws.
    """

    population: int = 50
    generations: int = 20
    _: KW_ONLY
    num_parents: int = 10
    num_mutations: int = 25
    num_crossovers: int = 25
    mutation_rate: float = 0.1
    floor: float = 0.0

    evaluates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_floor(self, highest=HIGHEST_DRAWN)
        least = {"generations": 2, "num_parents": 2 if self.num_crossovers else 1}
        for name in ("population", "generations", "num_parents", "num_mutations", "num_crossovers"):
            if getattr(self, name) < least.get(name, 0):
                raise UsageError(
                    f"Evolution got {name}={getattr(self, name)}; expected at least {least.get(name, 0)}. "
                    "Leave it out for the published value."
                )
        if not 1 <= self.num_mutations + self.num_crossovers <= self.population:
            raise UsageError(
                f"Evolution got {self.num_mutations} mutations and {self.num_crossovers} crossovers for a population "
                f"of {self.population}; expected from 1 to {self.population} together. Change them or the population; "
                "to draw architectures without breeding use SampleAndScore."
            )
        if not 0 < self.mutation_rate <= 1:
            raise UsageError(
                f"Evolution got mutation_rate={self.mutation_rate}; expected more than 0 and at most 1. "
                "Use num_mutations=0 to mutate nothing."
            )

    def __call__(self, finished: Finished, budget: Budget) -> Iterator[Architecture]:
        """See ``Derivation``."""
        sampler = sampler_within(self, finished, budget)
        nursery = _Nursery(self, sampler, finished.seed)
        scoring = Scoring(finished, budget, self.population * self.generations)
        accuracy: dict[Architecture, float] = {}
        ranked: list[Architecture] = []
        for generation in range(1, self.generations + 1):
            children = list(nursery.children(ranked[: self.num_parents]))
            if not children:
                LOGGER.info("evolution: no further architecture found; %d evaluated", len(ranked))
                break
            accuracy.update((child, scoring(child)) for child in children)
            ranked = sorted(accuracy, key=accuracy.__getitem__, reverse=True)
            LOGGER.info(
                "evolution: generation %d of %d, %d evaluated, best accuracy %.4f at a predicted %.4g ms",
                *(generation, self.generations, len(ranked), accuracy[ranked[0]], budget.model.exact_ms(ranked[0])),
            )
        scoring.end()
        yield from ranked


class _Nursery:
    """Makes children that are new and within the band."""

    def __init__(self, settings: Evolution, sampler: BandSampler, seed: int) -> None:
        self._settings, self._sampler = settings, sampler
        self._space = sampler.model.space
        self._unseen = Unseen(self._space)
        self._fresh = sampler.distinct(seed)
        self._generator = np.random.default_rng((seed, 1))  # another stream than that of the fresh ones
        even = [np.zeros(count) for count in self._space.num_options]
        self._uniform = BandSampler(sampler.model, even, max_ms=math.inf)
        names = self._space.choice_names
        together = {name: node.choices[0] for node in self._space.nodes for name in node.choices}
        self._unit = [names.index(together.get(name, name)) for name in names]  # edges of a node change together

    def children(self, parents: list[Architecture]) -> Iterator[Architecture]:
        """One population; without parents all of it is drawn."""
        genes = np.array([self._space.indices(parent) for parent in parents], dtype=np.intp)
        settings, num_children = self._settings, 0
        for count, breed in ((settings.num_mutations, self._mutated), (settings.num_crossovers, self._crossed)):
            if len(genes):
                legal = self._legal(breed(genes, TRIES * count)).tolist()
                for child in itertools.islice(self._unseen.among(legal), count):
                    yield child
                    num_children += 1
        fresh = self._unseen.among(map(self._space.indices, self._fresh))
        yield from itertools.islice(fresh, settings.population - num_children)

    def _legal(self, rows: Indices) -> Indices:
        rows, connected = tidy(rows, self._space)
        ms = self._sampler.model.exact_ms_many(rows)
        return rows[connected & (self._sampler.min_ms <= ms) & (ms <= self._sampler.max_ms)]

    def _mutated(self, parents: Indices, tries: int) -> Indices:
        rows = parents[self._generator.integers(len(parents), size=tries)]
        anew = self._uniform.draw(self._generator, tries)
        return np.where(self._generator.random(rows.shape)[:, self._unit] < self._settings.mutation_rate, anew, rows)

    def _crossed(self, parents: Indices, tries: int) -> Indices:
        if len(parents) < 2:
            return parents[:0]
        one = self._generator.integers(len(parents), size=tries)
        other = (one + self._generator.integers(1, len(parents), size=tries)) % len(parents)
        rows = parents[one]
        return np.where(self._generator.random(rows.shape)[:, self._unit] < 0.5, rows, parents[other])
