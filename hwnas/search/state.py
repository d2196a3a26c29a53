"""The state that a search starts from."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hwnas.compute import Compute
from hwnas.errors import RunError, UsageError
from hwnas.search.protocols import Candidates, SearchState
from hwnas.search.recipe import Recipe
from hwnas.search.schedules import probed
from hwnas.space import SearchSpace


def initial_state(
    space: SearchSpace,
    recipe: Recipe,
    seed: int,
    compute: Compute,
    *,
    weights: dict[str, Tensor] | None = None,
    candidates: Candidates | None = None,
) -> SearchState:
    """A supernet, logits near zero and their optimizers.

    Args:
        space: Whose networks are derived.
        recipe: The method.
        seed: Decides weights and logits.
        compute: Where the supernet goes.
        weights: In place of random ones.
        candidates: What is searched; the candidates of the space if not given.

    Raises:
        RunError: The weights are of another supernet.
        UsageError: The optimizers refuse their numbers, or the logits would never move.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        supernet = recipe.supernet(space)
    if weights is not None:
        try:
            supernet.load_state_dict(weights)
        except RuntimeError as error:
            raise RunError(
                f"the given weights do not fit a supernet of recipe '{recipe.name}', with partial_channels="
                f"{recipe.partial_channels}. Start from a search with the same."
            ) from error
    compute.move(supernet.train())
    logits = initial_logits(space, recipe, generator)
    searched = space.candidates if candidates is None else candidates
    return SearchState(supernet, logits, *_optimizers(recipe, supernet, logits), generator, candidates=searched)


def _optimizers(recipe: Recipe, supernet: nn.Module, logits: dict[str, nn.Parameter]) -> tuple[Optimizer, Optimizer]:
    try:
        weights, arch = recipe.weight_optimizer(supernet.parameters()), recipe.arch_optimizer(logits.values())
    except ValueError as error:
        raise UsageError(
            f"an optimizer of recipe '{recipe.name}' cannot be built: {error}. Correct the argument that it comes from."
        ) from error
    own = [group["lr"] for group in arch.param_groups]
    if not any(own if recipe.arch_lr is None else probed(recipe.arch_lr)):
        raise UsageError(
            f"recipe '{recipe.name}' has a learning rate of 0 for the logits, which would never move; expected more "
            "than 0. To train weights only use WeightsOnly(), as spos and random do."
        )
    return weights, arch


def initial_logits(space: SearchSpace, recipe: Recipe, generator: torch.Generator) -> dict[str, nn.Parameter]:
    """Logits of every choice and, where the recipe weighs edges, of every node, drawn from a normal distribution.

    Args:
        space: With the choices.
        recipe: Says how far from zero they are.
        generator: Of random numbers.
    """
    sizes = {choice.name: len(choice.options) for choice in space.choices}
    if recipe.edge_weights:
        sizes |= {node.name: len(node.choices) for node in space.nodes}
    return {
        name: nn.Parameter(recipe.logit_std * torch.randn(size, generator=generator)) for name, size in sizes.items()
    }
