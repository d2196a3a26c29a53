"""Multiply-adds and parameters of an operator, by formula.

MACs count convolutions and linear layers once per multiply-add, without batch-norm and bias; parameters
count trainable weights, batch-norm affine included.
"""

from __future__ import annotations

from collections.abc import Callable

from hwnas.errors import UnknownNameError
from hwnas.space.signature import OpSignature

Cost = tuple[int, int]
"""MACs, parameters."""


def macs(signature: OpSignature) -> int:
    """Multiply-adds of one image."""
    return _cost(signature)[0]


def parameters(signature: OpSignature) -> int:
    """Trainable parameters."""
    return _cost(signature)[1]


def has_cost(signature: OpSignature) -> bool:
    """Whether there is a formula; operators of an imported table may have none."""
    return signature.op in _COSTS


def expanded_channels(signature: OpSignature) -> int:
    """Hidden width of an inverted residual."""
    return signature.in_shape[0] * signature.attribute("e", 1)


def expands(signature: OpSignature) -> bool:
    """Whether an inverted residual starts with a 1x1 convolution."""
    return signature.attribute("e", 1) != 1 or ("expand", "always") in signature.attributes


def _cost(signature: OpSignature) -> Cost:
    if not has_cost(signature):
        raise UnknownNameError.among("operator", signature.op, _COSTS)
    return _COSTS[signature.op](signature)


def _conv(signature: OpSignature) -> Cost:
    (c_in, _, _), (c_out, height, width) = signature.in_shape, signature.out_shape
    weights = c_in * c_out * signature.attribute("k", 1) ** 2 // signature.attribute("g", 1)
    return weights * height * width, weights + 2 * c_out


def _mbconv(signature: OpSignature) -> Cost:
    (c_in, h_in, w_in), (c_out, h_out, w_out) = signature.in_shape, signature.out_shape
    hidden, groups = expanded_channels(signature), signature.attribute("g", 1)
    expand = c_in * hidden // groups if expands(signature) else 0
    depthwise = hidden * signature.attribute("k") ** 2
    project = hidden * c_out // groups
    norms = 2 * ((hidden if expand else 0) + hidden + c_out)
    return expand * h_in * w_in + (depthwise + project) * h_out * w_out, expand + depthwise + project + norms


def _skip(signature: OpSignature) -> Cost:
    return (0, 0) if signature.in_shape == signature.out_shape else _conv(signature)


def _none(signature: OpSignature) -> Cost:
    return 0, 0


def _resblock(signature: OpSignature) -> Cost:
    (c_in, _, _), (c_out, height, width) = signature.in_shape, signature.out_shape
    convolutions = c_in * c_out * 9 + c_out * c_out * 9 + c_in * c_out
    return convolutions * height * width, convolutions + 4 * c_out


def _separable(signature: OpSignature) -> Cost:
    """Depthwise and 1x1 convolutions; twice in ``sep_conv``."""
    (c_in, _, _), (c_out, height, width) = signature.in_shape, signature.out_shape
    widths = (c_in, c_out) if signature.op == "sep_conv" else (c_out,)
    weights = sum(c_in * signature.attribute("k") ** 2 + c_in * channels for channels in widths)
    return weights * height * width, weights + 2 * sum(widths)


def _classifier(signature: OpSignature) -> Cost:
    channels, classes = signature.in_shape[0], signature.out_shape[0]
    norm = 2 * channels if ("pre", "norm") in signature.attributes else 0
    return channels * classes, channels * classes + classes + norm


_COSTS: dict[str, Callable[[OpSignature], Cost]] = {
    "avg_pool": _none,
    "classifier": _classifier,
    "conv": _conv,
    "dil_conv": _separable,
    "factorized_reduce": _conv,
    "max_pool": _none,
    "mbconv": _mbconv,
    "noise": _none,
    "none": _none,
    "relu_conv": _conv,
    "resblock": _resblock,
    "sep_conv": _separable,
    "skip": _skip,
}
