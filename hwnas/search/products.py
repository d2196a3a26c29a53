"""Products of a vector with second derivatives of the training loss: with the Hessian, and with the mixed ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from hwnas.distributed import averaged
from hwnas.search.step import SearchStep
from hwnas.supernet.gates import Gates, detached
from hwnas.supernet.mixed_op import frozen_batchnorm

Tensors = Sequence[Tensor | None]


def hessian_product(step: SearchStep, gates: Gates, direction: Tensors, *, length: float, exact: bool) -> Tensors:
    """``H u``, the derivative of ``dL_tr / dw`` along ``u``; nothing of the state changes.

    Args:
        step: With the training batch.
        gates: The same for every pass.
        direction: ``u``, one tensor a weight; None where it does not move.
        length: Of the step of the central difference at ``w +- (length / ||u||) u``.
        exact: Differentiate ``<dL_tr / dw, u>`` instead.
    """
    parameters = list(step.state.supernet.parameters())
    if exact:
        return _exact(step, detached(gates, step.compute.place), parameters, direction)
    full = _in_full_precision(step)

    def gradients() -> Tensors:
        smoothing = step.recipe.label_smoothing
        full.run(step.weight_batch, gates, weights=True, buffers=False, label_smoothing=smoothing)
        return [parameter.grad for parameter in parameters]

    return _central_difference(step, gradients, direction, length)


def mixed_product(
    step: SearchStep, gates: Gates, direction: Tensors, *, length: float, exact: bool
) -> dict[str, Tensor | None]:
    """``M u``, the derivative of ``dL_tr / dg`` along ``u`` for the weights ``g`` of every gate.

    Args:
        step: With the training batch.
        gates: The same for every pass.
        direction: ``u``, one tensor a weight; None where it does not move.
        length: As in ``hessian_product``.
        exact: As in ``hessian_product``.
    """
    if exact:
        leaves = detached(gates, step.compute.place, requires_grad=True)
        found = _exact(step, leaves, [gate.weights for gate in leaves.values()], direction)
        return dict(zip(gates, (None if value is None else value.cpu() for value in found), strict=True))
    full = _in_full_precision(step)

    def gradients() -> Tensors:
        task = full.run(step.weight_batch, gates, arch=True, label_smoothing=step.recipe.label_smoothing)
        return [task.gate_gradients[name] for name in gates]

    return dict(zip(gates, _central_difference(step, gradients, direction, length), strict=True))


def _in_full_precision(step: SearchStep) -> SearchStep:
    return replace(step, compute=replace(step.compute, precision="fp32"))  # bf16 would round the difference away


def _central_difference(
    step: SearchStep, gradients: Callable[[], Tensors], direction: Tensors, length: float
) -> Tensors:
    parameters = list(step.state.supernet.parameters())
    moved = [(p, u) for p, u in zip(parameters, direction, strict=True) if u is not None]
    norm = float(torch.stack([u.double().square().sum() for _, u in moved]).sum().sqrt()) if moved else 0.0
    eps = length / norm if norm > 0 else 0.0
    found = []
    for sign in (1, -1):
        with kept(parameters), step.compute.seeded(step.state.step):  # both drop the same, where any is dropped
            with torch.no_grad():
                for parameter, u in moved:
                    parameter.add_(u, alpha=sign * eps)
            found.append(gradients())
    return [_slope(a, b, eps) for a, b in zip(*found, strict=True)]


def _slope(above: Tensor | None, below: Tensor | None, eps: float) -> Tensor | None:
    if above is None or below is None:
        return None
    return (above - below) / (2 * eps) if eps else torch.zeros_like(above)


def _exact(step: SearchStep, gates: Gates, inputs: Sequence[Tensor], direction: Tensors) -> Tensors:
    """Derivatives of ``<dL_tr / dw, direction>`` in the inputs."""
    parameters, total = list(step.state.supernet.parameters()), list[Tensor | None]([None] * len(inputs))
    with frozen_batchnorm(step.state.supernet):
        for part in step.losses(step.weight_batch, gates, label_smoothing=step.recipe.label_smoothing):
            gradients = torch.autograd.grad(part.loss, parameters, create_graph=True, allow_unused=True)
            pairs = zip(gradients, direction, strict=True)
            dots = [(g * u).sum() for g, u in pairs if g is not None and u is not None and g.requires_grad]
            if dots:
                found = torch.autograd.grad(torch.stack(dots).sum(), inputs, allow_unused=True)
            else:  # nothing moves, or the loss is linear
                found = tuple(torch.zeros_like(x) for x in inputs)
            total = [added(a, b) for a, b in zip(total, found, strict=True)]
    return averaged(total)


@contextmanager
def kept(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Gives parameters their values back at the end, bit for bit, and takes their gradients away."""
    values = [parameter.detach().clone() for parameter in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, values, strict=True):
                parameter.copy_(value)
                parameter.grad = None


def added(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The sum, or the one that is there."""
    if a is None or b is None:
        return a if b is None else b
    return a + b
