"""Peak memory of a search as it is found: of each kind of step, the first time it occurs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from hwnas.memory import Peak, measured_peak, mib
from hwnas.search.protocols import Batch, Context, Relaxation
from hwnas.search.step import SearchStep
from hwnas.supernet.gates import Gates

WEIGHTS, ARCH = "weight step", "architecture step"


@dataclass(eq=False)
class FirstPeaks:
    """Measures the first weight step and the first architecture step; a context around every step.

    Which of them was measured is known at its end: an architecture step has fetched images of its own, and moves the
    logits. Where one pass serves both it counts as a weight step.

    Args:
        device: Where the search runs.
        predicted: Kind of step -> bytes that were predicted; others are not measured.
        say: Told what was measured.

    Attributes:
        found: Kind of step -> bytes that were measured.
    """

    device: torch.device
    predicted: Mapping[str, int]
    say: Callable[[str], None]
    found: dict[str, int] = field(default_factory=dict, init=False)
    _open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack, init=False)
    _peak: Peak | None = field(default=None, init=False)
    _fetched: bool = field(default=False, init=False)

    def __enter__(self) -> Self:
        self.begin(WEIGHTS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def begin(self, kind: str) -> None:
        """A step begins here, of this kind or, where one is being measured already, of the other."""
        if kind in self.predicted and kind not in self.found and self._peak is None:
            self._peak = self._open.enter_context(measured_peak(self.device))

    def fetch(self, next_batch: Callable[[], Batch]) -> Batch:
        """Fetches the images of an architecture step, which do not count."""
        self.begin(ARCH)
        self._fetched = True
        with self._peak.paused() if self._peak else contextlib.nullcontext():
            return next_batch()

    def end(self, kind: str) -> None:
        """A step of this kind ends here."""
        peak = self._stop()
        if peak and kind not in self.found and (kind == WEIGHTS or self._fetched):
            self.found[kind] = peak.bytes
            self.say(
                f"measured in the first {kind}: {mib(peak.bytes)} MiB of activations, gradients and new state, "
                f"predicted {mib(self.predicted[kind])}"
            )
        self._fetched = False
        self.begin(WEIGHTS)

    def _stop(self) -> Peak | None:
        peak, self._peak = self._peak, None
        self._open.close()
        return peak


@dataclass(frozen=True)
class MeasuredStep(SearchStep):
    """A step that says where its weight step and its architecture step end.

    Args:
        peaks: Told.
    """

    peaks: FirstPeaks

    def draw(self, relaxation: Relaxation) -> Gates:
        """Gates of one pass; where the logits are to have a gradient, an architecture step begins."""
        if torch.is_grad_enabled():
            self.peaks.begin(ARCH)
        return super().draw(relaxation)

    def arch_batch(self) -> Batch:
        """The next images of the architecture half."""
        return self.peaks.fetch(super().arch_batch)

    def move_weights(self) -> None:
        """Ends a weight step."""
        super().move_weights()
        self.peaks.end(WEIGHTS)

    def move_logits(self, gradients: Mapping[str, Tensor | None], gates: Gates, context: Context) -> None:
        """Ends an architecture step."""
        super().move_logits(gradients, gates, context)
        self.peaks.end(ARCH)
