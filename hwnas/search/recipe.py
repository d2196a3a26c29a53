"""One method, as a composition of parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from hwnas.errors import UsageError
from hwnas.search.protocols import Derivation, Regularizer, Relaxation, UpdateScheme
from hwnas.search.schedules import Scalar

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Recipe:
    """One method: its parts, its optimizers and how long it runs.

    Args:
        name: As registered.
        relaxation: Logits -> gates.
        scheme: Order and gradients of the updates.
        regularizers: Applied to the architecture loss in order.
        derivation: Finished search -> architectures.
        weight_optimizer: Builds the optimizer of the supernet's weights.
        weight_lr: Its learning rate.
        arch_optimizer: Builds the optimizer of the logits; its learning rate is its own.
        num_epochs: Passes over the weight half of the training images.
        batch_size: Images a step, for weights and for architecture alike.
        label_smoothing: Of the weight loss only.
        grad_clip: Largest norm of the weights' gradient.
    """

    name: str
    relaxation: Relaxation
    scheme: UpdateScheme
    regularizers: tuple[Regularizer, ...]
    derivation: Derivation
    weight_optimizer: OptimizerFactory
    weight_lr: Scalar
    arch_optimizer: OptimizerFactory
    num_epochs: int
    batch_size: int = 64
    label_smoothing: float = 0.0
    grad_clip: float = 5.0

    def __post_init__(self) -> None:
        if self.num_epochs < 1 or self.batch_size < 2:
            raise UsageError(
                f"recipe '{self.name}' needs at least 1 epoch and batches of at least 2 images (batch-norm); "
                f"got {self.num_epochs} epochs and batches of {self.batch_size}."
            )
