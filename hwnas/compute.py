"""Where and how networks are computed: device, number format, memory savings."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from hwnas.errors import MemoryExhaustedError, UsageError
from hwnas.memory import mib

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Compute:
    """How the networks of a search or a training are computed; changes no method, only its cost.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:N``, or ``auto``: CUDA where there is one. Under ``torchrun`` plain
            ``cuda`` is the GPU of this process's local rank.
        precision: ``bf16`` runs forward passes under automatic mixed precision; parameters stay fp32.
        accumulate: Micro-batches that a batch is cut into, one after the other, to save memory. Batch-norm then
            normalises each micro-batch by itself.
        checkpoint_activations: Keep only what lies between layers, and compute the rest again in the backward pass.
        compile: Compile operators with ``torch.compile``.
        channels_last: Keep images channels-last in memory, in which depthwise networks train faster.
        num_workers: Processes that prepare batches ahead.

    Raises:
        UsageError: A value is none of those above, or the device is not there.
    """

    device: str = "auto"
    precision: Precision = "fp32"
    accumulate: int = 1
    checkpoint_activations: bool = False
    compile: bool = False
    channels_last: bool = True
    num_workers: int = 0

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise UsageError(f"precision '{self.precision}' is unknown; expected {' or '.join(get_args(Precision))}.")
        if self.accumulate < 1 or self.num_workers < 0:
            raise UsageError(
                f"a batch is cut into at least 1 part and prepared by at least 0 workers; got {self.accumulate} "
                f"and {self.num_workers}."
            )
        place = self.place
        if place.type == "cuda" and not torch.cuda.is_available():
            raise UsageError(f"device '{self.device}' is not here: CUDA is not available. Use --device cpu.")
        if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
            raise UsageError(f"device '{self.device}' is not here; there are {torch.cuda.device_count()} GPUs.")

    @property
    def place(self) -> torch.device:
        """The device as torch knows it."""
        name = self.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            place = torch.device(name)
        except RuntimeError as error:
            raise UsageError(f"device '{name}' is unknown; expected cpu, cuda, cuda:N or auto.") from error
        if place.type not in ("cpu", "cuda"):
            raise UsageError(f"device '{name}' cannot train here; expected cpu, cuda, cuda:N or auto.")
        local, num_local = (int(os.environ.get(n, d)) for n, d in (("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1")))
        if place.type == "cuda" and place.index is not None and num_local > 1:
            raise UsageError(
                f"device '{name}' would be shared by all {num_local} processes of this machine; expected one GPU "
                "for each. Use --device cuda, with which every process takes the GPU of its local rank."
            )
        return torch.device("cuda", local) if name == "cuda" else place

    @property
    def memory_format(self) -> torch.memory_format:
        """Of images and of four-dimensional weights."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def move(self, module: nn.Module) -> None:
        """Puts a module onto the device, in the memory format."""
        module.to(self.place, memory_format=self.memory_format)  # type: ignore[call-overload]

    def micro_batches(self, batch: tuple[Tensor, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """The parts of a batch, on the device."""
        images, labels = batch
        parts = zip(images.tensor_split(self.accumulate), labels.tensor_split(self.accumulate), strict=True)
        for some_images, some_labels in parts:
            yield (
                some_images.to(self.place, memory_format=self.memory_format, non_blocking=True),
                some_labels.to(self.place, non_blocking=True),
            )

    @contextlib.contextmanager
    def seeded(self, *seed: int) -> Iterator[None]:
        """Inside, what operators draw from the framework's own generators follows from the seed; outside they rest."""
        place = self.place
        number = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> np.uint64(1))
        with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
            torch.default_generator.manual_seed(number)
            if place.type == "cuda":
                with torch.cuda.device(place):
                    torch.cuda.manual_seed(number)
            yield

    def check_parts(self, batch_size: int, num_ranks: int) -> None:
        """Checks that batch-norm has two images to normalise by, wherever a batch is cut.

        Args:
            batch_size: Images of the joint batch.
            num_ranks: Processes that share it.

        Raises:
            UsageError: A part of a batch is smaller; says what would do.
        """
        least = 2 * num_ranks * self.accumulate
        if batch_size < least:
            raise UsageError(
                f"a batch of {batch_size} cannot be cut for {num_ranks} rank(s) into {self.accumulate} part(s) each: "
                f"every part needs 2 images. Use --batch-size {least} or more."
            )

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Context of forward passes."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.place.type, dtype=torch.bfloat16)

    @contextlib.contextmanager
    def memory_guard(self, batch_size: int, predicted_bytes: Callable[[], int | None]) -> Iterator[None]:
        """Turns an exhausted GPU into an error that says what would fit.

        Args:
            batch_size: Of all ranks together.
            predicted_bytes: What is needed in all; asked when it is not there.

        Raises:
            MemoryExhaustedError: Inside the block the device ran out of memory.
        """
        try:
            yield
        except torch.OutOfMemoryError as error:
            predicted = predicted_bytes()
            need = "" if predicted is None else f", predicted need {mib(predicted)} MiB"
            raise MemoryExhaustedError(
                f"{self.place} is out of memory at batch size {batch_size} in {self.accumulate} part(s){need}. "
                "Use a smaller --batch-size, --accumulate 2 or more, --precision bf16, or --checkpoint-activations."
            ) from error


@contextlib.contextmanager
def evaluation_guard(device: torch.device, batch_size: int) -> Iterator[None]:
    """Turns a GPU that an evaluation exhausts into an error that says what would fit.

    Raises:
        MemoryExhaustedError: Inside the block the device ran out of memory.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryExhaustedError(
            f"{device} is out of memory while {batch_size} images at a time are evaluated. Free it of other programs, "
            "evaluate fewer at a time (in a training they follow --batch-size), or go on with --device cpu."
        ) from error
