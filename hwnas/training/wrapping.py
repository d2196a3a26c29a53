"""The network as it runs in a training step: checkpointed, compiled, in step with other ranks."""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hwnas.compute import Compute
from hwnas.distributed import world_size
from hwnas.errors import UsageError
from hwnas.ops.wiring import Wired, feed
from hwnas.space import chained
from hwnas.supernet.mixed_op import recomputed
from hwnas.training.regularized import Regularized


def wrapped(network: nn.Module, compute: Compute) -> nn.Module:
    """A module that computes what the network computes, with its parameters, as the options say.

    Args:
        network: On its device.
        compute: Of it ``checkpoint_activations`` and ``compile`` are used here.

    Raises:
        UsageError: Activations are to be checkpointed, but the network is no sequence of layers.
    """
    module = network
    if isinstance(network, Regularized):
        network.checkpointed = compute.checkpoint_activations
    elif compute.checkpoint_activations:
        module = CheckpointedLayers(network)
    if compute.compile:
        module = cast(nn.Module, torch.compile(module))
    if world_size() > 1:
        module = DistributedDataParallel(module, device_ids=[compute.place] if compute.place.type == "cuda" else None)
    return module


class CheckpointedLayers(nn.Module):
    """Runs a network so that only what lies between layers is kept for the backward pass.

    Every layer is run again there. Batch-norm then normalises as before, but its running statistics take in a
    batch once only.

    Args:
        network: A sequence of layers, wired or not.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        if not isinstance(network, nn.Sequential):
            raise UsageError(
                f"activations of a {type(network).__name__} cannot be checkpointed: expected a sequence of layers. "
                "Leave out --checkpoint-activations."
            )
        self.network: nn.Sequential = network
        self._wiring = (network.wiring if isinstance(network, Wired) else None) or chained(len(network))

    def forward(self, x: Tensor) -> Tensor:
        """Output of the last layer."""
        return feed([partial(recomputed, layer, checkpointed=True) for layer in self.network], x, self._wiring)
