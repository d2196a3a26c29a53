"""Operators that feed one another: a chain, or any graph whose nodes add up or join."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from hwnas.space import Joined, Wiring, chained


class Wired(nn.Sequential):
    """Modules run in order, each on the outputs that its wiring names, added up or joined.

    Args:
        *modules: As for ``nn.Sequential``.
        wiring: Per module, positions of those that feed it, -1 for the input; a chain if not given.
    """

    def __init__(self, *modules: Any, wiring: Wiring | None = None) -> None:
        super().__init__(*modules)
        self.wiring = wiring

    def forward(self, x: Tensor) -> Tensor:
        """Output of the last module."""
        return feed(self, x, self.wiring or chained(len(self)))


def feed(modules: Iterable[Callable[[Tensor], Tensor]], x: Tensor, wiring: Wiring) -> Tensor:
    """Runs modules as a wiring says; an output is let go after its last use."""
    last_use = {source: position for position, sources in enumerate(wiring) for source in sources}
    outputs = {-1: x}
    for position, (module, sources) in enumerate(zip(modules, wiring, strict=True)):
        parts = [outputs[source] for source in sources]
        whole = torch.cat(parts, 1) if isinstance(sources, Joined) else functools.reduce(torch.add, parts)
        del parts
        for source in sources:
            if last_use[source] == position:
                outputs.pop(source, None)
        outputs[position] = module(whole)
    return outputs[len(wiring) - 1]
