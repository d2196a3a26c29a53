"""Networks to learn from, spread over all that a space can cost."""

from __future__ import annotations

import itertools

import numpy as np

from hwnas.latency.budget import feasible_range_ms, solve
from hwnas.latency.model import LatencyModel
from hwnas.space import Architecture, SearchSpace, macs


def spread(space: SearchSpace, count: int, *, seed: int) -> list[Architecture]:
    """Different networks in random order, evenly spread from the fewest multiply-adds of a space to the most.

    Networks drawn uniformly are all of middling size. What is learned from them need not hold for those of a tight
    limit, and the error that they tell does not warn of it (``benchmarks/calibration.py``). Here every network is the
    best one under random scores, as a search derives them, that has at most so many multiply-adds, or at least so many
    in the upper half of the range. Where that finds one twice, another is drawn uniformly.

    Args:
        space: Whose networks they are.
        count: How many; there are fewer only if the space has fewer.
        seed: Decides the draws.

    Source:
        Draws by the best under random scores: Papandreou and Yuille, Perturb-and-MAP random fields, ICCV 2011.
    """
    rng = np.random.default_rng(seed)
    model = LatencyModel.counting(space, lambda signature: macs(signature) / 1e6)
    low, high = feasible_range_ms(model)
    found: dict[Architecture, None] = {}
    for bound in np.linspace(low, high, count):
        scores = [rng.gumbel(size=options) for options in space.num_options]
        limit = {"max_ms": bound} if bound < (low + high) / 2 else {"min_ms": bound}
        found |= dict.fromkeys(map(space.architecture, itertools.islice(solve(model, scores, **limit), 1)))
    others = (architecture for architecture in space.distinct(count, seed=seed) if architecture not in found)
    drawn = [*found, *itertools.islice(others, count - len(found))]
    return [drawn[number] for number in rng.permutation(len(drawn))]
