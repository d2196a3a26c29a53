"""Terms of the architecture loss: what latency costs, and how sure the probabilities should be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hwnas.errors import UsageError
from hwnas.latency.budget import Budget
from hwnas.latency.model import LatencyModel
from hwnas.search.protocols import Context, Regularizer
from hwnas.search.schedules import Scalar, check_weight, value_at
from hwnas.space import OpSignature

MULTIPLIER = "latency_multiplier"

Of = Literal["probabilities", "sample"]
"""Latency expected under the probabilities, or latency under the gates that were drawn."""


@dataclass(frozen=True)
class AdaptiveLatency(Regularizer):
    """``loss + multiplier * g + penalty / 2 * g^2`` with ``g = E[latency] / max_ms - 1``.

    The augmented Lagrangian of the constraint ``E[latency] = max_ms``: after each architecture step
    ``multiplier <- multiplier + rate * g``. Above the limit it grows and makes latency dear; below it falls,
    and turns into a reward where the task loss alone would leave time unused. The quadratic term damps the
    swing around the target that the multiplier alone would keep up; without it this is dual ascent. No weight has
    to be tuned: ``g`` is relative, so neither the device nor the limit changes the scale. A limit that every network
    keeps binds nothing; only latency above it would then count.

    Args:
        rate: Step of the multiplier.
        penalty: Weight of the quadratic term.

    Source:
        Expected latency: FBNet, arXiv 1812.03443, section 3.2. Both sides of the target count, as in the
        absolute reward of TuNAS, arXiv 2008.06120, section 3.2. Augmented Lagrangian: Nocedal and Wright,
        Numerical Optimization, chapter 17.3.
        Differs: the published methods fix a weight; here it is found.
    """

    rate: Scalar
    penalty: Scalar = 0.0

    def __call__(self, loss: Tensor, context: Context) -> Tensor:
        """See ``Regularizer``."""
        drawn = (context.drawn_ms / context.budget.max_ms - 1).to(loss)
        if not context.budget.binds:
            drawn = drawn.clamp_min(0)
        multiplier = context.scalars.get(MULTIPLIER, 0.0)
        penalty = value_at(self.penalty, context.progress)
        # Value and gradient of penalty / 2 * g^2, with the size of g from all options, also if two were drawn.
        g = self._excess(context)
        return loss + multiplier * drawn + penalty * g * (drawn - g / 2)

    def update(self, context: Context) -> None:
        """One step of the multiplier."""
        step = value_at(self.rate, context.progress) * self._excess(context)
        multiplier = context.scalars.get(MULTIPLIER, 0.0) + step
        context.scalars[MULTIPLIER] = multiplier if context.budget.binds else max(0.0, multiplier)

    def _excess(self, context: Context) -> float:
        excess = float(context.expected_ms.detach()) / context.budget.max_ms - 1
        return excess if context.budget.binds else max(0.0, excess)


def hard_limit(arch_lr: float) -> AdaptiveLatency:
    """The term that holds a search to its limit, whatever the device and the limit.

    The multiplier moves ten times as fast as a logit: slower, and the limit is met late; faster, and the multiplier
    winds up before the logits can follow, and swings.

    Args:
        arch_lr: Learning rate of the logits.
    """
    return AdaptiveLatency(rate=10 * arch_lr, penalty=10.0)


@dataclass(frozen=True)
class AdditiveLatency(Regularizer):
    """``loss + weight * latency``, in milliseconds; with ``relative``, ``loss + weight * (latency / max_ms - 1)``.

    Args:
        weight: Per millisecond, or per limit.
        relative: Measure latency by the limit.
        of: Which latency.

    Source:
        ProxylessNAS, arXiv 1812.00332, section 3.3.1; relative: ``add#linear`` of its released code, weight 0.1.
        Differs: the released code's reference is a constant of the device; here it is the limit.
    """

    weight: Scalar
    relative: bool = False
    of: Of = "probabilities"

    def __post_init__(self) -> None:
        check_weight(self.weight, "latency")

    def __call__(self, loss: Tensor, context: Context) -> Tensor:
        """See ``Regularizer``."""
        ms = latency_ms(context, self.of).to(loss)
        cost = ms / context.budget.max_ms - 1 if self.relative else ms
        return loss + value_at(self.weight, context.progress) * cost


@dataclass(frozen=True)
class LogLatency(Regularizer):
    """``loss * scale * (log latency) ** power``; relative, the logarithm is divided by that of the limit.

    A negative loss, which is a reward, is divided instead, or else slow networks would be rewarded. The logarithm has
    to be positive, so the unit must make every latency larger than one.

    Args:
        scale: Factor.
        power: Exponent.
        relative: Divide by ``log max_ms``.
        power_inside: ``log(latency ** power)`` instead; the published notation allows both readings.
        units_per_ms: The unit of the logarithm; 1000 for microseconds.
        of: Which latency.

    Raises:
        UsageError: The unit is not positive; or, before the first step, the fastest network of the space takes no
            more than one unit.

    Source:
        FBNet, arXiv 1812.03443, equation 2: 0.2 and 0.6, latency of the sampled weights; the unit is not stated, its
        tables are in milliseconds. Relative: ``mul#log`` of ProxylessNAS's released code: 0.2 and 0.3, expected
        latency in milliseconds.
        Differs: published for positive losses only.
    """

    scale: Scalar = 0.2
    power: Scalar = 0.6
    relative: bool = False
    power_inside: bool = False
    units_per_ms: float = 1.0
    of: Of = "sample"

    def __post_init__(self) -> None:
        if not 0 < self.units_per_ms < math.inf:
            raise UsageError(f"units_per_ms is {self.units_per_ms:g}; expected more than 0. For microseconds use 1000.")

    def check(self, budget: Budget) -> None:
        """See ``Regularizer``."""
        self._check_logarithm(budget.reachable_ms[0] * self.units_per_ms)

    def __call__(self, loss: Tensor, context: Context) -> Tensor:
        """See ``Regularizer``."""
        scale, power = value_at(self.scale, context.progress), value_at(self.power, context.progress)
        latency = latency_ms(context, self.of).to(loss) * self.units_per_ms
        limit = context.budget.max_ms * self.units_per_ms
        self._check_logarithm(float(latency.detach()))  # gates that sum to less than one are faster than any network
        if self.power_inside:
            factor = scale * power * latency.log() / (power * math.log(limit) if self.relative else 1.0)
        else:
            factor = scale * (latency.log() / (math.log(limit) if self.relative else 1.0)) ** power
        return loss * factor if float(loss.detach()) >= 0 else loss / factor

    def _check_logarithm(self, latency: float) -> None:
        if not latency > 1:
            raise UsageError(
                f"networks of this space take down to {latency:.4g} units, whose logarithm is not positive: a loss "
                f"multiplied by it means nothing. Choose a smaller unit, such as microseconds: units_per_ms=1000 "
                f"(--set units_per_ms=1000); it is {self.units_per_ms:g} now."
            )


def check_unit(recipe: str, units_per_ms: float, *, used: bool) -> None:
    """Refuses a unit that a recipe would not use.

    Raises:
        UsageError: A unit was chosen, and no term takes the logarithm of latency.
    """
    if units_per_ms != 1.0 and not used:
        raise UsageError(
            f"recipe '{recipe}' has no logarithm of latency here, so units_per_ms={units_per_ms:g} has no effect. "
            "Leave it out, or ask for the published term (--set published=True)."
        )


@dataclass(frozen=True)
class HingeLatency(Regularizer):
    """``loss + weight * max(0, latency / max_ms - 1)``: only what exceeds the limit costs.

    Args:
        weight: Per limit.
        of: Which latency.
    """

    weight: Scalar
    of: Of = "probabilities"

    def __post_init__(self) -> None:
        check_weight(self.weight, "latency above the limit")

    def __call__(self, loss: Tensor, context: Context) -> Tensor:
        """See ``Regularizer``."""
        excess = latency_ms(context, self.of).to(loss) / context.budget.max_ms - 1
        return loss + value_at(self.weight, context.progress) * excess.clamp_min(0)


@dataclass(frozen=True)
class AbsoluteLatency(Regularizer):
    """``loss + weight * |latency / max_ms - 1|``; with minus an accuracy as the loss, the absolute reward.

    Args:
        weight: Per limit.
        of: Which latency.

    Source:
        TuNAS, arXiv 2008.06120, section 3.2: weight 0.10, latency of the drawn architecture.
    """

    weight: Scalar = 0.10
    of: Of = "sample"

    def __post_init__(self) -> None:
        check_weight(self.weight, "latency off the limit")

    def __call__(self, loss: Tensor, context: Context) -> Tensor:
        """See ``Regularizer``."""
        excess = latency_ms(context, self.of).to(loss) / context.budget.max_ms - 1
        return loss + value_at(self.weight, context.progress) * excess.abs()


@dataclass(frozen=True)
class PowerLatency(Regularizer):
    """``loss * (latency / max_ms) ** power``; of a negative loss, which is a reward, ``(max_ms / latency) ** power``.

    Args:
        power: Exponent.
        of: Which latency.

    Source:
        MnasNet, arXiv 1807.11626, equation 2 (0.07); ProxylessNAS, arXiv 1812.00332, released code (0.1).
    """

    power: Scalar = 0.1
    of: Of = "sample"

    def __call__(self, loss: Tensor, context: Context) -> Tensor:
        """See ``Regularizer``."""
        ratio = latency_ms(context, self.of).to(loss) / context.budget.max_ms
        power = value_at(self.power, context.progress)
        return loss * torch.where(loss.detach() < 0, ratio**-power, ratio**power)


@dataclass(frozen=True)
class Entropy(Regularizer):
    """``loss + weight * mean entropy`` of the choices' probabilities; a negative weight keeps them undecided.

    Args:
        weight: Per nat.

    Source:
        ENAS, arXiv 1802.03268, released code, rewards entropy in its controller; a growing weight decides instead.
    """

    weight: Scalar

    def __call__(self, loss: Tensor, context: Context) -> Tensor:
        """See ``Regularizer``."""
        return loss + value_at(self.weight, context.progress) * mean_entropy(context.probabilities).to(loss)


@dataclass(frozen=True)
class ExpectedCost(Regularizer):
    """``loss + weight * E[cost] / reference``: another cost of the operators, beside the latency that is limited.

    Nothing is held to the reference; raise the weight for cheaper networks.

    Args:
        cost: Of one operator, such as ``hwnas.space.macs`` or ``hwnas.space.parameters``.
        reference: The cost that counts one, such as 5e6 parameters.
        weight: Of the term.

    Raises:
        UsageError: The reference is not positive, or the weight is negative.

    Source:
        SNAS, arXiv 1812.09926, adds parameters, FLOPs and memory access in this way; as expectations, like latency in
        FBNet, arXiv 1812.03443, section 3.2.
    """

    cost: Callable[[OpSignature], float]
    reference: float
    weight: Scalar

    def __post_init__(self) -> None:
        if not 0 < self.reference < math.inf:
            raise UsageError(
                f"the reference of a cost is {self.reference:g}; expected more than 0, such as what a good network of "
                "the space costs."
            )
        check_weight(self.weight, "the expected cost")

    def __call__(self, loss: Tensor, context: Context) -> Tensor:
        """See ``Regularizer``."""
        model = LatencyModel.counting(context.budget.model.space, self.cost)
        drawn, expected = (context.mean_cost(model, weights) for weights in (context.drawn, context.probabilities))
        return loss + value_at(self.weight, context.progress) / self.reference * _sized(drawn, expected).to(loss)


def latency_ms(context: Context, of: Of) -> Tensor:
    """The latency that a term is about.

    Raises:
        UsageError: There is no such latency.
    """
    if of not in ("probabilities", "sample"):
        raise UsageError(f"there is no latency of {of!r}; expected 'probabilities' or 'sample'.")
    if of == "sample":
        return context.sampled_ms
    return _sized(context.drawn_ms, context.expected_ms)


def _sized(drawn: Tensor, expected: Tensor) -> Tensor:
    """The gradient of what moves the logits now, with the size of all options."""
    return drawn + (expected - drawn).detach()


def mean_entropy(probabilities: Mapping[str, Tensor]) -> Tensor:
    """Mean over the choices, in nats."""
    entropies = [-(p * p.clamp_min(1e-12).log()).sum() for p in probabilities.values()]
    return torch.stack(entropies).mean() if entropies else torch.zeros(())
