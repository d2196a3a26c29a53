"""Peak memory of a search, predicted by a rehearsal on tensors without data.

Whatever a relaxation, a scheme or a space does is predicted by doing it; see ``hwnas.rehearsal``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from hwnas.compute import Compute
from hwnas.distributed import alone, world_size
from hwnas.latency.budget import Budget
from hwnas.memory import Storages, mib
from hwnas.rehearsal import META, Planned, Shapes, cast_parameters, fill
from hwnas.search.protocols import Candidates, Context, Relaxation, SearchState
from hwnas.search.recipe import Recipe
from hwnas.search.state import initial_logits
from hwnas.search.step import SearchStep
from hwnas.space import Architecture, OpSignature, SearchSpace
from hwnas.supernet.gates import Gate, Gates
from hwnas.supernet.mixed_op import MixedOp


@dataclass(frozen=True)
class PredictedPeak:
    """The most memory that a search will need, beside images and the framework itself.

    Args:
        weights_bytes: Parameters and buffers of all candidates.
        optimizer_bytes: State of the weight optimizer once it has moved every candidate.
        weight_step_bytes: What a weight step needs beyond these at its peak, for activations and, in their place
            as the backward pass proceeds, gradients; 0 if there is no such step.
        arch_step_bytes: The same of an architecture step. Where one pass serves both it counts as a weight step.
        path: The options of most activations, which the steps were rehearsed with; no network of a space with nodes.
        stopper_bytes: What the recipe's stopper needs beyond weights and optimizer where it measures.
    """

    weights_bytes: int
    optimizer_bytes: int
    weight_step_bytes: int
    arch_step_bytes: int
    path: Architecture
    stopper_bytes: int = 0

    @property
    def step_bytes(self) -> int:
        """The larger of the two steps; what ``measured_peak`` around a step should find at most."""
        return max(self.weight_step_bytes, self.arch_step_bytes)

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + self.optimizer_bytes + max(self.step_bytes, self.stopper_bytes)

    def __str__(self) -> str:
        steps = {
            "a weight step": self.weight_step_bytes,
            "an architecture step": self.arch_step_bytes,
            "what the stopper measures": self.stopper_bytes,
        }
        (larger, most), *others = sorted(steps.items(), key=lambda item: -item[1])
        rest = ", ".join(f"{mib(size)} in {name}" for name, size in others if size)
        return (
            f"predicted peak {mib(self.total_bytes)} MiB: weights {mib(self.weights_bytes)}, optimizer "
            f"{mib(self.optimizer_bytes)}, activations and gradients {mib(most)} in {larger}"
            + (f" ({rest})" if rest else "")
        )


def predicted_peak(
    budget: Budget, recipe: Recipe, *, compute: Compute, candidates: Candidates | None = None
) -> PredictedPeak:
    """Predicts the memory of a search by rehearsing its largest steps without data.

    How many options run, and how many are only probed, is what the recipe's relaxation draws; they are replaced by
    those of most activations. Nothing of size is allocated and no random state moves. Not predicted are the
    workspaces of kernels, rounding and fragmentation of CUDA's allocator, and what ``torch.compile`` saves.

    Args:
        budget: Its model names the space.
        recipe: The method; its scheme runs once, as if past the warm-up, and its stopper measures once.
        compute: Device, number format and memory savings.
        candidates: What is searched; the candidates of the space if not given.
    """
    space = budget.model.space
    planned = Planned.of(compute)
    size = recipe.batch_size // world_size()
    with alone(), Shapes() as storages:
        state = _state(space, recipe, planned)
        weights_bytes = sum(tensor.untyped_storage().nbytes() for tensor in state.supernet.state_dict().values())
        before = storages.live_bytes
        fill(state.weight_optimizer)
        optimizer_bytes = storages.live_bytes - before
        if candidates is not None:
            state.candidates = candidates
        order = _by_activations(state, size // planned.accumulate, storages)
        images = torch.empty((size, *space.input_shape), device=META)
        batch = images, torch.empty(size, dtype=torch.int64, device=META)
        peaks = dict.fromkeys(("weights", "logits"), 0)
        storages.restart()
        step = _Rehearsal(state, recipe, budget, planned, 1.0, batch, lambda: batch, storages, order, peaks)
        recipe.scheme(step)
        stopper_bytes = _stopper_bytes(step)
    path = Architecture(space.name, tuple((c.name, c.options[order[c.name][0]]) for c in space.choices))
    return PredictedPeak(weights_bytes, optimizer_bytes, peaks["weights"], peaks["logits"], path, stopper_bytes)


def _state(space: SearchSpace, recipe: Recipe, planned: Compute) -> SearchState:
    with META:
        supernet = recipe.supernet(space)
    planned.move(supernet.train())
    if planned.precision == "bf16":
        cast_parameters(supernet)
    logits = initial_logits(space, recipe, torch.Generator())
    optimizers = recipe.weight_optimizer(supernet.parameters()), recipe.arch_optimizer(logits.values())
    return SearchState(supernet, logits, *optimizers, torch.Generator(), candidates=space.candidates)


def _stopper_bytes(step: _Rehearsal) -> int:
    """What a measurement needs, in single precision as that of an eigenvalue; of its products one is done."""
    if step.recipe.stopper is None:
        return 0
    full = replace(step.compute, precision="fp32")
    state = _state(step.budget.model.space, step.recipe, full)
    state.candidates = step.state.candidates
    step.storages.restart()
    step.recipe.stopper.measure(replace(step, state=state, compute=full))
    return step.storages.rise_bytes


def _by_activations(state: SearchState, batch_size: int, storages: Storages) -> dict[str, Sequence[int]]:
    """Choice name -> its candidates, the one that keeps most for a backward pass first."""
    kept: dict[OpSignature, int] = {}
    supernet = state.supernet
    totals = {choice.name: [0] * len(choice.options) for choice in supernet.space.choices}
    for layer in supernet.space.layers:
        for choice in layer.choices:
            options = cast(MixedOp, supernet.layers[layer.name]).options
            for row, (signature, option) in enumerate(zip(supernet.signatures(layer), options, strict=True)):
                if signature not in kept:
                    images = torch.empty((batch_size, *signature.in_shape), device=META, requires_grad=True)
                    before = storages.live_bytes
                    output = option(images)
                    gradients = sum(parameter.numel() * parameter.element_size() for parameter in option.parameters())
                    kept[signature] = storages.live_bytes - before + gradients
                    del output
                totals[choice][row] += kept[signature]
    return {
        name: sorted(state.candidates.get(name, range(len(sizes))), key=lambda k: -sizes[k])
        for name, sizes in totals.items()
    }


@dataclass(frozen=True)
class _Rehearsal(SearchStep):
    """A step whose draws are replaced by those of most activations, and which notes the peak of each half.

    Args:
        storages: Counts.
        order: Choice name -> its options, the one of most activations first.
        peaks: ``weights`` and ``logits`` -> bytes beyond those at the start of that half; filled.
    """

    storages: Storages
    order: Mapping[str, Sequence[int]]
    peaks: dict[str, int]

    def draw(self, relaxation: Relaxation) -> Gates:
        """As many active and probed options as were drawn."""
        return {name: self._largest(name, gate) for name, gate in super().draw(relaxation).items()}

    def move_weights(self) -> None:
        """Ends a weight step."""
        super().move_weights()
        self._end("weights")

    def move_logits(self, gradients: Mapping[str, Tensor | None], gates: Gates, context: Context) -> None:
        """Ends an architecture step."""
        super().move_logits(gradients, gates, context)
        self._end("logits")

    def _largest(self, name: str, gate: Gate) -> Gate:
        if name not in self.order:  # the edges of a node
            return gate
        order, count = self.order[name], len(gate.active)
        return replace(gate, active=tuple(order[:count]), probed=tuple(order[count : count + len(gate.probed)]))

    def _end(self, half: str) -> None:
        self.peaks[half] = max(self.peaks[half], self.storages.rise_bytes)
        self.storages.restart()
