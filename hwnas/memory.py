"""Peak memory, measured."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Peak:
    """What ``measured_peak`` found.

    Attributes:
        bytes: Set when the block has ended; 0 before.
    """

    bytes = 0
    _storages: Storages | None = None

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What is allocated on the processor inside this block does not count, such as images that are read."""
        if self._storages is None:
            yield
            return
        self._storages.paused = True
        try:
            yield
        finally:
            self._storages.paused = False


@contextlib.contextmanager
def measured_peak(device: torch.device) -> Iterator[Peak]:
    """Measures the most bytes of tensors that live at one time inside the block, beyond those alive at its start.

    On CUDA this is the allocator's own count. The processor has none, so there every storage that an operator
    returns is followed from its creation, in forward and backward passes alike, to its end; views share one. That
    is exact for tensors that operators return. Not seen is what a kernel allocates and frees inside itself, such as
    the scratch memory and reordered weights of oneDNN, what ``torch.tensor`` makes of Python's numbers, and what a
    storage is resized to later. It takes tens of microseconds an operator, so measure one step, not all.

    Args:
        device: Where the tensors are; on CUDA no others are counted.
    """
    peak = Peak()
    if device.type == "cuda":
        start = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device) - start
    else:
        with Storages() as storages:
            peak._storages = storages
            yield peak
        peak.bytes = storages.rise_bytes


def mib(num_bytes: int) -> str:
    """A number of bytes as text, in units of 2 ** 20."""
    value = num_bytes / 2**20
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


class Storages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the storages of all tensors that operators return while it is active, in this thread.

    Operators of a backward pass over CPU or meta tensors run in the thread that called it, so they are seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live_bytes = self._start_bytes = self._peak_bytes = 0
        self.paused = False
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    @property
    def rise_bytes(self) -> int:
        """The peak above what lived at the start."""
        return self._peak_bytes - self._start_bytes

    def restart(self) -> None:
        """Makes the present the start."""
        self._start_bytes = self._peak_bytes = self.live_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = self.compute(func, args, kwargs or {})
        if returns_new(func) and not self.paused:  # what works in place, or returns a view, makes no storage
            for tensor in result if isinstance(result, list | tuple) else (result,):
                if isinstance(tensor, Tensor):
                    self._follow(tensor.untyped_storage())
        return result

    def compute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs one operator."""
        return func(*args, **kwargs)

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def freed(_: object) -> None:
            del self._known[key]
            self.live_bytes -= size

        self._known[key] = weakref.ref(storage, freed)
        self.live_bytes += size
        self._peak_bytes = max(self._peak_bytes, self.live_bytes)


@functools.cache
def returns_new(func: Any) -> bool:
    """Whether an operator's results are storages of their own."""
    return all(value.alias_info is None for value in func._schema.returns)
