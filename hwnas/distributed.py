"""Plain functions over ``torch.distributed``, which do nothing in a process that is alone.

Every rank holds the whole supernet and draws the same paths from the same seed; after the last backward pass of
a step ``average_gradients`` averages the gradients that exist. A gradient of None stays None on every rank.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hwnas.errors import RankError

BUCKET_BYTES = 25 * 2**20
"""Gradients travel in pieces of this size. Source: the default of DistributedDataParallel."""


_ALONE = ContextVar("alone", default=False)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside the block this process is as if there were no other, so that a single rank can go through a step."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def rank() -> int:
    """Number of this process, 0 where it is alone."""
    return dist.get_rank() if dist.is_initialized() and not _ALONE.get() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() and not _ALONE.get() else 1


def expected_ranks() -> int:
    """Number of processes that ``torchrun`` started, joined already or not."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Joins the processes that ``torchrun`` started; does nothing without it.

    Raises:
        RankError: Inside the block, another process was lost; names what to do.
    """
    if expected_ranks() == 1 or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    except (dist.DistBackendError, dist.DistNetworkError, RuntimeError) as error:
        if isinstance(error, RankError) or not _lost(error):
            raise
        raise RankError(
            f"rank {rank()} of {world_size()} lost another process ({str(error).splitlines()[0]}). Its own message "
            "says why it ended. Run the same command again (search: with --resume) to go on from the last checkpoint."
        ) from error
    finally:
        with contextlib.suppress(Exception):  # peers may be gone
            dist.destroy_process_group()


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces every gradient by its mean over the ranks; parameters without one are not sent.

    All ranks must have gradients for the same parameters, which drawing the same path ensures.
    """
    if world_size() == 1:
        return
    for bucket in _buckets([p.grad for p in parameters if p.grad is not None]):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        dist.all_reduce(flat)
        flat /= world_size()
        for gradient, mean in zip(bucket, torch.split(flat, [g.numel() for g in bucket]), strict=True):
            gradient.copy_(mean.view_as(gradient))


def averaged(values: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The mean of each tensor over the ranks; None stays None. The tensors themselves are left alone."""
    if world_size() == 1:
        return list(values)
    existing = [value.detach().float() for value in values if value is not None]
    flat = torch.cat([value.reshape(-1) for value in existing])
    dist.all_reduce(flat)
    parts = iter(torch.split(flat / world_size(), [value.numel() for value in existing]))
    return [None if value is None else next(parts).view_as(value).to(value.dtype) for value in values]


def require_same(what: str, number: int) -> None:
    """Checks that every rank has the same number.

    Raises:
        RankError: They differ; lists what every rank has.
    """
    if world_size() == 1:
        return
    mine = torch.tensor([number], dtype=torch.int64, device=_device())
    all_of_them = [torch.zeros_like(mine) for _ in range(world_size())]
    dist.all_gather(all_of_them, mine)
    numbers = [int(other) for other in all_of_them]
    if len(set(numbers)) > 1:
        raise RankError(
            f"the ranks drew different {what} ({', '.join(map(str, numbers))}); gradients of different networks "
            "cannot be averaged. Start every rank with the same seed, data and versions."
        )


def broadcast(module: nn.Module) -> None:
    """Gives every rank the parameters and buffers of rank 0."""
    if world_size() == 1:
        return
    for tensor in module.state_dict().values():
        dist.broadcast(tensor, 0)


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank; all ranks get the same answer."""
    if world_size() == 1:
        return flag
    number = torch.tensor([int(flag)], device=_device())
    dist.all_reduce(number, dist.ReduceOp.MAX)
    return bool(number)


def summed(value: float) -> float:
    """The sum over the ranks."""
    if world_size() == 1:
        return value
    number = torch.tensor([value], dtype=torch.float64, device=_device())
    dist.all_reduce(number)
    return float(number)


def gathered(values: list[str]) -> list[list[str]]:
    """The lists of all ranks, in their order."""
    if world_size() == 1:
        return [values]
    lists: list[list[str]] = [[] for _ in range(world_size())]
    dist.all_gather_object(lists, values)
    return lists


def barrier() -> None:
    """Waits for all ranks."""
    if world_size() > 1:
        dist.barrier()


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for gradient in gradients:
        full = sum(g.numel() * g.element_size() for g in bucket) >= BUCKET_BYTES
        if bucket and (full or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def _lost(error: Exception) -> bool:
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError):
        return True
    text = str(error)
    return any(words in text for words in ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL"))
