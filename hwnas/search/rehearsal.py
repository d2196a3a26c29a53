"""Peak memory of a search, predicted by a rehearsal on tensors without data.

A rehearsal runs the real step on PyTorch's ``meta`` device, where tensors have shapes and lifetimes but no numbers,
and adds up what lives. So whatever a relaxation, a scheme or a space does is predicted by doing it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hwnas.compute import Compute
from hwnas.distributed import world_size
from hwnas.latency.budget import Budget
from hwnas.memory import Storages, mib, returns_new
from hwnas.search.protocols import Context, Relaxation, SearchState
from hwnas.search.recipe import Recipe
from hwnas.search.step import SearchStep
from hwnas.space import Architecture, OpSignature, SearchSpace
from hwnas.supernet.gates import Gate, Gates
from hwnas.supernet.mixed_op import MixedOp
from hwnas.supernet.supernet import Supernet

META = torch.device("meta")


@dataclass(frozen=True)
class PredictedPeak:
    """The most memory that a search will need, beside images and the framework itself.

    Args:
        weights_bytes: Parameters and buffers of all candidates.
        optimizer_bytes: State of the weight optimizer once it has moved every candidate.
        weight_step_bytes: What a weight step needs beyond these at its peak, for activations and, in their place
            as the backward pass proceeds, gradients; 0 if there is no such step.
        arch_step_bytes: The same of an architecture step. Where one pass serves both it counts as a weight step.
        path: The architecture of most activations, which the steps were rehearsed with.
    """

    weights_bytes: int
    optimizer_bytes: int
    weight_step_bytes: int
    arch_step_bytes: int
    path: Architecture

    @property
    def step_bytes(self) -> int:
        """The larger of the two steps; what ``measured_peak`` around a step should find at most."""
        return max(self.weight_step_bytes, self.arch_step_bytes)

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + self.optimizer_bytes + self.step_bytes

    def __str__(self) -> str:
        steps = {"a weight step": self.weight_step_bytes, "an architecture step": self.arch_step_bytes}
        (larger, most), (smaller, least) = sorted(steps.items(), key=lambda item: -item[1])
        return (
            f"predicted peak {mib(self.total_bytes)} MiB: weights {mib(self.weights_bytes)}, optimizer "
            f"{mib(self.optimizer_bytes)}, activations and gradients {mib(most)} in {larger}"
            + (f" ({mib(least)} in {smaller})" if least else "")
        )


def predicted_peak(budget: Budget, recipe: Recipe, *, compute: Compute) -> PredictedPeak:
    """Predicts the memory of a search by rehearsing its largest steps without data.

    How many options run, and how many are only probed, is what the recipe's relaxation draws; they are replaced by
    those of most activations. Nothing of size is allocated and no random state moves. Not predicted are the
    workspaces of kernels, rounding and fragmentation of CUDA's allocator, and what ``torch.compile`` saves.

    Args:
        budget: Its model names the space.
        recipe: The method; its scheme runs once, as if past the warm-up.
        compute: Device, number format and memory savings.
    """
    space = budget.model.space
    planned = _Planned(**{item.name: getattr(compute, item.name) for item in fields(Compute)})
    size = recipe.batch_size // world_size()
    with _Shapes() as storages:
        state = _state(space, recipe, planned)
        weights_bytes = sum(tensor.untyped_storage().nbytes() for tensor in state.supernet.state_dict().values())
        before = storages.live_bytes
        _fill(state.weight_optimizer)
        optimizer_bytes = storages.live_bytes - before
        order = _by_activations(state.supernet, size // planned.accumulate, storages)
        images = torch.empty((size, *space.input_shape), device=META)
        batch = images, torch.empty(size, dtype=torch.int64, device=META)
        peaks = dict.fromkeys(("weights", "logits"), 0)
        storages.restart()
        step = _Rehearsal(state, recipe, budget, planned, 1.0, batch, lambda: batch, storages, order, peaks)
        recipe.scheme(step)
    path = space.architecture([order[name][0] for name in space.choice_names])
    return PredictedPeak(weights_bytes, optimizer_bytes, peaks["weights"], peaks["logits"], path)


def _state(space: SearchSpace, recipe: Recipe, planned: Compute) -> SearchState:
    with META:
        supernet = Supernet(space)
    planned.move(supernet.train())
    if planned.precision == "bf16":
        _autocast(supernet)
    logits = {choice.name: nn.Parameter(torch.zeros(len(choice.options))) for choice in space.choices}
    optimizers = recipe.weight_optimizer(supernet.parameters()), recipe.arch_optimizer(logits.values())
    return SearchState(supernet, logits, *optimizers, torch.Generator())


def _fill(optimizer: torch.optim.Optimizer) -> None:
    """Gives every parameter the state that its first step makes."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _by_activations(supernet: Supernet, batch_size: int, storages: Storages) -> dict[str, Sequence[int]]:
    """Choice name -> its options, the one that keeps most for a backward pass first."""
    kept: dict[OpSignature, int] = {}
    totals = {choice.name: [0] * len(choice.options) for choice in supernet.space.choices}
    for layer in supernet.space.layers:
        for choice in layer.choices:
            options = cast(MixedOp, supernet.layers[layer.name]).options
            for row, (signature, option) in enumerate(zip(layer.signatures, options, strict=True)):
                if signature not in kept:
                    images = torch.empty((batch_size, *signature.in_shape), device=META, requires_grad=True)
                    before = storages.live_bytes
                    output = option(images)
                    gradients = sum(parameter.numel() * parameter.element_size() for parameter in option.parameters())
                    kept[signature] = storages.live_bytes - before + gradients
                    del output
                totals[choice][row] += kept[signature]
    return {name: sorted(range(len(sizes)), key=lambda k: -sizes[k]) for name, sizes in totals.items()}


@dataclass(frozen=True)
class _Rehearsal(SearchStep):
    """A step whose draws are replaced by those of most activations, and which notes the peak of each half.

    Args:
        storages: Counts.
        order: Choice name -> its options, the one of most activations first.
        peaks: ``weights`` and ``logits`` -> bytes beyond those at the start of that half; filled.
    """

    storages: Storages
    order: Mapping[str, Sequence[int]]
    peaks: dict[str, int]

    def draw(self, relaxation: Relaxation) -> Gates:
        """As many active and probed options as were drawn."""
        return {name: self._largest(name, gate) for name, gate in super().draw(relaxation).items()}

    def move_weights(self) -> None:
        """Ends a weight step."""
        super().move_weights()
        self._end("weights")

    def move_logits(self, gradients: Mapping[str, Tensor | None], gates: Gates, context: Context) -> None:
        """Ends an architecture step."""
        super().move_logits(gradients, gates, context)
        self._end("logits")

    def _largest(self, name: str, gate: Gate) -> Gate:
        order, count = self.order[name], len(gate.active)
        return replace(gate, active=tuple(order[:count]), probed=tuple(order[count : count + len(gate.probed)]))

    def _end(self, half: str) -> None:
        self.peaks[half] = max(self.peaks[half], self.storages.rise_bytes)
        self.storages.restart()


class _Planned(Compute):
    """The same plan on tensors without data."""

    @property
    def place(self) -> torch.device:
        """Where there is no data."""
        return META

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Keeps parameters cast, as PyTorch's own does; it has none for this device, see ``_autocast``."""
        return parametrize.cached()


class _Bf16(nn.Module):
    """A parameter as ``torch.autocast`` hands it to an operator."""

    def forward(self, parameter: Tensor) -> Tensor:
        return parameter.bfloat16()


def _autocast(network: nn.Module) -> None:
    """Does what ``torch.autocast``, which knows no meta tensors, does to convolutions and linear layers."""
    for module in list(network.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):
            for name, _ in list(module.named_parameters(recurse=False)):
                parametrize.register_parametrization(module, name, _Bf16(), unsafe=True)
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].bfloat16(),))


class _Shapes(Storages):  # type: ignore[no-untyped-call]
    """Computes shapes alone, and each once: PyTorch's rules for meta tensors take up to 20 ms an operator."""

    def __init__(self) -> None:
        super().__init__()
        self._results: dict[Any, Any] = {}

    def compute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the operator returns; a made-up value where numbers are asked for."""
        flat = list(_flat((*args, *kwargs.values())))
        if not any(isinstance(value, Tensor) and value.is_meta for value in flat):
            return func(*args, **kwargs)
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1
        if func is torch.ops.aten._to_copy.default and (kwargs.get("device") or META).type != "meta":
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype, device=kwargs["device"])
        if _in_place(func):
            return args[0]
        if not returns_new(func):
            return func(*args, **kwargs)
        key = (func, *kwargs, *(_Form.of(v) if isinstance(v, Tensor) else (type(v), v) for v in flat))
        if key not in self._results:
            self._results[key] = _each(func(*args, **kwargs), Tensor, _Form.of)
        return _each(self._results[key], _Form, _Form.tensor)


def _flat(values: Sequence[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield len(value)
            yield from _flat(value)
        else:
            yield value


def _each(result: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """The result of an operator, changed where it is of that kind, whether there is one or several."""
    if isinstance(result, kind):
        return change(result)
    return type(result)(_each(part, kind, change) for part in result) if isinstance(result, list | tuple) else result


class _Form(NamedTuple):
    """What a tensor without data is."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> _Form:
        """Of this tensor."""
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)

    def tensor(self) -> Tensor:
        """A new one."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)


@functools.cache
def _in_place(func: Any) -> bool:
    """Whether it changes its first argument and returns it."""
    arguments, returns = func._schema.arguments, func._schema.returns
    changed = arguments[0].alias_info if arguments and len(returns) == 1 else None
    return changed is not None and changed.is_write
