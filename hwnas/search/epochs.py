"""What happens between the epochs of a search: weak options are pruned, and a search may end early."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from hwnas.search.protocols import Candidates, Epoch, SearchState
from hwnas.search.recipe import Recipe
from hwnas.search.step import SearchStep
from hwnas.search.stoppers import decay_of


def end_epoch(step: SearchStep) -> None:
    """Records the epoch that the last step ended, and prunes.

    Args:
        step: Of the state as it is now; its images serve what the stopper measures.
    """
    state, recipe = step.state, step.recipe
    figures = recipe.stopper.measure(step) if recipe.stopper else {}
    state.history.append(Epoch(step.probabilities(), figures, step.within()))
    if recipe.pruner:
        state.candidates = recipe.pruner(step)


def stopped(state: SearchState, recipe: Recipe) -> int | None:
    """Number of the epoch whose probabilities are the result; None if the search has not been stopped.

    A search that rolls back is not stopped any more once its weight decay is the largest.
    """
    if recipe.roll_back and recipe.roll_back.next(decay_of(state.weight_optimizer)) is None:
        return None
    return recipe.stopper(state.history) if recipe.stopper and state.history else None


def most_probable(probabilities: Mapping[str, Tensor], candidates: Candidates, count: int) -> Candidates:
    """The most probable of every choice's candidates; of equal ones the first.

    Args:
        probabilities: Choice name -> probability of every option, without weights of edges.
        candidates: What was searched.
        count: How many are left; all where there are fewer.
    """
    left = {}
    for name, p in probabilities.items():
        among = candidates.get(name, tuple(range(len(p))))
        left[name] = tuple(sorted(sorted(among, key=lambda k: (-float(p[k]), k))[:count]))
    return left
