"""Weights are trained in a neighbourhood of the probabilities, so that little is lost when one option is left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from hwnas.errors import UsageError
from hwnas.search.recipe import Recipe
from hwnas.search.relaxations import Softmax
from hwnas.search.schedules import Scalar, value_at
from hwnas.search.step import SearchStep
from hwnas.supernet.gates import Gate, Gates

Rows = Mapping[str, Tensor]
"""Choice name -> weights of its candidates, ``(num_candidates,)``."""


@dataclass(frozen=True)
class Perturbed(Softmax):
    """The weights of ``Softmax`` with uniform noise from ``-eps`` to ``eps``, clamped to [0, 1] and made to sum to one.

    As the ``weight_relaxation`` of a recipe it acts in weight steps alone; the logits never change.

    Args:
        eps: Largest noise; may be a schedule. With 0 it is ``Softmax``.

    Source:
        SDARTS-RS, arXiv 2002.05283, section 3.1. The paper writes the noise at the logits, the released code has it at
        the probabilities, as here. Differs: weights of edges, which the paper has not, have none.
    """

    eps: Scalar = 0.03

    def _gate(self, logit: Tensor, progress: float, generator: torch.Generator) -> Gate:
        gate, eps = super()._gate(logit, progress, generator), value_at(self.eps, progress)
        return replace(gate, weights=projected(gate.weights + _noise(gate.weights, eps, generator))) if eps else gate


@dataclass(frozen=True)
class Adversarial:
    """Searches, near the weights of every choice, those of the largest training loss, for one weight step.

    From a random start ``steps`` ascents by ``2 eps / steps`` along the sign of the gradient, each followed by clipping
    to ``+- eps`` around the weights and by ``projected``. The supernet is in evaluation mode meanwhile, and its buffers
    rest. Where the loss has fallen in the end, the weights are those from before.

    Args:
        eps: Size of the neighbourhood; may be a schedule. With 0 there is no attack.
        steps: Ascents, each a pass forward and backward; two more passes forward compare the losses.

    Raises:
        UsageError: There is no ascent.

    Source:
        SDARTS-ADV, arXiv 2002.05283, section 3.2, and released code, which attacks the probabilities, not the logits,
        in 7 steps. Differs: weights of edges are not attacked.
    """

    eps: Scalar
    steps: int = 7

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UsageError(f"an attack of {self.steps} steps does nothing. Use for example 7, or leave it out.")

    def check(self, recipe: Recipe) -> None:
        """Refuses weights that are drawn, or need not sum to one.

        Raises:
            UsageError: Says what would do.
        """
        if not isinstance(recipe.of_weights, Softmax):
            raise UsageError(
                f"recipe '{recipe.name}': an attack is on the weights of Softmax(), not on those of "
                f"{type(recipe.of_weights).__name__}. Leave it out, or use weight_relaxation=Softmax()."
            )

    def __call__(self, step: SearchStep, gates: Gates) -> Gates:
        """Gates of other weights, for the same options.

        Args:
            step: With the training batch.
            gates: As drawn for the weight step.
        """
        eps, supernet = value_at(self.eps, step.progress), step.state.supernet
        if not eps:
            return gates
        rows = {name: gates[name].weights.detach()[list(gates[name].active)] for name in supernet.space.choice_names}

        def slopes(rows: Rows) -> dict[str, Tensor]:
            task = step.run(step.weight_batch, _with(gates, rows), arch=True, label_smoothing=smoothing)
            found = {name: task.gate_gradients[name] for name in rows}
            return {n: torch.zeros_like(rows[n]) if g is None else g[list(gates[n].active)] for n, g in found.items()}

        def loss(gates: Gates) -> float:
            return float(step.run(step.weight_batch, gates, label_smoothing=smoothing).loss)

        training, smoothing = supernet.training, step.recipe.label_smoothing
        supernet.eval()
        try:
            attacked = _with(gates, ascended(rows, slopes, eps, self.steps, step.state.generator))
            return gates if loss(attacked) < loss(gates) else attacked
        finally:
            supernet.train(training)


def ascended(
    rows: Rows,
    slopes: Callable[[Rows], Rows],
    eps: float,
    steps: int,
    generator: torch.Generator,
    *,
    project: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Rows near the given ones along the signs of the slopes, from a random start.

    Args:
        rows: Where to look.
        slopes: Gradients of what is to grow.
        eps: Largest change of an entry, but for the projection.
        steps: Each of ``2 eps / steps``.
        generator: Of the start.
        project: ``projected`` if not given.
    """
    onto = project or projected
    found = {name: onto(row + _noise(row, eps, generator)) for name, row in rows.items()}
    for _ in range(steps):
        up = slopes(found)
        moved = {name: row + 2 * eps / steps * up[name].sign().to(row) for name, row in found.items()}
        found = {name: onto(rows[name] + (row - rows[name]).clamp(-eps, eps)) for name, row in moved.items()}
    return found


def projected(row: Tensor) -> Tensor:
    """Clamped to [0, 1] and divided by the sum; this may leave a neighbourhood a little.

    Where nothing is left above 0, the largest entry becomes 1.
    """
    clamped = row.clamp(0, 1)
    clamped = torch.where(clamped.any(), clamped, one_hot(row.argmax(), len(row)).to(row))
    return clamped / clamped.sum()


def _noise(like: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    return torch.empty(like.shape, dtype=torch.float64).uniform_(-eps, eps, generator=generator).to(like)


def _with(gates: Gates, rows: Rows) -> dict[str, Gate]:
    return {
        name: replace(gate, weights=_set(gate, rows[name])) if name in rows else gate for name, gate in gates.items()
    }


def _set(gate: Gate, row: Tensor) -> Tensor:
    return gate.weights.detach().index_copy(0, torch.tensor(gate.active), row)
