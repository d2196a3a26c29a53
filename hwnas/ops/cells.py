"""Operators of the edges of a DARTS cell; each works on a copy, as others read the same input.

Source:
    DARTS, arXiv 1806.09055, section 3.1.1 and released code; the noise is that of RobustDARTS, arXiv 1909.09656.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from hwnas.space import OpSignature


class Zero(nn.Module):
    """Zeros of the output's shape, computed from the input."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return strided(x, self.stride) * 0.0


class Noise(nn.Module):
    """Standard Gaussian noise of the output's shape; in evaluation its mean, zero, so that results repeat.

    Source:
        RobustDARTS, arXiv 1909.09656, section 3, space S4. Differs: the released code draws in evaluation too.
    """

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        x = strided(x, self.stride)
        return torch.randn_like(x) if self.training else x * 0.0


class FactorizedReduce(nn.Module):
    """ReLU, two 1x1 convolutions of stride 2 on the image and on the image moved by one pixel, joined; norm."""

    def __init__(self, signature: OpSignature) -> None:
        super().__init__()
        c_in, c_out = signature.in_shape[0], signature.out_shape[0]
        self.act = nn.ReLU()
        self.first = nn.Conv2d(c_in, c_out // 2, 1, 2, bias=False)
        self.second = nn.Conv2d(c_in, c_out - c_out // 2, 1, 2, bias=False)
        self.norm = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(x)
        height, width = x.shape[2:]
        moved = pad(x, (0, width % 2, 0, height % 2))[:, :, 1:, 1:]
        return self.norm(torch.cat([self.first(x), self.second(moved)], 1))  # type: ignore[no-any-return]


def sep_conv(signature: OpSignature) -> nn.Sequential:
    """Two separable convolutions, of which the first strides."""
    channels, height, width = signature.in_shape[0], *signature.out_shape[1:]
    second = OpSignature("sep_conv", (channels, height, width), signature.out_shape, 1, signature.attributes)
    first = OpSignature("sep_conv", signature.in_shape, second.in_shape, signature.stride, signature.attributes)
    return nn.Sequential(*separable(first), *separable(second))


def separable(signature: OpSignature, *, dilation: int = 1) -> list[nn.Module]:
    """ReLU, depthwise and 1x1 convolution, norm."""
    c_in, c_out, kernel = signature.in_shape[0], signature.out_shape[0], signature.attribute("k")
    padding = dilation * (kernel // 2)
    return [
        nn.ReLU(),
        nn.Conv2d(c_in, c_in, kernel, signature.stride, padding, dilation, groups=c_in, bias=False),
        nn.Conv2d(c_in, c_out, 1, bias=False),
        nn.BatchNorm2d(c_out),
    ]


def strided(x: Tensor, stride: int) -> Tensor:
    """Every ``stride``-th pixel."""
    return x if stride == 1 else x[:, :, ::stride, ::stride]
