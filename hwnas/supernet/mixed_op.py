"""One searched layer: runs the options that its gate names, and no other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hwnas.supernet.gates import Gate


class MixedOp(nn.Module):
    """The candidates of one layer, mixed by a gate.

    Args:
        options: One module an option, in the order of the choice.
    """

    def __init__(self, options: Sequence[nn.Module]) -> None:
        super().__init__()
        self.options = nn.ModuleList(options)

    def forward(self, x: Tensor, gate: Gate) -> Tensor:
        """Weighted sum of the active options.

        With a hard gate the one active option's output is returned as it is; the gate's gradient is
        formed from it (and from the probed options, one at a time, without a graph) in the backward pass.

        Args:
            x: Images' features, ``(batch, channels, height, width)``.
            gate: Which options run, with which weights.
        """
        if not gate.hard:
            return torch.stack([gate.weights[k] * self.options[k](x) for k in gate.active]).sum(0)
        (active,) = gate.active
        y: Tensor = self.options[active](x)
        if not (torch.is_grad_enabled() and gate.weights.requires_grad):
            return y
        return _HardGate.apply(y, x, gate.weights, active, gate.probed, self._probe)  # type: ignore[no-any-return]

    def _probe(self, option: int, x: Tensor) -> Tensor:
        module = self.options[option]
        with torch.no_grad(), frozen_batchnorm(module):
            return module(x)  # type: ignore[no-any-return]


class _HardGate(torch.autograd.Function):
    """Identity on the active output; the gradient of gate weight k is ``<grad_y, option_k(x)>``.

    The output is kept for the backward pass as the same storage that the next layer keeps as its input,
    so a hard gate adds no activation memory.

    Source:
        ProxylessNAS, arXiv 1812.00332, section 3.2 and equation 4, with the memory of one path.
    """

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        x: Tensor,
        weights: Tensor,
        active: int,
        probed: tuple[int, ...],
        probe: Callable[[int, Tensor], Tensor],
    ) -> Tensor:
        ctx.save_for_backward(y, *((x.detach(),) if probed else ()))
        ctx.active, ctx.probed, ctx.probe = active, probed, probe
        ctx.like = weights
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (grad,) = grads
        y, *inputs = ctx.saved_tensors
        gate = torch.zeros_like(ctx.like)
        gate[ctx.active] = (grad * y).sum()
        for option in ctx.probed:
            gate[option] = (grad * ctx.probe(option, inputs[0])).sum()
        return grad, None, gate, None, None, None


@contextlib.contextmanager
def frozen_batchnorm(module: nn.Module) -> Iterator[None]:
    """Batch-norm keeps normalising by batch statistics in training mode but updates no buffer."""
    changed = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    # With tracking off a layer in evaluation mode would still use its buffers only if it has them; the
    # flag alone decides about updates in training mode.
    for norm in changed:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in changed:
            norm.track_running_stats = True
