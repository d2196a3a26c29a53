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


def expanded_channels(signature: OpSignature) -> int:
    """Hidden width of an inverted residual."""
    return signature.in_shape[0] * signature.attribute("e", 1)


def _cost(signature: OpSignature) -> Cost:
    if signature.op not in _COSTS:
        raise UnknownNameError.among("operator", signature.op, _COSTS)
    return _COSTS[signature.op](signature)


def _conv(signature: OpSignature) -> Cost:
    (c_in, _, _), (c_out, height, width) = signature.in_shape, signature.out_shape
    weights = c_in * c_out * signature.attribute("k", 1) ** 2 // signature.attribute("g", 1)
    return weights * height * width, weights + 2 * c_out


def _mbconv(signature: OpSignature) -> Cost:
    (c_in, h_in, w_in), (c_out, h_out, w_out) = signature.in_shape, signature.out_shape
    hidden, groups = expanded_channels(signature), signature.attribute("g", 1)
    expand = c_in * hidden // groups if hidden != c_in or groups > 1 else 0
    depthwise = hidden * signature.attribute("k") ** 2
    project = hidden * c_out // groups
    norms = 2 * ((hidden if expand else 0) + hidden + c_out)
    return expand * h_in * w_in + (depthwise + project) * h_out * w_out, expand + depthwise + project + norms


def _skip(signature: OpSignature) -> Cost:
    return 0, 0


def _classifier(signature: OpSignature) -> Cost:
    weights = signature.in_shape[0] * signature.out_shape[0]
    return weights, weights + signature.out_shape[0]


_COSTS: dict[str, Callable[[OpSignature], Cost]] = {
    "classifier": _classifier,
    "conv": _conv,
    "mbconv": _mbconv,
    "skip": _skip,
}
