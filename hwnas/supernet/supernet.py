"""The supernet, the network of one architecture, and the way from one to the other."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from hwnas.errors import MissingChoiceError, UnsupportedSpaceError, UsageError
from hwnas.ops.blocks import build_op
from hwnas.ops.wiring import Wired, feed
from hwnas.space import Architecture, LayerSpec, OpSignature, SearchSpace
from hwnas.supernet.dropping import SkipDropout, drop_path
from hwnas.supernet.gates import Gates
from hwnas.supernet.mixed_op import MixedOp, recomputed
from hwnas.supernet.partial import PartialOp, check_partial, narrowed


class Supernet(nn.Module):
    """Every candidate of a space with shared weights; owns no architecture parameters.

    Args:
        space: Its layers depend on at most one choice each.
        partial_channels: Edges are searched on one of so many parts of their channels; see ``PartialOp``.
        drops_skips: Whether ``drop`` may drop features after skips.
        drops_paths: Whether ``drop`` may drop edges.

    Raises:
        UnsupportedSpaceError: A layer depends on several choices.
        UsageError: The space has no such edges or skips, or other channels.
    """

    def __init__(
        self, space: SearchSpace, *, partial_channels: int = 1, drops_skips: bool = False, drops_paths: bool = False
    ) -> None:
        super().__init__()
        check_partial(space, partial_channels)
        self.space, self.partial_channels, self._path_rate = space, partial_channels, 0.0
        self._edges = {name: (node.name, i) for node in space.nodes for i, name in enumerate(node.choices)}
        self.layers = nn.ModuleDict()
        for layer in space.layers:
            if len(layer.choices) > 1:
                raise UnsupportedSpaceError(
                    f"layer '{layer.name}' of space '{space.name}' depends on {len(layer.choices)} choices; "
                    "a supernet of separate candidates takes at most one a layer."
                )
            modules = [_searched(build_op(s), s, layer) for s in self.signatures(layer)]
            if drops_skips and layer.choices:
                modules = [SkipDropout() if isinstance(m, nn.Identity) else m for m in modules]
            self.layers[layer.name] = self._mixed(layer, modules) if layer.choices else modules[0]
        self._check_drops(drops_skips, drops_paths)

    def signatures(self, layer: LayerSpec) -> tuple[OpSignature, ...]:
        """The operators of a layer as they are here: those of edges may have a part of the channels."""
        parts = self.partial_channels if layer.is_edge else 1
        return tuple(narrowed(signature, parts) for signature in layer.signatures)

    def drop(self, *, skips: float, paths: float) -> None:
        """Says how much is dropped from now on, in training only.

        Args:
            skips: Share of the features after every skip.
            paths: Share of the images whose edge is dropped.
        """
        self._path_rate = paths
        for module in self.modules():
            if isinstance(module, SkipDropout):
                module.rate = skips

    def _check_drops(self, skips: bool, paths: bool) -> None:
        if skips and not any(isinstance(module, SkipDropout) for module in self.modules()):
            raise UsageError(f"space '{self.space.name}' has no skips that skip_dropout would act on. Leave it out.")
        if paths and not any(layer.is_edge for layer in self.space.layers):
            raise UsageError(
                f"space '{self.space.name}' has no edges that end in a node, which drop_path would drop. Leave it out, "
                "or use a space of cells, such as darts-cell."
            )

    def _mixed(self, layer: LayerSpec, modules: list[nn.Module]) -> MixedOp:
        if self.partial_channels == 1 or not layer.is_edge:
            return MixedOp(modules)
        return PartialOp(modules, self.partial_channels, layer.signatures[0].stride)

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
        rate = self._path_rate if self.training and layer.is_edge else 0.0
        node, edge = self._edges.get(layer.choices[0], ("", 0))
        if node not in gates:
            return lambda x: drop_path(mixed(x), rate)
        weight = gates[node].weights[edge]
        return lambda x: drop_path(weight * mixed(x), rate)


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

    Where edges are searched on a part of their channels, so they are here; those of ``none`` are left out with all
    that would pass them by, as if their weight were 0. Nothing is dropped.

    Raises:
        ArchitectureError: It belongs to another space.
    """
    space = supernet.space
    chosen = dict(zip(space.choice_names, space.indices(architecture), strict=True))
    network = Network(space, architecture)
    for layer in (layer for layer in space.layers if hasattr(network, layer.name)):
        module = supernet.layers[layer.name]
        if layer.choices:
            module = cast(MixedOp, module).path(space.row(layer, chosen))
        setattr(network, layer.name, copy.deepcopy(module))
    for copied in network.modules():
        if isinstance(copied, SkipDropout):
            copied.rate = 0.0
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
