"""Peak memory of a training, predicted by a rehearsal on tensors without data; see ``hwnas.rehearsal``."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from hwnas.compute import Compute
from hwnas.data import ImageData
from hwnas.distributed import alone, world_size
from hwnas.errors import HwnasError
from hwnas.memory import mib
from hwnas.rehearsal import META, Planned, Shapes, cast_parameters, fill
from hwnas.training.job import TrainingJob
from hwnas.training.objective import TrainingObjective
from hwnas.training.optimizers import create_average, create_optimizer
from hwnas.training.state import TrainingState
from hwnas.training.wrapping import wrapped

M = TypeVar("M", bound=nn.Module)
log = logging.getLogger("hwnas")


@dataclass(frozen=True)
class PredictedPeak:
    """The most memory that a training will need, beside images and the framework itself.

    Args:
        weights_bytes: Parameters and buffers of the network, of its average and of its teacher; with several ranks
            also the buckets in which gradients travel.
        optimizer_bytes: State of the optimizer.
        step_bytes: What a step needs beyond these at its peak, for activations and, in their place as the backward
            pass proceeds, gradients.
    """

    weights_bytes: int
    optimizer_bytes: int
    step_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + self.optimizer_bytes + self.step_bytes

    def __str__(self) -> str:
        return (
            f"predicted peak {mib(self.total_bytes)} MiB: weights {mib(self.weights_bytes)}, optimizer "
            f"{mib(self.optimizer_bytes)}, activations and gradients {mib(self.step_bytes)}"
        )


def predicted_peak(
    network: nn.Module, objective: TrainingObjective, data: ImageData, compute: Compute
) -> PredictedPeak | None:
    """Predicts the memory of a training by rehearsing one step without data.

    Nothing of size is allocated and no random state moves. Not predicted are the workspaces of kernels, rounding and
    fragmentation of CUDA's allocator, and what ``torch.compile`` saves.

    Args:
        network: In training mode; left as it is.
        objective: With the hyper-parameters, and the teacher, if any.
        data: Of it resolution and classes are used.
        compute: Device, number format and memory savings.

    Returns:
        None for a network of one's own that cannot run on tensors without data; a warning says why.
    """
    try:
        return _rehearsed(network, objective, data, compute)
    except HwnasError:
        raise
    except (RuntimeError, TypeError, ValueError) as error:  # of code that is not ours
        log.warning("the memory of this training cannot be predicted (%s).", error)
        return None


def total_bytes(peak: PredictedPeak | None) -> int | None:
    """All of it, if it is known."""
    return peak.total_bytes if peak else None


def _rehearsed(network: nn.Module, objective: TrainingObjective, data: ImageData, compute: Compute) -> PredictedPeak:
    options, planned, num_ranks = objective.options, replace(Planned.of(compute), compile=False), world_size()
    with alone(), Shapes() as storages:
        teacher = None if objective.teacher is None else _hollow(objective.teacher, planned)
        student = _hollow(network, planned)
        average = create_average(student, options)
        state = TrainingState(student, create_optimizer(student, options), average)
        modules = [student, *([average.network] if average else []), *([teacher] if teacher else [])]
        weights_bytes = sum(_bytes(module.state_dict().values()) for module in modules)
        if num_ranks > 1:
            weights_bytes += _bytes(student.parameters())
        before = storages.live_bytes
        fill(state.optimizer)
        optimizer_bytes = storages.live_bytes - before
        job = TrainingJob(
            state, wrapped(student, planned), replace(objective, teacher=teacher), options, planned, data, 1
        )
        size = options.batch_size // num_ranks
        images = torch.empty((size, 3, data.resolution, data.resolution), device=META)
        labels = torch.empty(size, dtype=torch.int64, device=META)
        storages.restart()
        job.move((images, labels))
        return PredictedPeak(weights_bytes, optimizer_bytes, storages.rise_bytes)


def _hollow(module: M, planned: Planned) -> M:
    """The same module without numbers."""
    memo: dict[int, object] = {
        id(tensor): nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
        for tensor in (*module.parameters(), *module.buffers())
        for empty in [torch.empty_like(tensor, device=META)]
    }
    copied = copy.deepcopy(module, memo)
    planned.move(copied)
    if planned.precision == "bf16":
        cast_parameters(copied)
    return copied


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
