"""CutOut on batches, with a probability that may change during a search."""

from __future__ import annotations

import torch
from torch import Tensor

from hwnas.distributed import rank, world_size

SIZE = 16
"""Side of the square, in pixels."""


def cut_out(images: Tensor, probability: float, generator: torch.Generator, *, size: int = SIZE) -> Tensor:
    """Some of the images with a square of zeros, their mean, around a random pixel; what lies beyond is lost.

    Args:
        images: ``(batch, channels, height, width)``, normalised; this rank's equal share of a batch.
        probability: That an image is cut; with 0 nothing is drawn.
        generator: Decides all; one number is drawn, on every rank the same.
        size: Side of the square, in pixels.

    Source:
        DeVries and Taylor, arXiv 1708.04552, section 3; with a probability RobustDARTS, arXiv 1909.09656, released
        code.
    """
    if not probability:
        return images
    count, _, *sides = images.shape
    own = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=generator)))
    chance, *centres = torch.rand((3, count * world_size()), generator=own)[:, rank() * count :][:, :count]
    spans = []
    for length, centre in zip(sides, centres, strict=True):
        offset = torch.arange(length) - (length * centre).long()[:, None] + size // 2
        spans.append((offset >= 0) & (offset < size))
    hole = spans[0][:, :, None] & spans[1][:, None, :] & (chance < probability)[:, None, None]
    return images.masked_fill(hole[:, None], 0.0)
