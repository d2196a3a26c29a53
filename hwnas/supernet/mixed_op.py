"""One searched layer: runs the options that its gate names, and no other."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hwnas.supernet.gates import Gate

Context = contextlib.AbstractContextManager[None]
AnyContext = Callable[[], Context]


class MixedOp(nn.Module):
    """The candidates of one layer, mixed by a gate.

    Args:
        options: One module an option, in the order of the choice.
    """

    def __init__(self, options: Sequence[nn.Module]) -> None:
        super().__init__()
        self.options = nn.ModuleList(options)

    def forward(self, x: Tensor, gate: Gate, checkpointed: bool = False) -> Tensor:
        """Weighted sum of the active options.

        With a hard gate the one active option's output is returned as it is; the gate's gradient is
        formed from it (and from the probed options, one at a time, without a graph) in the backward pass.

        Args:
            x: Images' features, ``(batch, channels, height, width)``.
            gate: Which options run, with which weights.
            checkpointed: Keep no activations of an option; compute them again in the backward pass.
        """
        if not gate.hard:
            outputs = (gate.weights[k] * recomputed(self.options[k], x, checkpointed) for k in gate.active)
            return functools.reduce(torch.add, outputs)
        y = recomputed(self.options[gate.active[0]], x, checkpointed)
        if not (torch.is_grad_enabled() and gate.weights.requires_grad):
            return y
        probe = functools.partial(self._probe, autocast=autocast_now(x.device.type))
        return _HardGate.apply(y, x, gate.weights, gate, probe)  # type: ignore[no-any-return]

    def path(self, option: int) -> nn.Module:
        """What the layer does where one option runs."""
        return self.options[option]

    def _probe(self, option: int, x: Tensor, *, autocast: AnyContext) -> Tensor:
        module = self.options[option]
        with torch.no_grad(), frozen_batchnorm(module), autocast():
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
        gate: Gate,
        probe: Callable[[int, Tensor], Tensor],
    ) -> Tensor:
        ctx.save_for_backward(y, weights, *((x.detach(),) if gate.probed else ()))
        (ctx.active,), ctx.probed, ctx.added, ctx.probe = gate.active, gate.probed, gate.added, probe
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (grad,) = grads
        y, weights, *inputs = ctx.saved_tensors
        idle = grad.sum(dtype=weights.dtype) if ctx.added else 0.0
        gate = torch.zeros_like(weights) + idle
        gate[ctx.active] = (grad * y).sum(dtype=weights.dtype)
        for option in ctx.probed:
            gate[option] = (grad * ctx.probe(option, inputs[0])).sum(dtype=weights.dtype)
        if torch.is_grad_enabled():  # second derivatives: the weight is one, but not a constant
            grad = grad * weights[ctx.active]
        return grad, None, gate, None, None


def recomputed(module: nn.Module, x: Tensor, checkpointed: bool) -> Tensor:
    """The module's output; if checkpointed, activations inside it are computed again in the backward pass.

    Batch-norm buffers move once.
    """
    if not (checkpointed and torch.is_grad_enabled()):
        return module(x)  # type: ignore[no-any-return]
    if torch.compiler.is_compiling():  # a compiled graph changes its buffers once, whatever it computes again
        return checkpoint(module, x, use_reentrant=False)  # type: ignore[no-any-return]

    def contexts() -> tuple[Context, Context]:
        return contextlib.nullcontext(), kept_buffers(module)

    return checkpoint(module, x, use_reentrant=False, context_fn=contexts)  # type: ignore[no-any-return]


class kept_buffers(contextlib.AbstractContextManager[None]):
    """Whatever happens to a module's buffers inside the block is undone; may be entered again.

    Batch-norm that is told not to track statistics saves fewer tensors for the backward pass, which checkpointing
    refuses; so statistics are tracked as always, and then put back.

    Args:
        module: Whose buffers.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._before: list[Tensor] = []

    def __enter__(self) -> None:
        self._before = [buffer.clone() for buffer in self._module.buffers()]

    def __exit__(self, *error: object) -> None:
        with torch.no_grad():
            for buffer, value in zip(self._module.buffers(), self._before, strict=True):
                buffer.copy_(value)
        self._before = []


def autocast_now(kind: str) -> AnyContext:
    """Makes the autocast that is on now, for what runs later, in the backward pass.

    Args:
        kind: Type of the device.
    """
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return contextlib.nullcontext
    return functools.partial(torch.autocast, kind, torch.get_autocast_dtype(kind))


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
