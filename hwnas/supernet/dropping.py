"""What a supernet drops at random while it is trained: features after skips, and edges."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import dropout


class SkipDropout(nn.Module):
    """Nothing, followed by dropout in training.

    Attributes:
        rate: Share of the features that are dropped now, at least 0 and less than 1.

    Source:
        P-DARTS, arXiv 1904.12760, section 3.3.2; released code: identities only, not skips that stride.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rate = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.rate) if self.training and self.rate else x


def drop_path(x: Tensor, rate: float) -> Tensor:
    """Drops all of some images, and scales the others by ``1 / (1 - rate)``.

    Args:
        x: What came along an edge, ``(batch, channels, height, width)``.
        rate: Probability, at least 0 and less than 1.

    Source:
        Drop-path: FractalNet, arXiv 1605.07648. Per image and by whole edges, of all candidates together: RobustDARTS,
        arXiv 1909.09656, released code.
    """
    if not rate:
        return x
    kept = x.new_empty((len(x), 1, 1, 1)).bernoulli_(1 - rate)
    return x * (kept / (1 - rate))
