"""Training and evaluating one fixed network."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hwnas.checkpoint import DeferredSignals, load_checkpoint, save_checkpoint
from hwnas.data import BatchStream, ImageData, ImageDataset, channels_last, evaluation_batches
from hwnas.errors import NumericsError, RunError, UsageError
from hwnas.metrics import Progress, RunLog, no_progress
from hwnas.run import RunFolder
from hwnas.search.schedules import Cosine


@dataclass(frozen=True)
class TrainingOptions:
    """How a fixed network is trained: SGD with Nesterov momentum, cosine rate with warm-up.

    Args:
        num_epochs: Passes over the training images.
        batch_size: Images a step.
        lr: Peak learning rate, for a batch of 64; scaled linearly with the batch.
        weight_decay: L2 on all weights.
        label_smoothing: Of the cross-entropy.

    Source:
        Linear scaling and warm-up: Goyal et al., arXiv 1706.02677. Momentum 0.9, weight decay 4e-5, label
        smoothing 0.1: ProxylessNAS, arXiv 1812.00332, released code.
    """

    num_epochs: int = 30
    batch_size: int = 64
    lr: float = 0.05
    weight_decay: float = 4e-5
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        if self.num_epochs < 1 or self.batch_size < 2 or self.lr <= 0:
            raise UsageError(
                f"training needs at least 1 epoch, batches of at least 2 and a positive rate; got "
                f"{self.num_epochs}, {self.batch_size}, {self.lr}."
            )


def train(
    network: nn.Module,
    data: ImageData,
    run: RunFolder,
    *,
    options: TrainingOptions = TrainingOptions(),
    seed: int = 0,
    identity: str = "",
    checkpoint_seconds: float = 60.0,
    progress: Progress = no_progress,
) -> float:
    """Trains in place and returns top-1 accuracy on the held-out images, from 0 to 1.

    Goes on from the run's checkpoint if there is one; a resumed training equals an uninterrupted one bit
    for bit on a CPU.

    Args:
        network: Freshly initialised from ``seed`` by the caller.
        data: Training and held-out images.
        run: Where log and checkpoint go.
        options: Hyper-parameters.
        seed: Decides batches and augmentation.
        identity: What is trained; a checkpoint of something else is refused.
        checkpoint_seconds: Time between checkpoints.
        progress: Told about every step.

    Raises:
        NumericsError: The loss became NaN or infinite.
        RunError: The checkpoint is of another network, other data or other options.
        KeyboardInterrupt: After a signal, once the checkpoint is written.
    """
    stream = BatchStream(data.train, options.batch_size, seed=seed)
    total = options.num_epochs * stream.steps_per_epoch
    rate = Cosine(options.lr * options.batch_size / 64, warm_up=0.05)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=1.0, momentum=0.9, nesterov=True, weight_decay=options.weight_decay
    )
    path, step, identity = run.file("training.pt"), 0, f"{identity} {options} data={data.spec} seed={seed}"
    if path.exists():
        step = _restore(load_checkpoint(path), network, optimizer, identity, str(path))
    batches, saved = channels_last(stream.batches(step)), time.monotonic()
    network.train().to(memory_format=torch.channels_last)
    with DeferredSignals() as signals, RunLog(run.path, "training", start_step=step) as log:
        while step < total:
            for group in optimizer.param_groups:
                group["lr"] = rate(step / total)
            loss = _train_step(network, optimizer, next(batches), options)
            if not math.isfinite(loss):
                raise NumericsError(f"the loss is {loss} at step {step}. Lower the learning rate ({options.lr}).")
            step += 1
            progress("training", step, total)
            if step % stream.steps_per_epoch == 0:
                log.add(step - 1, {"loss": loss, "accuracy": evaluate(network, data.val)})
            if signals.received or time.monotonic() - saved > checkpoint_seconds or step == total:
                save_checkpoint(path, _snapshot(network, optimizer, step, identity))
                saved = time.monotonic()
            if signals.received:
                raise KeyboardInterrupt
    return evaluate(network, data.val)


@torch.no_grad()
def evaluate(network: nn.Module, dataset: ImageDataset, *, batch_size: int = 256) -> float:
    """Top-1 accuracy, from 0 to 1; the network's mode is kept."""
    training = network.training
    network.eval()
    correct = sum(
        int((network(images).argmax(1) == labels).sum())
        for images, labels in channels_last(evaluation_batches(dataset, batch_size))
    )
    network.train(training)
    return correct / len(dataset)


def _train_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: tuple[Tensor, Tensor],
    options: TrainingOptions,
) -> float:
    images, labels = batch
    optimizer.zero_grad(set_to_none=True)
    loss = cross_entropy(network(images), labels, label_smoothing=options.label_smoothing)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return float(loss.detach())


def _snapshot(network: nn.Module, optimizer: torch.optim.Optimizer, step: int, identity: str) -> dict[str, object]:
    return {
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "identity": identity,
    }


def _restore(
    snapshot: dict[str, object],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    identity: str,
    path: str,
) -> int:
    if snapshot["identity"] != identity:
        raise RunError(
            f"checkpoint {path} is of another training ({snapshot['identity']}; asked now: {identity}). "
            "Delete it to train anew."
        )
    network.load_state_dict(snapshot["network"])  # type: ignore[arg-type]
    optimizer.load_state_dict(snapshot["optimizer"])  # type: ignore[arg-type]
    return int(snapshot["step"])  # type: ignore[call-overload, no-any-return]
