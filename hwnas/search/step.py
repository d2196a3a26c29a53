"""One step of a search: what an update scheme may draw, run, differentiate and move."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hwnas.compute import Compute
from hwnas.distributed import average_gradients, averaged, require_same
from hwnas.errors import NumericsError
from hwnas.latency.budget import Budget
from hwnas.search.candidates import Narrowed
from hwnas.search.protocols import Batch, Context, Relaxation, SearchState
from hwnas.search.recipe import Recipe
from hwnas.search.schedules import value_at
from hwnas.supernet.gates import Gates, detached
from hwnas.supernet.mixed_op import frozen_batchnorm


@dataclass(frozen=True)
class Task:
    """What one pass over a batch found.

    Args:
        loss: Mean cross-entropy, a scalar on the CPU without a graph.
        accuracy: Top-1, from 0 to 1.
        gate_gradients: Choice name -> ``dL / d weights`` of its gate, on the CPU; None where nothing depends on it.
    """

    loss: Tensor
    accuracy: float
    gate_gradients: Mapping[str, Tensor | None]


class Part(NamedTuple):
    """One part of a batch: its share of the mean loss, with a graph, and of the accuracy."""

    loss: Tensor
    accuracy: Tensor


@dataclass(frozen=True)
class SearchStep:
    """Everything an update scheme may use in one step.

    Args:
        state: What the step changes.
        recipe: The method.
        budget: Latency model and limit.
        compute: How networks are computed.
        progress: Of the search, from 0 to 1.
        weight_batch: The step's images of the weight half.
        next_arch_batch: Fetches images of the architecture half.
    """

    state: SearchState
    recipe: Recipe
    budget: Budget
    compute: Compute
    progress: float
    weight_batch: Batch
    next_arch_batch: Callable[[], Batch]

    def _narrowed(self, relaxation: Relaxation) -> Narrowed:
        return Narrowed.to(self.budget.model.space, relaxation, self.state.candidates)

    @property
    def weight_lr(self) -> float:
        """Learning rate of the weights now."""
        return value_at(self.recipe.weight_lr, self.progress)

    def arch_batch(self) -> Batch:
        """The next images of the architecture half."""
        batch = self.next_arch_batch()
        self.state.arch_batches += 1
        return batch

    def draw(self, relaxation: Relaxation) -> Gates:
        """Gates of one pass; the same on every rank.

        Raises:
            RankError: Another rank drew another path.
        """
        gates = self._narrowed(relaxation).gates(
            self.state.logits, progress=self.progress, generator=self.state.generator
        )
        drawn = tuple((gate.active, gate.probed, *gate.weights.tolist()) for gate in gates.values())
        require_same("paths", hash(drawn))
        return gates

    def losses(self, batch: Batch, gates: Gates, *, label_smoothing: float = 0.0) -> Iterator[Part]:
        """Runs the supernet over the parts of a batch, one after the other; their losses add up to the mean.

        Args:
            batch: Images and labels.
            gates: Already on the device.
            label_smoothing: Of the cross-entropy.
        """
        if self.recipe.drops:
            skips, paths = (value_at(rate, self.progress) for rate in (self.recipe.skip_dropout, self.recipe.drop_path))
            self.state.supernet.drop(skips=skips, paths=paths)
        for images, labels in self.compute.micro_batches(batch):
            # No reference to the part stays in this frame, or its graph would live on beside that of the next.
            yield self._part(images, labels, gates, label_smoothing, len(batch[1]))

    def _part(self, images: Tensor, labels: Tensor, gates: Gates, label_smoothing: float, size: int) -> Part:
        with self.compute.autocast():
            outputs = self.state.supernet(images, gates, checkpointed=self.compute.checkpoint_activations)
        if outputs.dtype == torch.bfloat16:
            outputs = outputs.float()
        loss = cross_entropy(outputs, labels, label_smoothing=label_smoothing) * (len(labels) / size)
        return Part(loss, (outputs.detach().argmax(1) == labels).sum() / size)

    def run(
        self,
        batch: Batch,
        gates: Gates,
        *,
        weights: bool = False,
        arch: bool = False,
        buffers: bool | None = None,
        label_smoothing: float = 0.0,
    ) -> Task:
        """Runs the supernet over a batch and averages over the ranks.

        Args:
            batch: Images and labels.
            gates: As drawn.
            weights: Whether to put gradients into the supernet's parameters; those off the path stay None.
            arch: Whether to find the gradients of the gates' weights.
            buffers: Whether batch-norm statistics move; only with the weights if not given.
            label_smoothing: Of the cross-entropy.
        """
        supernet, moving = self.state.supernet, weights if buffers is None else buffers
        cut = detached(gates, self.compute.place, requires_grad=arch)
        leaves = {name: gate.weights for name, gate in cut.items()}
        loss, accuracy = (torch.zeros((), device=self.compute.place) for _ in range(2))
        with (
            contextlib.nullcontext() if moving else frozen_batchnorm(supernet),
            torch.set_grad_enabled(weights or arch),
        ):
            for part in self.losses(batch, cut, label_smoothing=label_smoothing):
                if weights:
                    part.loss.backward()  # type: ignore[no-untyped-call]
                elif arch:
                    part.loss.backward(inputs=list(leaves.values()))  # type: ignore[no-untyped-call]
                loss, accuracy = loss + part.loss.detach(), accuracy + part.accuracy
                del part  # and with it its graph, before the next part runs
        if weights:
            average_gradients(supernet.parameters())
        found = averaged([loss, accuracy, *(leaf.grad for leaf in leaves.values())])
        gradients = [None if value is None else value.cpu() for value in found[2:]]
        mean_loss, mean_accuracy = (float(value) for value in found[:2] if value is not None)
        return Task(
            torch.tensor(mean_loss, dtype=torch.float64), mean_accuracy, dict(zip(leaves, gradients, strict=True))
        )

    def context(self, gates: Gates) -> Context:
        """What regularizers see, with a graph to the logits."""
        relaxed, logits = self._narrowed(self.recipe.relaxation), self.state.logits
        probabilities = relaxed.probabilities(logits, progress=self.progress)
        edges = {name: gate.weights for name, gate in gates.items() if name not in probabilities}
        own = {name: p for name in probabilities if (p := gates[name].probabilities) is not None}
        drawn = {**probabilities, **relaxed.along_edges(own, edges)} if own else probabilities
        weights = relaxed.along_edges({name: gates[name].weights for name in probabilities}, edges)
        searched = relaxed.narrow(logits)
        scalars = self.state.scalars
        return Context(self.budget, gates, probabilities, drawn, scalars, self.progress, weights, searched)

    def probabilities(self) -> dict[str, Tensor]:
        """Choice name -> probability of every option now, without a graph."""
        with torch.no_grad():
            return self._narrowed(self.recipe.relaxation).probabilities(self.state.logits, progress=self.progress)

    def within(self) -> dict[str, Tensor]:
        """The same without weights of edges: how options of one choice compare."""
        with torch.no_grad():
            return self._narrowed(self.recipe.relaxation).within(self.state.logits, progress=self.progress)

    def regularized(self, loss: Tensor, context: Context) -> Tensor:
        """The loss with every regularizer of the recipe."""
        for regularizer in self.recipe.regularizers:
            loss = regularizer(loss, context)
        return loss

    def move_weights(self) -> None:
        """One step of the weight optimizer along the gradients at hand; those of None move nothing."""
        optimizer = self.state.weight_optimizer
        for group in optimizer.param_groups:
            group["lr"] = self.weight_lr
        norm = nn.utils.clip_grad_norm_(self.state.supernet.parameters(), self.recipe.grad_clip)
        if not math.isfinite(float(norm)):
            raise NumericsError(f"the gradient of the weights is not finite at step {self.state.step}")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def move_logits(self, gradients: Mapping[str, Tensor | None], gates: Gates, context: Context) -> None:
        """One step of the architecture optimizer, then whatever relaxation and regularizers do after it."""
        logits, optimizer = self.state.logits, self.state.arch_optimizer
        before = {name: logit.detach().clone() for name, logit in logits.items()}
        for name, logit in logits.items():
            logit.grad = gradients.get(name)
        if self.recipe.arch_lr is not None:
            for group in optimizer.param_groups:
                group["lr"] = value_at(self.recipe.arch_lr, self.progress)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if not all(bool(torch.isfinite(logit).all()) for logit in logits.values()):
            raise NumericsError(f"the logits are not finite at step {self.state.step}")
        self._narrowed(self.recipe.relaxation).settle(logits, gates, before)
        for regularizer in self.recipe.regularizers:
            regularizer.update(context)
