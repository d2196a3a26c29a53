"""How well a network classifies held-out images."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from hwnas.compute import evaluation_guard
from hwnas.data import ImageDataset, evaluation_batches
from hwnas.distributed import rank, summed, world_size


@dataclass(frozen=True)
class Scores:
    """What an evaluation found.

    Args:
        top1: Share of images whose class is the most probable one, from 0 to 1.
        top5: Share of images whose class is among the five most probable ones; 1 with five classes or fewer.
        loss: Mean cross-entropy, without label smoothing.
        num_images: Images that were evaluated.
    """

    top1: float
    top5: float
    loss: float
    num_images: int


def evaluate(network: nn.Module, dataset: ImageDataset, *, batch_size: int = 256) -> float:
    """Top-1 accuracy, from 0 to 1; the network's mode is kept. See ``score`` for more."""
    return score(network, dataset, batch_size=batch_size).top1


@torch.no_grad()
def score(
    network: nn.Module,
    dataset: ImageDataset,
    *,
    batch_size: int = 256,
    num_workers: int = 0,
    over_ranks: bool = False,
) -> Scores:
    """Classifies every image once, on the network's device and in its precision; its mode is kept.

    Args:
        network: Takes images, returns logits.
        dataset: What is classified.
        batch_size: Images at a time.
        num_workers: Processes that prepare batches ahead.
        over_ranks: Every rank takes a share of the images, and all get the scores of the whole. All ranks must
            call it, with the same weights.

    Raises:
        DataError: More than one in a thousand images cannot be read; lists them.
        MemoryExhaustedError: The GPU is too small; says what would help.
    """
    share = {"rank": rank(), "num_ranks": world_size()} if over_ranks else {}
    device, training = next(network.parameters()).device, network.training
    network.eval()
    top1 = top5 = loss = count = 0.0
    found = evaluation_batches(dataset, batch_size, num_workers=num_workers, **share)
    with evaluation_guard(device, batch_size), contextlib.closing(found) as batches:
        for some_images, some_labels in batches:
            images = some_images.to(device, memory_format=torch.channels_last, non_blocking=True)
            labels = some_labels.to(device, non_blocking=True)
            logits = network(images).float()
            best = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
            top1, top5 = top1 + int(best[:, 0].sum()), top5 + int(best.any(1).sum())
            loss, count = loss + float(cross_entropy(logits, labels, reduction="sum")), count + len(labels)
    network.train(training)
    if over_ranks:
        top1, top5, loss, count = summed(top1), summed(top5), summed(loss), summed(count)
    return Scores(top1 / count, top5 / count, loss / count, int(count))
