"""How far an exported file may compute otherwise than PyTorch in fp32, and how far it does."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Bounds:
    """What a precision must keep, over images that it was not calibrated on.

    Args:
        top1_agreement: Least share of images on which both name the same class.
        mean_cosine: Least cosine between the logits of an image, averaged over images.
        max_relative_difference: Largest difference of a logit, relative to the largest logit of all; None for any.
    """

    top1_agreement: float
    mean_cosine: float
    max_relative_difference: float | None = None


BOUNDS = {
    "fp32": Bounds(top1_agreement=0.999, mean_cosine=0.99999, max_relative_difference=1e-4),
    "tf32": Bounds(top1_agreement=0.99, mean_cosine=0.999, max_relative_difference=1e-2),
    "fp16": Bounds(top1_agreement=0.99, mean_cosine=0.999, max_relative_difference=1e-2),
    "bf16": Bounds(top1_agreement=0.9, mean_cosine=0.99, max_relative_difference=8e-2),
    "int8": Bounds(top1_agreement=0.9, mean_cosine=0.99),
}
"""Precision -> bounds.

* fp32: folding batch-norm and another order of summation round differently, by about 1e-6 of the largest logit; 1e-4
  leaves room for deep networks and none for a mistake.
* fp16: a number is off by up to 2^-11 = 5e-4; fifty roundings in a row, as independent errors, by seven times that.
* tf32 and bf16, with as many digits as fp16 and eight times fewer: of tables, whose device rounds a file in fp32.
* int8: a tensor is rounded to 256 steps over its range, by about one in a hundred of its usual size; fifty such
  roundings leave the logits 7 % off, which is a cosine of 0.998. 0.99 is an error of 14 %. A single logit may be far
  off where an activation leaves the range of the calibration images, so only cosine and agreement are bounded.

Agreement is lost where two classes are nearly equal. ``tiny-mbconv`` on digits, and ``nas-bench-macro`` on CIFAR-10
after so little training that half of the answers are wrong, differed by at most 5e-7 in fp32 and 8e-4 in fp16; in int8
the cosine was at least 0.9993, and the agreement 96 to 100 %.
"""


def compare(ours: np.ndarray, theirs: np.ndarray, labels: np.ndarray, *, precision: str) -> dict[str, Any]:
    """Differences, agreement and accuracy, and the bounds that they break.

    Args:
        ours: Logits of PyTorch in fp32, ``(images, classes)``.
        theirs: Logits of the exported file, the same shape.
        labels: The true classes, ``(images,)``.
        precision: Of the file, or what the device rounds it to.

    Returns:
        Figures with their ``bounds``; ``failures`` says which are broken.
    """
    difference = np.abs(ours - theirs)
    cosine = (ours * theirs).sum(1) / (np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1))
    figures = {
        "max_difference": float(difference.max()),
        "mean_difference": float(difference.mean()),
        "max_relative_difference": float(difference.max() / np.abs(ours).max()),
        "min_cosine": float(cosine.min()),
        "mean_cosine": float(cosine.mean()),
        "top1_agreement": float((ours.argmax(1) == theirs.argmax(1)).mean()),
        "accuracy_pytorch": float((ours.argmax(1) == labels).mean()),
        "accuracy_exported": float((theirs.argmax(1) == labels).mean()),
    }
    bounds = BOUNDS[precision]
    return {"num_images": len(ours), **figures, "bounds": asdict(bounds), "failures": _broken(figures, bounds)}


def _broken(figures: dict[str, float], bounds: Bounds) -> list[str]:
    """What breaks a bound, in words; a figure that is no number does."""
    off, cosine, agreement = (figures[each] for each in ("max_relative_difference", "mean_cosine", "top1_agreement"))
    allowed = math.inf if bounds.max_relative_difference is None else bounds.max_relative_difference
    kept = {
        f"outputs differ by {off:.2e} of the largest; at most {allowed:g} is allowed": off <= allowed,
        f"the mean cosine is {cosine:.6f}; at least {bounds.mean_cosine} is required": cosine >= bounds.mean_cosine,
        f"top-1 agrees on {agreement:.2%}; at least {bounds.top1_agreement:.1%} is required": (
            agreement >= bounds.top1_agreement
        ),
    }
    return [text for text, holds in kept.items() if not holds]
