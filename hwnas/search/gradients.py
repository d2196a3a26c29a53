"""Estimates of the gradient of the architecture loss with respect to the logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from hwnas.distributed import averaged
from hwnas.errors import UsageError
from hwnas.search.protocols import Context
from hwnas.search.recipe import Recipe
from hwnas.search.step import SearchStep, Task
from hwnas.supernet.gates import Gates, detached
from hwnas.supernet.mixed_op import frozen_batchnorm

Tensors = Sequence[Tensor | None]


class Estimate(NamedTuple):
    """A gradient and what it was found from."""

    gradients: dict[str, Tensor | None]
    loss: float
    task: Task
    context: Context


class ArchGradient(Protocol):
    """Which images, at which weights, move the logits."""

    def check(self, recipe: Recipe) -> None:
        """Refuses a recipe that this gradient cannot treat."""
        return

    def __call__(self, step: SearchStep, gates: Gates) -> Estimate:
        """The gradient of every logit; fetches its own images."""


@dataclass(frozen=True)
class FirstOrder(ArchGradient):
    """``dL_val / d alpha`` at the weights as they are.

    Source:
        DARTS, arXiv 1806.09055, section 2.3 with xi = 0.
    """

    def __call__(self, step: SearchStep, gates: Gates) -> Estimate:
        """See ``ArchGradient``."""
        return through_gates(step, gates, step.run(step.arch_batch(), gates, arch=True))


@dataclass(frozen=True)
class Unrolled(ArchGradient):
    """``dL_val(w') / d alpha - xi M dL_val(w') / dw'`` at ``w' = w - xi (momentum m + dL_tr / dw + decay w)``.

    ``M = d2 L_tr / d alpha dw``; ``xi`` is the current learning rate. The same gates serve every pass, and weights
    off the path stay where they are.

    Args:
        exact: Form ``M u`` by differentiating ``<dL_tr / dw, u>``, instead of by the published central difference of
            ``dL_tr / d alpha`` at ``w +- (eps / ||u||) u``.
        eps: Length of that step.

    Source:
        DARTS, arXiv 1806.09055, equations 7 and 8; momentum and decay in the virtual step as in its released code.
    """

    exact: bool = False
    eps: float = 0.01

    def check(self, recipe: Recipe) -> None:
        """Probed options have no second derivative."""
        if self.exact and recipe.relaxation.probes:
            raise UsageError(
                f"recipe '{recipe.name}': {type(recipe.relaxation).__name__} runs its other options without a graph, "
                "so that there is no exact second derivative. Use Unrolled(exact=False)."
            )

    def __call__(self, step: SearchStep, gates: Gates) -> Estimate:
        """See ``ArchGradient``."""
        parameters = list(step.state.supernet.parameters())
        with _kept(parameters):
            smoothing = step.recipe.label_smoothing
            step.run(step.weight_batch, gates, weights=True, buffers=False, label_smoothing=smoothing)
            virtual_step(step.state.weight_optimizer, step.weight_lr)
            task = step.run(step.arch_batch(), gates, weights=True, arch=True, buffers=False)
            direction = [parameter.grad for parameter in parameters]
        if self.exact:
            product = _exact(step, gates, parameters, direction)
        else:
            product = _central_difference(step, gates, parameters, direction, self.eps)
        rate = step.weight_lr
        unrolled = {
            name: _added(gradient, None if (more := product[name]) is None else -rate * more)
            for name, gradient in task.gate_gradients.items()
        }
        return through_gates(step, gates, replace(task, gate_gradients=unrolled))


def through_gates(step: SearchStep, gates: Gates, task: Task) -> Estimate:
    """Carries the task's gradients from the gates to the logits and adds those of the regularizers."""
    names, logits = list(step.state.logits), list(step.state.logits.values())
    context, task_loss = step.context(gates), task.loss.clone().requires_grad_()
    loss = step.regularized(task_loss, context)
    factor, *direct = torch.autograd.grad(loss, [task_loss, *logits], retain_graph=True, allow_unused=True)
    reached = [
        (gate.weights, factor * gradient)
        for name, gate in gates.items()
        if gate.weights.requires_grad and (gradient := task.gate_gradients[name]) is not None
    ]
    weights, seeds = [weight for weight, _ in reached], [seed.to(weight) for weight, seed in reached]
    chained: Tensors = [None] * len(logits)
    if weights:
        chained = torch.autograd.grad(weights, logits, seeds, retain_graph=True, allow_unused=True)
    gradients = {name: _added(a, b) for name, a, b in zip(names, direct, chained, strict=True)}
    return Estimate(gradients, float(loss.detach()), task, context)


@torch.no_grad()
def virtual_step(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Moves weights as plain SGD with the optimizer's momentum and decay would; the optimizer's state stays.

    Raises:
        UsageError: The optimizer is not SGD.
    """
    if not isinstance(optimizer, torch.optim.SGD) or any(group["nesterov"] for group in optimizer.param_groups):
        kind = type(optimizer).__name__ if not isinstance(optimizer, torch.optim.SGD) else "Nesterov momentum"
        raise UsageError(f"the unrolled gradient is defined for plain SGD, not {kind}. Use SGD without Nesterov.")
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                direction = parameter.grad.add(parameter, alpha=group["weight_decay"])
                momentum = optimizer.state.get(parameter, {}).get("momentum_buffer")
                if momentum is not None:
                    direction.add_(momentum, alpha=group["momentum"])
                parameter.sub_(direction, alpha=rate)
                parameter.grad = None


def _central_difference(
    step: SearchStep, gates: Gates, parameters: Sequence[nn.Parameter], direction: Tensors, length: float
) -> dict[str, Tensor | None]:
    moved = [(p, u) for p, u in zip(parameters, direction, strict=True) if u is not None]
    norm = torch.stack([u.double().square().sum() for _, u in moved]).sum().sqrt()
    eps = length / float(norm) if norm > 0 else 0.0
    found, full = [], replace(step, compute=replace(step.compute, precision="fp32"))  # bf16 would round the step away
    for sign in (1, -1):
        with _kept(parameters):
            with torch.no_grad():
                for parameter, u in moved:
                    parameter.add_(u, alpha=sign * eps)
            task = full.run(step.weight_batch, gates, arch=True, label_smoothing=step.recipe.label_smoothing)
            found.append(task.gate_gradients)
    plus, minus = found
    return {
        name: None if a is None or (b := minus[name]) is None or not eps else (a - b) / (2 * eps)
        for name, a in plus.items()
    }


def _exact(
    step: SearchStep, gates: Gates, parameters: Sequence[nn.Parameter], direction: Tensors
) -> dict[str, Tensor | None]:
    leaves = detached(gates, step.compute.place, requires_grad=True)
    weights = [gate.weights for gate in leaves.values()]
    total: Tensors = [None] * len(weights)
    with frozen_batchnorm(step.state.supernet):
        for part in step.losses(step.weight_batch, leaves, label_smoothing=step.recipe.label_smoothing):
            gradients = torch.autograd.grad(part.loss, parameters, create_graph=True, allow_unused=True)
            pairs = zip(gradients, direction, strict=True)
            dots = [(g * u).sum() for g, u in pairs if g is not None and u is not None]
            found = torch.autograd.grad(torch.stack(dots).sum(), weights, allow_unused=True)
            total = [_added(a, b) for a, b in zip(total, found, strict=True)]
    means = (None if value is None else value.cpu() for value in averaged(total))
    return dict(zip(leaves, means, strict=True))


@contextmanager
def _kept(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Gives parameters their values back at the end, bit for bit, and takes their gradients away."""
    values = [parameter.detach().clone() for parameter in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, values, strict=True):
                parameter.copy_(value)
                parameter.grad = None


def _added(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return a if b is None else b
    return a + b
