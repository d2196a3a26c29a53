"""What can be chosen about the training of a fixed network, and what is published for the rest."""

from __future__ import annotations

from dataclasses import dataclass

from hwnas.data.augmentation import NUM_MAGNITUDES
from hwnas.errors import UnknownNameError, UsageError


@dataclass(frozen=True)
class Published:
    """Rate and weight decay that an optimizer is known to train mobile networks with.

    Args:
        lr: Peak learning rate for batches of ``batch_size``.
        batch_size: Images a step, over all devices.
        weight_decay: L2 for ``sgd`` and ``rmsprop``, decoupled for ``adamw``.
    """

    lr: float
    batch_size: int
    weight_decay: float


OPTIMIZERS = {
    "sgd": Published(0.05, 64, 4e-5),
    "rmsprop": Published(0.064, 1024, 1e-5),
    "adamw": Published(0.001, 1024, 0.05),
}
"""Optimizer -> its defaults.

Source:
    sgd: momentum 0.9, Nesterov, weight decay 4e-5: ProxylessNAS, arXiv 1812.00332, released code. Differs: the rate
    of 0.05 for 64 images is our own; the released code of Once-for-All, arXiv 1908.09791, uses 0.03 for 64.
    rmsprop: MobileNetV3 in torchvision references/classification/README.md, 8 x 128 images.
    adamw: SwinTransformer in the same file, 8 x 128 images.
"""


@dataclass(frozen=True)
class TrainingOptions:
    """How a fixed network is trained: the rate falls along half a cosine after a linear warm-up.

    Batch-norm and biases have no weight decay.

    Args:
        num_epochs: Passes over the training images.
        batch_size: Images a step, over all ranks.
        lr: Peak learning rate; the optimizer's published one, scaled linearly with the batch, if not given.
        optimizer: ``sgd`` (Nesterov), ``rmsprop`` or ``adamw``.
        momentum: Of ``sgd`` and ``rmsprop``; 0.9 if not given.
        weight_decay: Of convolutions and linear layers; the optimizer's published one if not given.
        warm_up: Share of the training in which the rate rises, from 0 to below 1.
        label_smoothing: Of the cross-entropy, from 0 to below 1.
        ema: Decay a step of the averaged weights, which are then evaluated and kept; 0 for none.
        mixup: Both parameters of the Beta distribution that images are mixed by; 0 for none.
        randaugment: Magnitude of two random operations on every image, 1 to 30; 0 for none.
        cutout: Side of a square that is cut out of every image, in pixels; 0 for none.
        drop_path: Probability in the last epoch to drop an edge that is added to others, from 0 to below 1; it rises
            from 0 with the epochs.
        auxiliary: Weight of the loss of a second classifier, which is thrown away afterwards; 0 for none.
        grad_clip: Largest norm of the gradient of all weights; 0 for none.
        teacher: Network of torchvision to learn from: ``NAME`` with its published weights, or ``NAME:FILE.pth``.
        distillation_weight: Share of the loss that compares with the teacher, between 0 and 1; 0.5 if not given.
        temperature: That both networks' logits are divided by for it; 1 if not given.

    Raises:
        UsageError: A value is out of its range, or has no effect beside the others.

    Source:
        Linear scaling and warm-up of 5 in 90 epochs: Goyal et al., arXiv 1706.02677. No decay of batch-norm and biases:
        He et al., arXiv 1812.01187, section 3.1. Label smoothing 0.1: ProxylessNAS, arXiv 1812.00332, released code.
        Distillation weight and temperature: DeiT, arXiv 2012.12877, released code. Cells: DARTS, arXiv 1806.09055,
        appendix A.2 and released code, trains with cutout 16, drop_path 0.2, auxiliary 0.4 and grad_clip 5.
    """

    num_epochs: int = 30
    batch_size: int = 64
    lr: float | None = None
    optimizer: str = "sgd"
    momentum: float | None = None
    weight_decay: float | None = None
    warm_up: float = 0.05
    label_smoothing: float = 0.1
    ema: float = 0.0
    mixup: float = 0.0
    randaugment: int = 0
    cutout: int = 0
    drop_path: float = 0.0
    auxiliary: float = 0.0
    grad_clip: float = 0.0
    teacher: str = ""
    distillation_weight: float | None = None
    temperature: float | None = None

    def __post_init__(self) -> None:
        if self.num_epochs < 1 or self.batch_size < 2:
            raise UsageError(
                f"training needs at least 1 epoch and batches of at least 2; got {self.num_epochs} and "
                f"{self.batch_size}. Raise --epochs or --batch-size."
            )
        if self.optimizer not in OPTIMIZERS:
            raise UnknownNameError.among("optimizer", self.optimizer, OPTIMIZERS)
        infinity = float("inf")
        _require("lr", self.lr, 0, infinity, "above 0", include_low=False)
        _require("momentum", self.momentum, 0, 1, "from 0 to below 1")
        _require("weight_decay", self.weight_decay, 0, infinity, "0 or more")
        for name in ("warm_up", "label_smoothing", "ema", "drop_path"):
            _require(name, getattr(self, name), 0, 1, "from 0 to below 1")
        for name in ("mixup", "auxiliary", "cutout", "grad_clip"):
            _require(name, getattr(self, name), 0, infinity, "0 (off) or more")
        _require("randaugment", self.randaugment, 0, NUM_MAGNITUDES, f"from 0 (off) to {NUM_MAGNITUDES - 1}")
        _require("distillation_weight", self.distillation_weight, 0, 1, "between 0 and 1", include_low=False)
        _require("temperature", self.temperature, 0, infinity, "above 0", include_low=False)
        self._check_effects()

    @property
    def peak_lr(self) -> float:
        """The learning rate after the warm-up."""
        published = OPTIMIZERS[self.optimizer]
        return published.lr * self.batch_size / published.batch_size if self.lr is None else self.lr

    @property
    def decay(self) -> float:
        """The weight decay."""
        return OPTIMIZERS[self.optimizer].weight_decay if self.weight_decay is None else self.weight_decay

    def _check_effects(self) -> None:
        if not self.teacher:
            for name in ("distillation_weight", "temperature"):
                if getattr(self, name) is not None:
                    raise UsageError(f"{name} {getattr(self, name)} has no effect without a teacher. Name one.")
        if self.optimizer == "adamw" and self.momentum is not None:
            raise UsageError(f"momentum {self.momentum} has no effect on adamw. Leave it out, or use sgd or rmsprop.")


def _require(name: str, value: float | None, low: float, high: float, range_: str, *, include_low: bool = True) -> None:
    """Checks a number that was given; ``high`` is excluded."""
    if value is not None and not (low <= value < high and (include_low or value > low)):
        raise UsageError(f"{name} {value} is out of range; expected {range_}.")
