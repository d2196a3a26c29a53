"""The loss of a training: cross-entropy, of mixed images if asked for, and the distance to a teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, one_hot

from hwnas.training.options import TrainingOptions

DISTILLATION_WEIGHT, TEMPERATURE = 0.5, 1.0
"""Source: DeiT, arXiv 2012.12877, released code."""


Outputs = Tensor | tuple[Tensor, Tensor]
"""Logits, or those of the network and those of a second head."""


@dataclass(frozen=True, eq=False)
class TrainingObjective:
    """Loss of one part of a batch.

    ``(1 - w) CE(logits, targets) + w T^2 KL(softmax(teacher / T) || softmax(logits / T))``, both averaged over
    the images; without a teacher the cross-entropy alone. A second head adds its own cross-entropy, weighted, to the
    first.

    Args:
        options: Hyper-parameters.
        num_classes: Of the data.
        seed: Decides how images are mixed, together with the step.
        teacher: In evaluation mode, or None.

    Source:
        Hinton et al., arXiv 1503.02531, section 2. Differs from the released code of DeiT, which divides the second
        term by the number of classes too.
    """

    options: TrainingOptions
    num_classes: int
    seed: int
    teacher: nn.Module | None = None

    def __call__(self, forward: Callable[[Tensor], Outputs], images: Tensor, labels: Tensor, step: int) -> Tensor:
        """The loss of some images at a step.

        Args:
            forward: The network; may return the logits of a second head too.
            images: ``(batch, 3, height, width)``.
            labels: ``(batch,)``, int64.
            step: Decides by how much images are mixed: the same in all parts of a batch and on all ranks.
        """
        targets = labels
        if self.options.mixup:
            share = mixing_share(self.options.mixup, self.seed, step)
            images, targets = mixed(images, share), mixed(one_hot(labels, self.num_classes).float(), share)
        found = forward(images)
        heads = [each.float() for each in (found if isinstance(found, tuple) else (found,))]
        losses = [cross_entropy(each, targets, label_smoothing=self.options.label_smoothing) for each in heads]
        logits, loss = heads[0], losses[0]
        if len(losses) > 1:
            loss = loss + self.options.auxiliary * losses[1]
        if self.teacher is None:
            return loss
        with torch.no_grad():
            guide = self.teacher(images).float()
        weight = _given(self.options.distillation_weight, DISTILLATION_WEIGHT)
        temperature = _given(self.options.temperature, TEMPERATURE)
        mine, theirs = (log_softmax(each / temperature, dim=1) for each in (logits, guide))
        distance = kl_div(mine, theirs, reduction="batchmean", log_target=True) * temperature**2
        return (1 - weight) * loss + weight * distance


def mixing_share(alpha: float, seed: int, step: int) -> float:
    """What every image keeps of itself at a step, drawn from Beta(alpha, alpha)."""
    return float(np.random.default_rng((seed, step)).beta(alpha, alpha))


def mixed(rows: Tensor, share: float) -> Tensor:
    """Every row mixed with the row before it; the first with the last.

    Source:
        mixup, arXiv 1710.09412, equation 1, with the pairs of ``torchvision.transforms.v2.MixUp``.
    """
    return rows * share + rows.roll(1, 0) * (1 - share)


def _given(value: float | None, default: float) -> float:
    return default if value is None else value
