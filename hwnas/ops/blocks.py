"""Operators as modules, built from a signature."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hwnas.errors import UnknownNameError
from hwnas.ops.cells import FactorizedReduce, Noise, Zero, sep_conv, separable
from hwnas.space import OpSignature
from hwnas.space.cost import expanded_channels, expands


def build_op(signature: OpSignature) -> nn.Module:
    """The operator of that signature, randomly initialised.

    Convolutions are followed by batch-norm (momentum 0.1, epsilon 1e-3 as in ProxylessNAS) and ReLU6; those of cells
    follow a ReLU, and their batch-norm has the epsilon 1e-5, as in DARTS.

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
    c_in: int, c_out: int, kernel: int, *, stride: int = 1, groups: int = 1, activation: str = "relu6"
) -> nn.Sequential:
    """Convolution with "same" padding, batch-norm and an activation: ``relu6``, ``relu`` or ``none``.

    Weights start as in He et al., arXiv 1502.01852, with the fan-out of one group.
    """
    convolution = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    nn.init.normal_(convolution.weight, std=math.sqrt(2 * groups / (kernel**2 * c_out)))
    parts: OrderedDict[str, nn.Module] = OrderedDict(conv=convolution, norm=nn.BatchNorm2d(c_out, eps=1e-3))
    if activation != "none":
        parts["act"] = ACTIVATIONS[activation](inplace=True)
    return nn.Sequential(parts)


class ChannelShuffle(nn.Module):
    """Lets the channels of ``groups`` groups take turns, so that the next grouped convolution mixes them."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        _, channels, height, width = x.shape
        split = x.reshape(-1, self.groups, channels // self.groups, height, width)
        return split.transpose(1, 2).reshape(-1, channels, height, width)


class ReductionBlock(nn.Module):
    """Two ReLU-convolution-norm of 3x3, the first of stride 2, beside average pooling and a 1x1 convolution."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_relu_conv(c_in, c_out, 3, stride=2), _relu_conv(c_out, c_out, 3))
        self.shortcut = nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), nn.Conv2d(c_in, c_out, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(self.shortcut(x), self.body(x))


def _relu_conv(c_in: int, c_out: int, kernel: int, *, stride: int = 1) -> nn.Sequential:
    """ReLU first, on a copy: others read the same input; initialised as of torch, as in DARTS and NAS-Bench-201."""
    convolution = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(nn.ReLU(), convolution, nn.BatchNorm2d(c_out))


def _activation(signature: OpSignature) -> str:
    return str(dict(signature.attributes).get("act", "relu6"))


def _conv(signature: OpSignature) -> nn.Module:
    return conv_norm(
        signature.in_shape[0],
        signature.out_shape[0],
        signature.attribute("k", 1),
        stride=signature.stride,
        groups=signature.attribute("g", 1),
        activation=_activation(signature),
    )


def _mbconv(signature: OpSignature) -> nn.Module:
    c_in, c_out, hidden = signature.in_shape[0], signature.out_shape[0], expanded_channels(signature)
    groups, activation = signature.attribute("g", 1), _activation(signature)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if expands(signature):
        parts["expand"] = conv_norm(c_in, hidden, 1, groups=groups, activation=activation)
    if groups > 1:
        parts["shuffle"] = ChannelShuffle(groups)
    kernel, stride = signature.attribute("k"), signature.stride
    parts["depthwise"] = conv_norm(hidden, hidden, kernel, stride=stride, groups=hidden, activation=activation)
    parts["project"] = conv_norm(hidden, c_out, 1, groups=groups, activation="none")
    body = nn.Sequential(parts)
    return Residual(body) if signature.attribute("r") else body


def _skip(signature: OpSignature) -> nn.Module:
    """Nothing, or a strided 1x1 convolution where the shape changes."""
    if signature.in_shape == signature.out_shape:
        return nn.Identity()
    activation = str(dict(signature.attributes).get("act", "none"))
    return conv_norm(signature.in_shape[0], signature.out_shape[0], 1, stride=signature.stride, activation=activation)


def _classifier(signature: OpSignature) -> nn.Module:
    linear = nn.Linear(signature.in_shape[0], signature.out_shape[0])
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    norm = [("norm", nn.BatchNorm2d(signature.in_shape[0], eps=1e-3)), ("act", nn.ReLU(inplace=True))]
    first = norm if ("pre", "norm") in signature.attributes else []
    return nn.Sequential(OrderedDict(first, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), linear=linear))


ACTIVATIONS: dict[str, Callable[..., nn.Module]] = {"relu": nn.ReLU, "relu6": nn.ReLU6}

OPERATORS: dict[str, Callable[[OpSignature], nn.Module]] = {
    "avg_pool": lambda s: nn.AvgPool2d(s.attribute("k"), s.stride, s.attribute("k") // 2, count_include_pad=False),
    "classifier": _classifier,
    "conv": _conv,
    "dil_conv": lambda s: nn.Sequential(*separable(s, dilation=2)),
    "factorized_reduce": FactorizedReduce,
    "max_pool": lambda s: nn.MaxPool2d(s.attribute("k"), s.stride, s.attribute("k") // 2),
    "mbconv": _mbconv,
    "noise": lambda s: Noise(s.stride),
    "none": lambda s: Zero(s.stride),
    "relu_conv": lambda s: _relu_conv(s.in_shape[0], s.out_shape[0], s.attribute("k"), stride=s.stride),
    "resblock": lambda s: ReductionBlock(s.in_shape[0], s.out_shape[0]),
    "sep_conv": sep_conv,
    "skip": _skip,
}
"""Operator families; a new one is a builder here and a cost formula in ``hwnas.space.cost``."""
