"""States that survive a kill, and signals that wait for a good moment."""

from __future__ import annotations

import contextlib
import io
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from torch import nn

from hwnas.errors import HwnasError, RunError
from hwnas.files import write_atomic


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Writes tensors and plain values, atomically."""
    write_atomic(path, to_bytes(state))


def has_finite_weights(network: nn.Module) -> bool:
    """Whether no parameter is NaN or infinite."""
    return all(bool(parameter.isfinite().all()) for parameter in network.parameters())


def to_bytes(state: Mapping[str, Any]) -> bytes:
    """What a checkpoint file of this state holds."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getvalue()


def load_checkpoint(path: Path, *keys: str) -> dict[str, Any]:
    """Reads a checkpoint without running any code from it.

    Args:
        path: The file.
        keys: What has to be in it.

    Raises:
        RunError: The file is missing or damaged, or lacks something.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises anything from EOFError to UnpicklingError
        raise RunError(f"checkpoint {path} cannot be read ({error}). Delete it to start over.") from error
    if not isinstance(state, dict):
        raise RunError(f"checkpoint {path} holds a {type(state).__name__}, not a state. Delete it to start over.")
    lacking = [key for key in keys if key not in state]
    if lacking:
        raise RunError(f"checkpoint {path} lacks '{lacking[0]}'. Delete it to start over.")
    return state


@contextlib.contextmanager
def fitting_state(path: Path) -> Iterator[None]:
    """Around taking over a state; one of other names or shapes is an error about its file.

    Raises:
        RunError: The state does not fit.
    """
    try:
        yield
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, HwnasError):
            raise
        raise RunError(f"checkpoint {path} does not fit ({error!r:.500}). Delete it to start over.") from error


class DeferredSignals:
    """Turns Ctrl-C and SIGTERM into a flag that long work looks at between two steps."""

    def __init__(self) -> None:
        self._received: int | None = None

    def __enter__(self) -> Self:
        self._previous = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError):  # not in the main thread: whoever runs us handles signals
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @property
    def received(self) -> bool:
        """Whether a signal has arrived."""
        return self._received is not None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = number
