"""The supernet, the network of one architecture, and the way from one to the other."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from hwnas.errors import MissingChoiceError, UnsupportedSpaceError
from hwnas.ops.blocks import build_op
from hwnas.ops.wiring import Wired, feed
from hwnas.space import Architecture, LayerSpec, OpSignature, SearchSpace
from hwnas.supernet.gates import Gates
from hwnas.supernet.mixed_op import MixedOp, recomputed


class Supernet(nn.Module):
    """Every candidate of a space with shared weights; owns no architecture parameters.

    Args:
        space: Its layers depend on at most one choice each.

    Raises:
        UnsupportedSpaceError: A layer depends on several choices.
    """

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self.space = space
        self._edges = {name: (node.name, i) for node in space.nodes for i, name in enumerate(node.choices)}
        self.layers = nn.ModuleDict()
        for layer in space.layers:
            if len(layer.choices) > 1:
                raise UnsupportedSpaceError(
                    f"layer '{layer.name}' of space '{space.name}' depends on {len(layer.choices)} choices; "
                    "a supernet of separate candidates takes at most one a layer."
                )
            modules = [_searched(build_op(s), s, layer) for s in layer.signatures]
            self.layers[layer.name] = MixedOp(modules) if layer.choices else modules[0]

    def forward(self, x: Tensor, gates: Gates, *, checkpointed: bool = False) -> Tensor:
        """Logits of a batch under the given gates.

        Args:
            x: Images, ``(batch, channels, height, width)``.
            gates: One gate a choice; those named like nodes weigh what comes along their edges.
            checkpointed: Keep only what lies between layers; compute the rest again in the backward pass.

        Returns:
            Logits, ``(batch, num_classes)``.

        Raises:
            MissingChoiceError: A choice has no gate.
        """
        missing = [name for name in self.space.choice_names if name not in gates]
        if missing:
            raise MissingChoiceError(f"choice '{missing[0]}' has no gate; given: {', '.join(gates) or 'none'}.")
        gated = [self._gated(layer, gates, checkpointed) for layer in self.space.layers]
        return feed(gated, x, self.space.wiring)

    def _gated(self, layer: LayerSpec, gates: Gates, checkpointed: bool) -> Callable[[Tensor], Tensor]:
        module = self.layers[layer.name]
        if not layer.choices:
            return partial(recomputed, module, checkpointed=checkpointed)
        mixed: Callable[[Tensor], Tensor] = partial(module, gate=gates[layer.choices[0]], checkpointed=checkpointed)
        node, edge = self._edges.get(layer.choices[0], ("", 0))
        if node not in gates:
            return mixed
        weight = gates[node].weights[edge]
        return lambda x: weight * mixed(x)


def _searched(module: nn.Module, signature: OpSignature, layer: LayerSpec) -> nn.Module:
    """The operator as it is in a supernet."""
    if layer.norms_pools and signature.op in ("avg_pool", "max_pool"):
        module = nn.Sequential(module, nn.BatchNorm2d(signature.out_shape[0]))
    for norm in module.modules() if layer.plain else ():
        if isinstance(norm, nn.BatchNorm2d):
            norm.affine = False
            norm.register_parameter("weight", None)
            norm.register_parameter("bias", None)
    return module


class Network(Wired):
    """The network of one architecture: its operators in order, named like the layers of the space.

    Layers that it can do without are left out; see ``SearchSpace.network``.
    """

    def __init__(self, space: SearchSpace, architecture: Architecture) -> None:
        layers, wiring = space.network(architecture)
        super().__init__(wiring=wiring)
        self.space, self.architecture = space, architecture
        for name, signature in layers.items():
            self.add_module(name, build_op(signature))


def extract(supernet: Supernet, architecture: Architecture) -> Network:
    """A stand-alone copy of one path; computes bit for bit what the supernet does under one-hot gates.

    Raises:
        ArchitectureError: It belongs to another space.
    """
    space = supernet.space
    chosen = dict(zip(space.choice_names, space.indices(architecture), strict=True))
    network = Network(space, architecture)
    for layer in (layer for layer in space.layers if hasattr(network, layer.name)):
        module = supernet.layers[layer.name]
        if layer.choices:
            module = cast(MixedOp, module).options[space.row(layer, chosen)]
        setattr(network, layer.name, copy.deepcopy(module))
    return network.train(supernet.training)


@torch.no_grad()
def recalibrate_batchnorm(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replaces running statistics by the exact average over the given batches.

    A path of a supernet was normalised by the statistics of all paths; without this its accuracy is
    random.

    Args:
        network: Changed in place; its mode is kept.
        batches: Training images, each ``(batch, channels, height, width)``.

    Source:
        SPOS, arXiv 1904.00420, section 3.4.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta, training = [norm.momentum for norm in norms], network.training
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    network.train()
    for images in batches:
        network(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.train(training)
