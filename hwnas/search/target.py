"""Meeting a measured limit: derive, build, measure, and move the internal limit by how far the prediction was off."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from hwnas.errors import InfeasibleBudgetError
from hwnas.latency.budget import Budget
from hwnas.latency.device import Device
from hwnas.latency.measurement import said_slowdown
from hwnas.search.protocols import Derivation, Finished
from hwnas.space import Architecture
from hwnas.supernet.supernet import Network

MAX_ROUNDS = 4

FLOOR = 0.95
"""Share of the target to use at least, where the space allows it; a budget left unused buys nothing."""

AIM = 0.98
"""Share of the target that a moved limit aims at: measured again, a network is a percent slower or faster."""


@dataclass(frozen=True)
class DerivationRound:
    """One architecture held against the limit.

    Args:
        architecture: What was derived.
        limit_ms: The internal limit it was derived under.
        predicted_ms: Its predicted latency.
        measured_ms: Measured latency at the device's speed in the table's sweep; None where the device is not here.
        met: Whether it keeps the target, by measurement where there is one.
        slowdown: How many times slower than in the sweep the device was meanwhile; see ``Timed``.
    """

    architecture: Architecture
    limit_ms: float
    predicted_ms: float
    measured_ms: float | None
    met: bool
    slowdown: float = 1.0

    def __str__(self) -> str:
        measured = "not measured" if self.measured_ms is None else f"measured {self.measured_ms:.4g} ms"
        return (
            f"limit {self.limit_ms:.4g} ms: predicted {self.predicted_ms:.4g} ms, {measured}, "
            f"target {'met' if self.met else 'missed'}{said_slowdown(self.slowdown)}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "architecture": dict(self.architecture.options), "id": self.architecture.id}


def meet_target(
    derivation: Derivation,
    finished: Finished,
    budget: Budget,
    device: Device | None,
    *,
    num_rounds: int = MAX_ROUNDS,
    limit_ms: float | None = None,
) -> Iterator[DerivationRound]:
    """Derives under an internal limit and measures; moves the limit by what was observed and derives again.

    After a miss the next internal limit (see ``moved_limit_ms``) is tighter, and excludes the architecture that missed;
    after a network that leaves more than a twentieth of the target unused it is looser, once the table has proved too
    careful.

    Args:
        derivation: Finished search -> architectures.
        finished: What was searched.
        budget: The target.
        device: Measures, or None to trust the prediction.
        num_rounds: Rounds at most.
        limit_ms: First internal limit; the target if not given.

    Yields:
        Every round; see ``settled`` for which of them is the result.
    """
    low, high = budget.reachable_ms
    limit, seen = budget.max_ms if limit_ms is None else limit_ms, set[str]()
    for _ in range(num_rounds):
        if limit < low:
            return
        derived = next(derivation(finished, replace(budget, max_ms=limit)), None)
        if derived is None:
            raise InfeasibleBudgetError(f"no architecture was derived within {limit:.4g} ms.")
        if derived.id in seen:
            return
        seen.add(derived.id)
        found = held_against(budget, derived, device, limit_ms=limit)
        yield found
        if found.measured_ms is None or (found.met and (found.measured_ms >= FLOOR * budget.max_ms or limit >= high)):
            return
        limit = moved_limit_ms(budget, found.predicted_ms, found.measured_ms)


def held_against(
    budget: Budget, architecture: Architecture, device: Device | None, *, limit_ms: float
) -> DerivationRound:
    """One architecture against the target.

    Args:
        budget: The target.
        architecture: Built and measured with random weights.
        device: Measures, or None to trust the prediction.
        limit_ms: The internal limit that it was derived under.
    """
    predicted = budget.model.exact_ms(architecture)
    if device is None:
        return DerivationRound(architecture, limit_ms, predicted, None, predicted <= budget.max_ms)
    network = Network(budget.model.space, architecture).eval()
    timed = device.measure(network, budget.model.space, limit_ms=budget.max_ms)
    return DerivationRound(architecture, limit_ms, predicted, timed.ms, timed.ms <= budget.max_ms, timed.slowdown)


def moved_limit_ms(budget: Budget, predicted_ms: float, measured_ms: float) -> float:
    """The predicted latency of a network that would measure just within the target, by how far one was off."""
    return AIM * budget.max_ms * predicted_ms / measured_ms


def settled(rounds: Iterable[DerivationRound]) -> list[DerivationRound]:
    """The rounds with the result last: the slowest network that kept the target, or the last one if none did."""
    tried = list(rounds)
    met = [each for each in tried if each.met]
    if not met:
        return tried
    result = max(met, key=lambda each: each.measured_ms or each.predicted_ms)
    return [*(each for each in tried if each is not result), result]
