"""Logits -> gates: which options run in one forward pass, and how gradients reach the logits."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hwnas.errors import UsageError
from hwnas.search.protocols import Logits, Relaxation
from hwnas.search.schedules import Scalar, value_at
from hwnas.supernet.gates import Gate, Gates, one_hot


class _PerChoice(Relaxation):
    """A relaxation that treats every choice alike and on its own."""

    def __call__(self, logits: Logits, *, progress: float, generator: torch.Generator) -> dict[str, Gate]:
        """See ``Relaxation``."""
        return {name: self._gate(logit, progress, generator) for name, logit in logits.items()}

    @abstractmethod
    def _gate(self, logit: Tensor, progress: float, generator: torch.Generator) -> Gate: ...


@dataclass(frozen=True)
class Softmax(_PerChoice):
    """Every option runs, weighted by ``softmax(logits / tau)``; the weights are the probabilities.

    Args:
        tau: Temperature; may be a schedule.

    Source:
        DARTS, arXiv 1806.09055, equation 2; with a temperature ASAP, arXiv 1904.04123, equation 3.
    """

    tau: Scalar = 1.0

    def _gate(self, logit: Tensor, progress: float, generator: torch.Generator) -> Gate:
        return Gate(self.probabilities(logit, progress=progress), every_option(logit))

    def probabilities(self, logit: Tensor, *, progress: float) -> Tensor:
        """The weights, at the temperature of the moment."""
        return torch.softmax(logit / value_at(self.tau, progress), 0)


@dataclass(frozen=True)
class Sigmoid(_PerChoice):
    """Every option runs, weighted by the logistic function of its own logit; weights need not sum to one.

    As probabilities, which do, options have shares in proportion to their weights; where networks may do without all of
    them, of the largest weight, so that a single option has its weight as its probability and ``none`` has the rest.

    Source:
        FairDARTS, arXiv 1911.12126, equation 2. Probabilities of options that do not compete are ours.
    """

    def _gate(self, logit: Tensor, progress: float, generator: torch.Generator) -> Gate:
        weights = torch.sigmoid(logit)
        return Gate(weights, every_option(logit))

    def probabilities(self, logit: Tensor, *, progress: float) -> Tensor:
        """Odds against one another: the logistic weights divided by their sum."""
        weights = torch.sigmoid(logit)
        return weights / weights.sum()

    def kept(self, logit: Tensor, *, progress: float) -> Tensor:
        """The largest of the weights."""
        return torch.sigmoid(logit).amax()


@dataclass(frozen=True)
class Concrete(_PerChoice):
    """Every option runs, weighted by a Gumbel-softmax sample ``softmax((log p + G) / tau)``.

    Args:
        tau: Temperature; may be a schedule.

    Source:
        SNAS, arXiv 1812.09926, equation 3; FBNet, arXiv 1812.03443, equation 6.
    """

    tau: Scalar

    def _gate(self, logit: Tensor, progress: float, generator: torch.Generator) -> Gate:
        return Gate(gumbel_softmax(logit, value_at(self.tau, progress), generator), every_option(logit))


@dataclass(frozen=True)
class StraightThroughGumbel(_PerChoice):
    """One option runs; the gradient is that of the Gumbel-softmax sample it was the largest of.

    ``w = softmax((log p + G) / tau)``, ``i = argmax w``, gate ``= onehot(i) + w - stopgrad(w)``: forward
    exactly one-hot, one path in memory; ``dL/d logit_j = <g, o_i(x)> w_i (1[i=j] - w_j) / tau``.

    Args:
        tau: Temperature; may be a schedule.
        added: Add the weights of the other options, which are zero, to the output, so that they get a gradient too:
            ``S sum_{j != i} w_j (1[j=m] - w_m) / tau`` more for logit m, with ``S`` the sum of ``dL/dy``.

    Source:
        GDAS, arXiv 1910.04465, equations 3 to 6. Released code: gradient through the selected weight in the NASNet-like
        space, ``added`` in NAS-Bench-201.
    """

    tau: Scalar
    added: bool = False

    def _gate(self, logit: Tensor, progress: float, generator: torch.Generator) -> Gate:
        soft = gumbel_softmax(logit, value_at(self.tau, progress), generator)
        index = int(soft.argmax())
        return Gate(straight_through(soft, index), (index,), hard=True, added=self.added)


@dataclass(frozen=True)
class BinaryGates(_PerChoice):
    """One option runs, drawn with its probability; others are probed for their gate gradient in the backward pass.

    With ``all``, ``dL/d logit_i = sum_j <g, o_j(x)> p_j (1[i=j] - p_i)``. With ``two``, a pair is drawn in
    proportion to ``p`` without replacement, one of the two runs, the same gradient is formed from the pair's own
    probabilities, only the pair's logits move, and both are then shifted by one number so that the probability of
    every other option stays what it was.

    Args:
        paths: ``two`` or ``all``: options that the gradient compares.

    Source:
        ProxylessNAS, arXiv 1812.00332, section 3.2 and equation 4; modes ``two`` and ``full_v2`` of the released code.
        Differs: where the option that runs is a skip, the released code drops the gradient of that layer; here it
        is kept.
    """

    probes = True

    paths: Literal["two", "all"] = "all"

    def __post_init__(self) -> None:
        if self.paths not in ("two", "all"):
            raise UsageError(f"binary gates compare 'two' or 'all' paths; got {self.paths!r}.")

    def _gate(self, logit: Tensor, progress: float, generator: torch.Generator) -> Gate:
        p = torch.softmax(logit, 0)
        if self.paths == "all" or len(logit) < 3:  # of two options, two paths are all of them
            index = draw(p, generator)
            return Gate(straight_through(p, index), (index,), _others(index, logit), hard=True, probabilities=p)
        pair = torch.multinomial(p.detach().double(), 2, generator=generator)
        q = torch.zeros_like(p).index_copy(0, pair, torch.softmax(logit[pair], 0))
        index = draw(q, generator)
        other = int(pair.sum()) - index
        return Gate(straight_through(q, index), (index,), (other,), hard=True, probabilities=q)

    @torch.no_grad()
    def settle(self, logits: Logits, gates: Gates, before: dict[str, Tensor]) -> None:
        """Keeps the probability of every option outside the pair what it was."""
        for name, gate in gates.items() if self.paths == "two" else ():
            pair = [*gate.active, *gate.probed]
            if len(pair) == len(logits[name]):
                continue
            moved, old = logits[name][pair].double(), before[name][pair].double()
            logits[name].copy_(before[name])
            logits[name][pair] = (moved - moved.logsumexp(0) + old.logsumexp(0)).to(moved.dtype).to(logits[name])


@dataclass(frozen=True)
class Categorical(_PerChoice):
    """One option runs, drawn with its probability; no gradient but that of the draw's log-probability.

    Source:
        ENAS, arXiv 1802.03268; ProxylessNAS, arXiv 1812.00332, section 3.3.2.
    """

    differentiable = False
    draws = True

    def _gate(self, logit: Tensor, progress: float, generator: torch.Generator) -> Gate:
        log_p = torch.log_softmax(logit, 0)
        index = draw(log_p.exp(), generator)
        return Gate(one_hot(index, len(logit)).to(logit), (index,), hard=True, log_prob=log_p[index])


@dataclass(frozen=True)
class UniformPath(_PerChoice):
    """One option runs, every option equally often, whatever the logits say.

    Source:
        SPOS, arXiv 1904.00420, section 3.2 (plain uniform sampling).
    """

    differentiable = False

    def _gate(self, logit: Tensor, progress: float, generator: torch.Generator) -> Gate:
        uniform = torch.full_like(logit.detach(), 1 / len(logit))
        index = draw(uniform, generator)
        return Gate(one_hot(index, len(logit)).to(uniform), (index,), hard=True)

    def probabilities(self, logit: Tensor, *, progress: float) -> Tensor:
        """All alike."""
        return torch.full_like(logit, 1 / len(logit))


def gumbel(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise of the same shape, always finite.

    ``-log(E)`` with ``E`` exponential, kept away from zero; released codes draw again instead, where it is infinite.
    """
    exponential = torch.empty(like.shape, dtype=torch.float64).exponential_(generator=generator)
    return -exponential.clamp_min(1e-12).log().to(like)


def gumbel_softmax(logit: Tensor, tau: float, generator: torch.Generator) -> Tensor:
    """A sample of the concrete distribution."""
    return torch.softmax((torch.log_softmax(logit, 0) + gumbel(logit, generator)) / tau, 0)


def straight_through(soft: Tensor, index: int) -> Tensor:
    """Exactly one-hot in value, with the gradient of ``soft``."""
    return one_hot(index, len(soft)).to(soft) + (soft - soft.detach())


def draw(probabilities: Tensor, generator: torch.Generator) -> int:
    """The number of one option."""
    return int(torch.multinomial(probabilities.detach().double(), 1, generator=generator))


def every_option(logit: Tensor) -> tuple[int, ...]:
    """The numbers of all options."""
    return tuple(range(len(logit)))


def _others(index: int, logit: Tensor) -> tuple[int, ...]:
    return tuple(k for k in range(len(logit)) if k != index)
