"""Rating options fairly: all run equally often, and each is rated by the networks that it runs in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from hwnas.errors import UsageError
from hwnas.search.protocols import Context, Logits, Relaxation, UpdateScheme
from hwnas.search.recipe import Recipe
from hwnas.search.step import SearchStep
from hwnas.supernet.gates import Gate, Gates, one_hot


@dataclass(frozen=True)
class WithoutReplacement(Relaxation):
    """One option runs; in as many turns as a choice has candidates, each of them once, in a random order.

    Args:
        turn: Number of the turn, from 0, among those that share a state of the generator; a choice of fewer candidates
            begins its order again.

    Source:
        CP-NAS, arXiv 2005.00057, section 3: sampling without replacement.
    """

    differentiable: ClassVar[bool] = False

    turn: int = 0

    def __call__(self, logits: Logits, *, progress: float, generator: torch.Generator) -> dict[str, Gate]:
        """See ``Relaxation``."""
        gates = {}
        for name, logit in logits.items():
            order = torch.randperm(len(logit), generator=generator)
            index = int(order[self.turn % len(logit)])
            gates[name] = Gate(one_hot(index, len(logit)).to(logit.detach()), (index,), hard=True)
        return gates


@dataclass(frozen=True)
class Rated(UpdateScheme):
    """Every option runs once a step; its logit rises by how much better than others its network did.

    As many networks as the largest choice has candidates are drawn without replacement. Each moves the weights, on the
    same images. Then each is rated, all by the same weights on the same images of the architecture half: minus the
    regularized loss, with minus the accuracy as the task loss. The gradient of a logit is minus the mean rating of the
    networks with its option, less that of all. With plain SGD as its optimizer a logit is the sum of its ratings.

    Source:
        CP-NAS, arXiv 2005.00057, section 3.
        Differs: networks are rated every step, not once a training; without a child of one bit.
    """

    def check(self, recipe: Recipe) -> None:
        """See ``UpdateScheme``."""
        if not isinstance(recipe.relaxation, WithoutReplacement) or recipe.weight_relaxation is not None:
            raise UsageError(
                f"recipe '{recipe.name}': options are rated by how often each runs, the same for all, which "
                f"{type(recipe.weight_relaxation or recipe.relaxation).__name__} does not see to. Use "
                "WithoutReplacement() and no weight_relaxation."
            )
        if recipe.relaxation.turn:
            raise UsageError(f"recipe '{recipe.name}': Rated() counts the turns itself. Use WithoutReplacement().")
        if recipe.edge_weights:
            raise UsageError(f"recipe '{recipe.name}': edges have no ratings. Leave edge_weights out.")

    def __call__(self, step: SearchStep) -> dict[str, float]:
        """See ``UpdateScheme``."""
        smoothing, turns = step.recipe.label_smoothing, self._turns(step)
        trained = []
        for gates in turns:
            trained.append(step.run(step.weight_batch, gates, weights=True, label_smoothing=smoothing))
            step.move_weights()
        batch = step.arch_batch()
        rated = [step.run(batch, gates).accuracy for gates in turns]
        contexts = [step.context(gates) for gates in turns]
        losses = torch.stack([
            step.regularized(torch.tensor(-accuracy, dtype=torch.float64), context)
            for accuracy, context in zip(rated, contexts, strict=True)
        ])  # fmt: skip
        step.move_logits(_gradients(step, turns, losses), turns[-1], contexts[-1])
        return {
            "weight_loss": _mean([float(task.loss) for task in trained]),
            "weight_accuracy": _mean([task.accuracy for task in trained]),
            "arch_loss": float(losses.detach().mean()),
            "arch_accuracy": _mean(rated),
            **_latencies(contexts),
        }

    def _turns(self, step: SearchStep) -> list[Gates]:
        generator = step.state.generator
        start, candidates = generator.get_state(), step.state.candidates
        choices = step.budget.model.space.choices
        gates = []
        for turn in range(max(len(candidates.get(c.name, c.options)) for c in choices)):
            generator.set_state(start)
            gates.append(step.draw(replace(step.recipe.relaxation, turn=turn)))  # type: ignore[type-var]
        return gates


def _gradients(step: SearchStep, turns: list[Gates], losses: Tensor) -> dict[str, Tensor | None]:
    logits = step.state.logits
    direct: tuple[Tensor | None, ...] = (None,) * len(logits)
    if losses.requires_grad:
        direct = torch.autograd.grad(losses.mean(), list(logits.values()), allow_unused=True)
    above = losses.detach() - losses.detach().mean()
    found: dict[str, Tensor | None] = {}
    for (name, logit), more in zip(logits.items(), direct, strict=True):
        total, count = torch.zeros_like(logit), torch.zeros_like(logit)
        for gates, loss in zip(turns, above.to(logit), strict=True):
            total[gates[name].active[0]] += loss
            count[gates[name].active[0]] += 1
        mean = total / count.clamp_min(1)
        found[name] = mean if more is None else mean + more
    return found


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _latencies(contexts: list[Context]) -> dict[str, float]:
    return {
        "expected_ms": float(contexts[-1].expected_ms.detach()),
        "sampled_ms": _mean([float(context.sampled_ms.detach()) for context in contexts]),
    }
