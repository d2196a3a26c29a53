"""Steps on tensors without data, to know their memory before they are done.

A rehearsal runs a real step on PyTorch's ``meta`` device, where tensors have shapes and lifetimes but no numbers,
and adds up what lives.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hwnas.compute import Compute
from hwnas.memory import Storages, returns_new

META = torch.device("meta")


def fill(optimizer: torch.optim.Optimizer) -> None:
    """Gives every parameter the state that its first step makes."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


class Planned(Compute):
    """The same plan on tensors without data."""

    @classmethod
    def of(cls, compute: Compute) -> Planned:
        """Of that plan."""
        return cls(**{item.name: getattr(compute, item.name) for item in fields(Compute)})

    @property
    def place(self) -> torch.device:
        """Where there is no data."""
        return META

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Keeps parameters cast, as PyTorch's own does; it has none for this device, see ``cast_parameters``."""
        return parametrize.cached()


class _Bf16(nn.Module):
    """A parameter as ``torch.autocast`` hands it to an operator."""

    def forward(self, parameter: Tensor) -> Tensor:
        return parameter.bfloat16()


def cast_parameters(network: nn.Module) -> None:
    """Does what ``torch.autocast``, which knows no meta tensors, does to convolutions and linear layers."""
    for module in list(network.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):
            for name, _ in list(module.named_parameters(recurse=False)):
                parametrize.register_parametrization(module, name, _Bf16(), unsafe=True)
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].bfloat16(),))


class Shapes(Storages):  # type: ignore[no-untyped-call]
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
