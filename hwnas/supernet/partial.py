"""Edges of which a part of the channels is searched: the others pass by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from hwnas.errors import UsageError
from hwnas.ops.blocks import ChannelShuffle
from hwnas.space import OpSignature, SearchSpace
from hwnas.supernet.gates import Gate
from hwnas.supernet.mixed_op import MixedOp


class PartialOp(MixedOp):
    """The candidates of an edge, mixed by a gate on the first C/K channels; the others pass by.

    ``shuffle(cat(sum_k weight_k option_k(x[:, :C/K]), x[:, C/K:]))``. The shuffle with K groups mixes both kinds of
    channel, so that the next edge sees some of each. Where the edge strides, the others are max-pooled by 2x2.

    Args:
        options: One module an option, of C/K channels.
        num_parts: K.
        stride: Of the edge.

    Source:
        PC-DARTS, arXiv 1907.05737, section 3.2; released code: the first C/K channels instead of random ones, shuffled.
        Differs: odd heights and widths are rounded up, as other operators do.
    """

    def __init__(self, options: Sequence[nn.Module], num_parts: int, stride: int) -> None:
        super().__init__(options)
        self.bypass = Bypass(num_parts, stride)

    def forward(self, x: Tensor, gate: Gate, checkpointed: bool = False) -> Tensor:
        """See ``MixedOp``."""
        return self.bypass(x, partial(super().forward, gate=gate, checkpointed=checkpointed))  # type: ignore[no-any-return]

    def path(self, option: int) -> nn.Module:
        """The option, and what passes it by."""
        return _Path(self.options[option], self.bypass)


class Bypass(nn.Module):
    """Runs something on the first C/K channels; see ``PartialOp``.

    Args:
        num_parts: K.
        stride: 1 or 2.
    """

    def __init__(self, num_parts: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.shuffle = ChannelShuffle(num_parts)

    def forward(self, x: Tensor, searched: Callable[[Tensor], Tensor]) -> Tensor:
        """All channels, shuffled.

        Args:
            x: ``(batch, C, height, width)``.
            searched: What becomes of ``(batch, C/K, height, width)``.
        """
        first = x.shape[1] // self.shuffle.groups
        rest = x[:, first:]
        if self.stride > 1:
            rest = max_pool2d(rest, self.stride, ceil_mode=True)
        return self.shuffle(torch.cat([searched(x[:, :first]), rest], 1))  # type: ignore[no-any-return]


class _Path(nn.Module):
    """One candidate and what passes it by."""

    def __init__(self, option: nn.Module, bypass: Bypass) -> None:
        super().__init__()
        self.option, self.bypass = option, bypass

    def forward(self, x: Tensor) -> Tensor:
        return self.bypass(x, self.option)  # type: ignore[no-any-return]


def narrowed(signature: OpSignature, num_parts: int) -> OpSignature:
    """The operator on a part of its channels.

    Args:
        signature: Of an edge, as many channels in as out.
        num_parts: K, a divisor of the channels.
    """
    (c_in, *size), (c_out, *out_size) = signature.in_shape, signature.out_shape
    return replace(
        signature,
        in_shape=(c_in // num_parts, size[0], size[1]),
        out_shape=(c_out // num_parts, out_size[0], out_size[1]),
    )


def check_partial(space: SearchSpace, num_parts: int) -> None:
    """Refuses a space whose edges cannot be searched on a part of their channels.

    Raises:
        UsageError: It has no edges, several side by side, or channels that K does not divide.
    """
    if num_parts < 1:
        raise UsageError(f"partial_channels is {num_parts}; expected 1 for all channels, or 4 for a quarter of them.")
    edges = {layer.name: layer for layer in space.layers if layer.is_edge}
    if num_parts > 1 and not edges:
        raise UsageError(
            f"space '{space.name}' has no edges that end in a node, of which partial_channels={num_parts} would search "
            "a part. Use a space of cells, such as darts-cell, or partial_channels=1."
        )
    for layer in space.layers if num_parts > 1 else ():
        sources = [edges[name].inputs for name in layer.inputs if name in edges]
        if len(set(sources)) < len(sources):
            raise UsageError(
                f"space '{space.name}' has several layers from {sources[0][0]} to {layer.name}; with partial_channels="
                f"{num_parts} each would pass the same channels by. Use darts-cell, or partial_channels=1."
            )
    odd = [layer for layer in edges.values() if layer.signatures[0].in_shape[0] % num_parts]
    if odd:
        raise UsageError(
            f"partial_channels={num_parts} does not divide the {odd[0].signatures[0].in_shape[0]} channels of layer "
            f"'{odd[0].name}' of space '{space.name}'. Change one of them; channels may differ in a proxy."
        )
