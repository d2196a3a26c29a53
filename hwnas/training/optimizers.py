"""The optimizers of a training, and the average of the weights it passes through."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from hwnas.training.options import TrainingOptions

MOMENTUM = 0.9
RMS_DECAY, RMS_EPSILON = 0.9, 0.0316
"""Source: torchvision references/classification/train.py."""


def create_optimizer(network: nn.Module, options: TrainingOptions) -> torch.optim.Optimizer:
    """The optimizer that the options name; its rate is set before every step.

    Vectors, which are the parameters of batch-norm and the biases, are not decayed.
    """
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": options.decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    momentum = MOMENTUM if options.momentum is None else options.momentum
    if options.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=options.peak_lr, momentum=momentum, nesterov=momentum > 0)
    if options.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, lr=options.peak_lr, momentum=momentum, alpha=RMS_DECAY, eps=RMS_EPSILON)
    return torch.optim.AdamW(groups, lr=options.peak_lr)


class Average:
    """A second network that holds the exponential moving average of weights and batch-norm statistics.

    Early on the decay is smaller, so that the average forgets where it started:
    ``min(decay, (1 + step) / (10 + step))``.

    Args:
        network: What is averaged; copied.
        decay: A step, between 0 and 1.

    Source:
        Szegedy et al., arXiv 1512.00567, section 8, for evaluating averaged weights; the decay of early steps is that
        of TensorFlow's ``ExponentialMovingAverage``. Averaging the buffers too: torchvision references/classification.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Takes in the weights after a step, counted from 0."""
        average, current = list(self.network.state_dict().values()), list(network.state_dict().values())
        decay = min(self._decay, (1 + step) / (10 + step))
        move = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        move([*filter(_averaged, average)], [*filter(_averaged, current)], step)
        for mine, theirs in zip(average, current, strict=True):
            if not _averaged(mine):
                mine.copy_(theirs)


def create_average(network: nn.Module, options: TrainingOptions) -> Average | None:
    """The average that the options ask for."""
    return Average(network, options.ema) if options.ema else None


def _averaged(tensor: Tensor) -> bool:
    """Whether it is a number that can lie between two others; counters are copied."""
    return tensor.is_floating_point()
