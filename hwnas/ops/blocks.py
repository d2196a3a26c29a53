"""Operators as modules, built from a signature."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hwnas.errors import UnknownNameError
from hwnas.space import OpSignature
from hwnas.space.cost import expanded_channels


def build_op(signature: OpSignature) -> nn.Module:
    """The operator of that signature, randomly initialised.

    Convolutions are followed by batch-norm (momentum 0.1, epsilon 1e-3 as in ProxylessNAS) and ReLU6.

    Raises:
        UnknownNameError: No operator family of that name; lists them.
    """
    if signature.op not in OPERATORS:
        raise UnknownNameError.among("operator", signature.op, OPERATORS)
    return OPERATORS[signature.op](signature)


class Residual(nn.Module):
    """``x + body(x)``."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.body(x))


def conv_norm(
    c_in: int, c_out: int, kernel: int, *, stride: int = 1, groups: int = 1, activation: bool = True
) -> nn.Sequential:
    """Convolution with "same" padding, batch-norm and, unless switched off, ReLU6.

    Weights start as in He et al., arXiv 1502.01852, with the fan-out of one group.
    """
    convolution = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    nn.init.normal_(convolution.weight, std=math.sqrt(2 * groups / (kernel**2 * c_out)))
    parts: OrderedDict[str, nn.Module] = OrderedDict(conv=convolution, norm=nn.BatchNorm2d(c_out, eps=1e-3))
    if activation:
        parts["act"] = nn.ReLU6(inplace=True)
    return nn.Sequential(parts)


def _conv(signature: OpSignature) -> nn.Module:
    return conv_norm(
        signature.in_shape[0],
        signature.out_shape[0],
        signature.attribute("k", 1),
        stride=signature.stride,
        groups=signature.attribute("g", 1),
    )


def _mbconv(signature: OpSignature) -> nn.Module:
    c_in, c_out, hidden = signature.in_shape[0], signature.out_shape[0], expanded_channels(signature)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if hidden != c_in:
        parts["expand"] = conv_norm(c_in, hidden, 1)
    kernel = signature.attribute("k")
    parts["depthwise"] = conv_norm(hidden, hidden, kernel, stride=signature.stride, groups=hidden)
    parts["project"] = conv_norm(hidden, c_out, 1, activation=False)
    body = nn.Sequential(parts)
    return Residual(body) if signature.attribute("r") else body


def _skip(signature: OpSignature) -> nn.Module:
    return nn.Identity()


def _classifier(signature: OpSignature) -> nn.Module:
    linear = nn.Linear(signature.in_shape[0], signature.out_shape[0])
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), linear=linear))


OPERATORS: dict[str, Callable[[OpSignature], nn.Module]] = {
    "classifier": _classifier,
    "conv": _conv,
    "mbconv": _mbconv,
    "skip": _skip,
}
"""Operator families; a new one is a builder here and a cost formula in ``hwnas.space.cost``."""
