"""Estimates of the gradient of the architecture loss with respect to the logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from hwnas.errors import UsageError
from hwnas.search.products import Tensors, added, hessian_product, kept, mixed_product
from hwnas.search.protocols import Context
from hwnas.search.recipe import Recipe
from hwnas.search.schedules import Scalar, check_weight, value_at
from hwnas.search.step import SearchStep, Task
from hwnas.supernet.gates import Gates


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
        eps: Length of that step; as published. In a net of few weights it is a long one: there the gradient is off by
            up to 10 %, and by less than 0.01 % with 1e-4.

    Source:
        DARTS, arXiv 1806.09055, equations 7 and 8; momentum and decay in the virtual step as in its released code.
    """

    exact: bool = False
    eps: float = 0.01

    def check(self, recipe: Recipe) -> None:
        """Probed options have no second derivative."""
        _check_exact(self, recipe)

    def __call__(self, step: SearchStep, gates: Gates) -> Estimate:
        """See ``ArchGradient``."""
        parameters = list(step.state.supernet.parameters())
        with kept(parameters):
            smoothing = step.recipe.label_smoothing
            step.run(step.weight_batch, gates, weights=True, buffers=False, label_smoothing=smoothing)
            virtual_step(step.state.weight_optimizer, step.weight_lr)
            task = step.run(step.arch_batch(), gates, weights=True, arch=True, buffers=False)
            direction = [parameter.grad for parameter in parameters]
        product = mixed_product(step, gates, direction, length=self.eps, exact=self.exact)
        return through_gates(step, gates, _corrected(task, product, -step.weight_lr))


@dataclass(frozen=True)
class Amended(ArchGradient):
    """``dL_val / d alpha - eta M H v`` at the weights as they are, with ``v = dL_val / dw``.

    ``M = d2 L_tr / d alpha dw`` and ``H = d2 L_tr / dw2``; this stands for the exact implicit term ``-M H^-1 v``. It
    assumes weights near their optimum: let several weight steps go before every architecture step. The authors claim
    that it never points away from the exact term; that holds where H and M'M commute, and not in general: with
    ``H = diag(1, 100)``, ``M = (1, 1)``, ``v = (1, -1)`` and eta = 0.1 the terms are +9.9 and -0.99.

    Args:
        eta: Weight of the correction, which grows with the largest curvature; 0 is first order.
        exact: Form both products by differentiating ``<dL_tr / dw, u>``, instead of by central differences.
        eps: Length of their steps.

    Source:
        Bi et al., arXiv 1910.11831. There is no released code; eta = 0.1 is unconfirmed. The correction is neither
        clipped nor normalised.
    """

    eta: Scalar = 0.1
    exact: bool = False
    eps: float = 0.01

    def __post_init__(self) -> None:
        check_weight(self.eta, "the amending term")

    def check(self, recipe: Recipe) -> None:
        """Probed options have no second derivative."""
        _check_exact(self, recipe)

    def __call__(self, step: SearchStep, gates: Gates) -> Estimate:
        """See ``ArchGradient``."""
        parameters = list(step.state.supernet.parameters())
        with kept(parameters):
            task = step.run(step.arch_batch(), gates, weights=True, arch=True, buffers=False)
            direction = [parameter.grad for parameter in parameters]
        curved = hessian_product(step, gates, direction, length=self.eps, exact=self.exact)
        product = mixed_product(step, gates, curved, length=self.eps, exact=self.exact)
        return through_gates(step, gates, _corrected(task, product, -value_at(self.eta, step.progress)))


@dataclass(frozen=True)
class MixedLevel(ArchGradient):
    """``dL_tr / d alpha + weight dL_val / d alpha``, both at the weights as they are.

    Args:
        weight: Of the second term; 0 is the gradient of one level, large ones that of two.

    Source:
        MiLeNAS, arXiv 2003.12238; a weight of 1 is unconfirmed.
    """

    weight: Scalar = 1.0

    def __post_init__(self) -> None:
        check_weight(self.weight, "the gradient on architecture images")

    def __call__(self, step: SearchStep, gates: Gates) -> Estimate:
        """See ``ArchGradient``."""
        weight = value_at(self.weight, step.progress)
        train = step.run(step.weight_batch, gates, arch=True, label_smoothing=step.recipe.label_smoothing)
        task = step.run(step.arch_batch(), gates, arch=True)
        both = replace(train, loss=train.loss + weight * task.loss, accuracy=task.accuracy)
        return through_gates(step, gates, _corrected(both, task.gate_gradients, weight))


def _check_exact(gradient: Unrolled | Amended, recipe: Recipe) -> None:
    if gradient.exact and recipe.relaxation.probes:
        raise UsageError(
            f"recipe '{recipe.name}': {type(recipe.relaxation).__name__} runs its other options without a graph, "
            f"so that there is no exact second derivative. Use {type(gradient).__name__}(exact=False)."
        )


def _corrected(task: Task, product: Mapping[str, Tensor | None], factor: float) -> Task:
    """The task with a multiple of something added to the gradients of its gates."""
    gradients = {
        name: added(gradient, None if (more := product[name]) is None else factor * more)
        for name, gradient in task.gate_gradients.items()
    }
    return replace(task, gate_gradients=gradients)


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
    gradients = {name: added(a, b) for name, a, b in zip(names, direct, chained, strict=True)}
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
