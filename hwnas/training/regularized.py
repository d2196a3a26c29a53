"""What a network of cells is retrained with: edges that are dropped at random, and a second classifier."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from hwnas.errors import UsageError
from hwnas.ops.wiring import feed
from hwnas.space import Joined, Shape
from hwnas.supernet.mixed_op import recomputed
from hwnas.supernet.supernet import Network
from hwnas.training.options import TrainingOptions


class Regularized(nn.Module):
    """The network itself in evaluation; in training edges are dropped, and the logits of a second head come along.

    Args:
        network: Shared, not copied.
        options: Of them ``drop_path`` and ``auxiliary`` are used.

    Raises:
        UsageError: The network has no edges to drop, or no place for a second head.

    Source:
        DARTS, arXiv 1806.09055, appendix A.2 and released code; drop-path: Larsson et al., arXiv 1605.07648.
    """

    def __init__(self, network: Network, options: TrainingOptions) -> None:
        super().__init__()
        self.network = network
        self.checkpointed = False
        self.tap = self.head = None
        if options.auxiliary:
            names, space = list(dict(network.named_children())), network.space
            if space.auxiliary not in names:
                raise UsageError(f"space '{space.name}' has no place for a second head. Leave out --auxiliary.")
            self.tap = names.index(space.auxiliary)
            shape = space.network(network.architecture)[0][space.auxiliary].out_shape
            self.head = auxiliary_head(shape, space.num_classes)
        self.dropped = dropped_edges(network) if options.drop_path else ()
        if options.drop_path and not self.dropped:
            raise UsageError(f"no edges are added up in '{network.space.name}'. Leave out --drop-path.")

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Logits, in training those of the second head too.

        Args:
            x: Images.
            kept: What edges are multiplied with, ``(dropped edges, batch, 1, 1, 1)``; nothing is dropped if not given.
        """
        if not self.training:
            return self.network(x)  # type: ignore[no-any-return]
        tapped: list[Tensor] = []
        layers = [partial(self._layer, position, kept, tapped) for position in range(len(self.network))]
        logits = feed(layers, x, self.network.wiring or ())
        return (logits, self.head(tapped[0])) if self.head else logits

    def _layer(self, position: int, kept: Tensor | None, tapped: list[Tensor], x: Tensor) -> Tensor:
        y = recomputed(self.network[position], x, self.checkpointed)
        if position == self.tap:
            tapped.append(y)
        if kept is not None and position in self.dropped:
            y = y * kept[self.dropped.index(position)].to(y.dtype)
        return y


def regularized(network: nn.Module, options: TrainingOptions, seed: int) -> nn.Module:
    """The network, with what the options add to it in training.

    Args:
        network: As it will be used.
        options: Hyper-parameters.
        seed: Decides the second head's first weights.

    Raises:
        UsageError: The options have no effect on this network.
    """
    if not (options.auxiliary or options.drop_path):
        return network
    if not isinstance(network, Network):
        raise UsageError(
            f"drop_path and auxiliary are for networks of a space, not for a {type(network).__name__}. Leave them out."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Regularized(network, options)


def dropped_edges(network: Network) -> tuple[int, ...]:
    """Positions of the layers that are added to others and compute something.

    Source:
        DARTS, arXiv 1806.09055, released code.
        Differs: that drops every edge but an identity, also one that is the only one into its node, which stays here.
    """
    added = {i for some in network.wiring or () if len(some) > 1 and not isinstance(some, Joined) for i in some}
    return tuple(sorted(i for i in added if not isinstance(network[i], nn.Identity)))


def kept_edges(
    module: nn.Module, batch_size: int, probability: float, seed: tuple[int, ...], place: torch.device
) -> tuple[Tensor, ...]:
    """What one pass multiplies edges with, drawn for every image: 0, or ``1 / (1 - probability)``.

    Args:
        module: As ``regularized`` made it.
        batch_size: Images of the pass.
        probability: To drop an edge.
        seed: Decides the draws.
        place: Where they are needed.

    Returns:
        The further argument of the module; none where nothing is dropped.
    """
    if not isinstance(module, Regularized) or not module.dropped:
        return ()
    drawn = np.random.default_rng(seed).random((len(module.dropped), batch_size, 1, 1, 1)) >= probability
    return (torch.from_numpy(drawn / (1 - probability)).float().to(place),)


def auxiliary_head(shape: Shape, num_classes: int) -> nn.Sequential:
    """Classifies the output of a cell: pooled to 2x2, 128 channels, 768 features.

    Args:
        shape: Of that output.
        num_classes: Logits.

    Source:
        DARTS, arXiv 1806.09055, released code: on 8x8 pixels for CIFAR. Differs from its head for ImageNet, on 7x7, by
        the second batch-norm. Outputs of 5x5 or less are pooled evenly.
    """
    channels, size = shape[0], min(shape[1:])
    pool = nn.AvgPool2d(5, size - 5, count_include_pad=False) if size > 5 else nn.AdaptiveAvgPool2d(2)
    return nn.Sequential(
        OrderedDict(
            act=nn.ReLU(),
            pool=pool,
            conv=nn.Conv2d(channels, 128, 1, bias=False),
            norm=nn.BatchNorm2d(128),
            features=nn.Sequential(
                nn.ReLU(inplace=True), nn.Conv2d(128, 768, 2, bias=False), nn.BatchNorm2d(768), nn.ReLU(inplace=True)
            ),
            flatten=nn.Flatten(),
            linear=nn.Linear(768, num_classes),
        )
    )
