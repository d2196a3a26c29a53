"""The Hessian, in the logits, of the loss on architecture images: its largest eigenvalue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from hwnas.distributed import averaged
from hwnas.search.protocols import Batch
from hwnas.search.step import SearchStep
from hwnas.supernet.gates import Gates
from hwnas.supernet.mixed_op import frozen_batchnorm

TOLERANCE = 1e-4
"""Of an eigenvector from products in single precision; the eigenvalue's own error is of the order of its square."""


def dominant_eigenvalue(step: SearchStep, batch: Batch) -> float:
    """Largest eigenvalue of ``d2 L_val / d alpha2`` over all logits at once, at the weights as they are.

    ``L_val`` is the loss on architecture images alone, without the recipe's terms, such as that of latency.
    By Lanczos' method from exact Hessian-vector products, in single precision; batch-norm normalises by the batch, as
    in an architecture step, and no buffer moves. A product needs about twice the memory of such a step.

    Args:
        step: Of the state; its relaxation draws the gates.
        batch: Images and labels.
    """
    full = replace(step, compute=replace(step.compute, precision="fp32"))
    logits = list(step.state.logits.values())
    gates = full.draw(step.recipe.relaxation)
    sizes, first = [len(logit) for logit in logits], torch.Generator().manual_seed(0)

    def product(vector: Tensor) -> Tensor:
        with step.compute.seeded(step.state.step):  # whatever is dropped is the same in every product
            found = _product(full, batch, gates, torch.split(vector, sizes))
        return torch.cat([value.double() for value in found])

    start = torch.randn(sum(sizes), dtype=torch.float64, generator=first)
    return largest_eigenvalue(product, start, tolerance=TOLERANCE)


def _product(step: SearchStep, batch: Batch, gates: Gates, vector: tuple[Tensor, ...]) -> list[Tensor]:
    logits = list(step.state.logits.values())
    placed = {name: replace(gate, weights=gate.weights.to(step.compute.place)) for name, gate in gates.items()}
    total = [torch.zeros_like(logit) for logit in logits]
    with frozen_batchnorm(step.state.supernet), torch.enable_grad():
        for part in step.losses(batch, placed):
            slopes = torch.autograd.grad(part.loss, logits, create_graph=True, allow_unused=True)
            pairs = zip(slopes, vector, strict=True)
            dots = [(slope * v.to(slope)).sum() for slope, v in pairs if slope is not None and slope.requires_grad]
            if not dots:  # linear in the logits
                continue
            found = torch.autograd.grad(torch.stack(dots).sum(), logits, retain_graph=True, allow_unused=True)
            total = [a if b is None else a + b for a, b in zip(total, found, strict=True)]
            del part, slopes, pairs, dots  # and with them their graph, before the next part runs
    return [value for value in averaged(total) if value is not None]


def largest_eigenvalue(product: Callable[[Tensor], Tensor], start: Tensor, *, tolerance: float = 1e-7) -> float:
    """Largest eigenvalue of a symmetric matrix that is known by its products with vectors.

    Args:
        product: Vector -> matrix times vector.
        start: ``(size,)``, not orthogonal to the eigenvector; a random one is not.
        tolerance: Residual of the eigenvector found, relative to the largest eigenvalue in size, at which the
            iteration ends; at the latest it ends after ``size`` products.

    Source:
        Lanczos, 1950, with every vector orthogonalised against all before it, twice.
    """
    basis, diagonal, beside = [start / start.norm()], list[float](), list[float]()
    while True:
        moved = product(basis[-1])
        diagonal.append(float(moved @ basis[-1]))
        known = torch.stack(basis)
        for _ in range(2):
            moved = moved - known.T @ (known @ moved)
        small = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
        for i, value in enumerate(beside):
            small[i, i + 1] = small[i + 1, i] = value
        values, vectors = torch.linalg.eigh(small)
        rest = float(moved.norm())
        if len(basis) == len(start) or rest * abs(float(vectors[-1, -1])) <= tolerance * float(values.abs().max()):
            return float(values[-1])
        basis.append(moved / rest)
        beside.append(rest)
