"""Which parameters move on which batch, in which order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from hwnas.errors import UsageError
from hwnas.search.gradients import ArchGradient, Estimate, FirstOrder, through_gates
from hwnas.search.perturbations import Adversarial
from hwnas.search.protocols import Context, UpdateScheme
from hwnas.search.recipe import Recipe
from hwnas.search.step import SearchStep

BASELINE = "reward_baseline"


@dataclass(frozen=True)
class Alternating(UpdateScheme):
    """A weight step on a training batch, and an architecture step on a batch of the other half.

    Args:
        warm_up: Share of the search, from its start, in which only weights move.
        every: Weight steps per architecture step.
        arch_first: Move the logits before the weights of the same step.
        gradient: Of the logits.
        attack: Changes the gates of every weight step.

    Source:
        DARTS, arXiv 1806.09055, algorithm 1 (architecture first); GDAS, arXiv 1910.04465, released code (weights
        first); several weight steps per architecture step: ProxylessNAS, arXiv 1812.00332, released code.
    """

    warm_up: float = 0.0
    every: int = 1
    arch_first: bool = False
    gradient: ArchGradient = FirstOrder()
    attack: Adversarial | None = None

    def __post_init__(self) -> None:
        _check_rhythm(self.warm_up, self.every)

    def check(self, recipe: Recipe) -> None:
        """See ``UpdateScheme``."""
        _require_gradient(recipe, self)
        self.gradient.check(recipe)
        if self.attack:
            self.attack.check(recipe)

    def check_length(self, num_steps: int) -> None:
        """See ``UpdateScheme``."""
        _check_length(num_steps, self.warm_up, self.every)

    def __call__(self, step: SearchStep) -> dict[str, float]:
        """See ``UpdateScheme``."""
        due = _due(step.state.step, step.progress, self.warm_up, self.every)
        first = self._arch_step(step) if due and self.arch_first else {}
        figures = first | weight_step(step, self.attack)
        return figures | (self._arch_step(step) if due and not self.arch_first else {})

    def _arch_step(self, step: SearchStep) -> dict[str, float]:
        gates = step.draw(step.recipe.relaxation)
        estimate = self.gradient(step, gates)
        step.move_logits(estimate.gradients, gates, estimate.context)
        return _figures(estimate)


@dataclass(frozen=True)
class OneLevel(UpdateScheme):
    """Weights and logits move together, by one backward pass over one training batch.

    Source:
        SNAS, arXiv 1812.09926, section 2.2.
    """

    needs_arch_split: ClassVar[bool] = False

    def check(self, recipe: Recipe) -> None:
        """See ``UpdateScheme``."""
        _require_gradient(recipe, self)
        if recipe.weight_relaxation is not None:
            raise UsageError(
                f"recipe '{recipe.name}': one pass moves weights and logits, so weight_relaxation would have no "
                "effect. Leave it out."
            )

    def check_length(self, num_steps: int) -> None:
        """See ``UpdateScheme``."""
        _check_length(num_steps, warm_up=0.0, every=1)

    def __call__(self, step: SearchStep) -> dict[str, float]:
        """See ``UpdateScheme``."""
        gates, smoothing = step.draw(step.recipe.relaxation), step.recipe.label_smoothing
        task = step.run(step.weight_batch, gates, weights=True, arch=True, label_smoothing=smoothing)
        estimate = through_gates(step, gates, task)
        step.move_weights()
        step.move_logits(estimate.gradients, gates, estimate.context)
        return {"weight_loss": float(task.loss), "weight_accuracy": task.accuracy} | _figures(estimate)


@dataclass(frozen=True)
class Reinforce(UpdateScheme):
    """A weight step, and an architecture step along ``-(R - baseline) d log P / d alpha``.

    The reward of a drawn architecture is minus the regularized loss, with minus its accuracy as the task loss:
    a term of the latency of the draw itself acts through the reward, a differentiable one directly.

    Args:
        num_samples: Architectures per architecture step, all on the same images.
        decay: Share of the new mean reward in the moving baseline.
        include_current: Move the baseline before it is subtracted, as published; this only scales the expected
            gradient, by ``1 - decay / num_samples``.
        warm_up: Share of the search, from its start, in which only weights move.
        every: Weight steps per architecture step.

    Source:
        ProxylessNAS, arXiv 1812.00332, section 3.3.2 and released code (10 samples, decay 0.99); TuNAS, arXiv
        2008.06120, section 3 (decay 0.05).
    """

    num_samples: int = 10
    decay: float = 0.99
    include_current: bool = True
    warm_up: float = 0.0
    every: int = 1

    def __post_init__(self) -> None:
        _check_rhythm(self.warm_up, self.every)
        if self.num_samples < 1 or not 0 < self.decay <= 1:
            raise UsageError(
                f"REINFORCE draws at least 1 sample and moves its baseline by a share of more than 0 and at most 1; "
                f"got {self.num_samples} and {self.decay}."
            )

    def check(self, recipe: Recipe) -> None:
        """See ``UpdateScheme``."""
        if not recipe.relaxation.draws:
            raise UsageError(
                f"recipe '{recipe.name}': REINFORCE needs the log-probability of a draw, which "
                f"{type(recipe.relaxation).__name__} does not give. Use Categorical()."
            )

    def check_length(self, num_steps: int) -> None:
        """See ``UpdateScheme``."""
        _check_length(num_steps, self.warm_up, self.every)

    def __call__(self, step: SearchStep) -> dict[str, float]:
        """See ``UpdateScheme``."""
        figures = weight_step(step)
        if _due(step.state.step, step.progress, self.warm_up, self.every):
            figures |= self._arch_step(step)
        return figures

    def _arch_step(self, step: SearchStep) -> dict[str, float]:
        batch, losses, log_probs, accuracies = step.arch_batch(), [], [], []
        for _ in range(self.num_samples):
            gates = step.draw(step.recipe.relaxation)
            context = step.context(gates)
            accuracies.append(step.run(batch, gates).accuracy)
            losses.append(step.regularized(torch.tensor(-accuracies[-1], dtype=torch.float64), context))
            log_probs.append(sum(gate.log_prob for gate in gates.values() if gate.log_prob is not None))
        loss, log_prob = torch.stack(losses), torch.stack([torch.as_tensor(value) for value in log_probs])
        advantage = -loss.detach() - self._baseline(step, float(-loss.detach().mean()))
        surrogate = (loss - advantage * log_prob).mean()
        logits = step.state.logits
        found = torch.autograd.grad(surrogate, list(logits.values()), allow_unused=True)
        step.move_logits(dict(zip(logits, found, strict=True)), gates, context)
        return {
            "arch_loss": float(loss.detach().mean()),
            "arch_accuracy": sum(accuracies) / len(accuracies),
            **_latencies(context),
        }

    def _baseline(self, step: SearchStep, mean: float) -> float:
        scalars = step.state.scalars
        old = scalars.get(BASELINE, mean)
        scalars[BASELINE] = old + self.decay * (mean - old)
        return scalars[BASELINE] if self.include_current else old


@dataclass(frozen=True)
class WeightsOnly(UpdateScheme):
    """Only weights move: the supernet is trained first and searched afterwards.

    Source:
        SPOS, arXiv 1904.00420, section 3.
    """

    needs_arch_split: ClassVar[bool] = False
    moves_logits: ClassVar[bool] = False

    def check(self, recipe: Recipe) -> None:
        """See ``UpdateScheme``."""
        if recipe.regularizers or recipe.weight_relaxation is not None:
            raise UsageError(
                f"recipe '{recipe.name}': the logits never move, so regularizers and a weight_relaxation would have "
                "no effect. Leave them out."
            )
        if recipe.arch_lr is not None or not recipe.derivation.evaluates:
            raise UsageError(
                f"recipe '{recipe.name}': the logits never move, so arch_lr would have no effect, and only a "
                "derivation that evaluates networks can choose one. Use Evolution() or SampleAndScore(num_samples=50)."
            )

    def __call__(self, step: SearchStep) -> dict[str, float]:
        """See ``UpdateScheme``."""
        return weight_step(step)


def weight_step(step: SearchStep, attack: Adversarial | None = None) -> dict[str, float]:
    """Draws a path and moves its weights.

    Args:
        step: With the training batch.
        attack: Changes the gates first.
    """
    with torch.no_grad():
        gates = step.draw(step.recipe.of_weights)
    if attack:
        gates = attack(step, gates)
    task = step.run(step.weight_batch, gates, weights=True, label_smoothing=step.recipe.label_smoothing)
    step.move_weights()
    return {"weight_loss": float(task.loss), "weight_accuracy": task.accuracy}


def _check_rhythm(warm_up: float, every: int) -> None:
    if not 0 <= warm_up < 1 or every < 1:
        raise UsageError(
            f"the architecture moves after a warm-up of at least 0 and less than the whole search, every 1 or more "
            f"steps; got {warm_up} and {every}."
        )


def _due(step: int, progress: float, warm_up: float, every: int) -> bool:
    return progress >= warm_up and step % every == 0


def _check_length(num_steps: int, warm_up: float, every: int) -> None:
    if not any(_due(step, step / num_steps, warm_up, every) for step in range(num_steps)):
        raise UsageError(
            f"the architecture would never move in a search of {num_steps} steps: in the first {warm_up:.0%} of them "
            f"only weights move, and then it moves at steps 0, {every}, {2 * every}, ... Search for more --epochs, "
            "with a smaller --batch-size, or with more images."
        )


def _require_gradient(recipe: Recipe, scheme: UpdateScheme) -> None:
    if not recipe.relaxation.differentiable:
        raise UsageError(
            f"recipe '{recipe.name}': {type(recipe.relaxation).__name__} gives the logits no gradient, which "
            f"{type(scheme).__name__} needs. Use another relaxation, or Reinforce() with Categorical()."
        )


def _figures(estimate: Estimate) -> dict[str, float]:
    return {
        "arch_loss": estimate.loss,
        "arch_accuracy": estimate.task.accuracy,
        **_latencies(estimate.context),
    }


def _latencies(context: Context) -> dict[str, float]:
    return {
        "expected_ms": float(context.expected_ms.detach()),
        "sampled_ms": float(context.sampled_ms.detach()),
    }
