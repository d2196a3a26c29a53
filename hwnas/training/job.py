"""One step of a training, and what happens at the end of an epoch."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hwnas.compute import Compute
from hwnas.data import BatchStream, ImageData, randaugment
from hwnas.data.augmentation import Augmentation, Cutout, InTurn
from hwnas.distributed import broadcast, rank, summed, world_size
from hwnas.search.schedules import Cosine
from hwnas.training.evaluation import Scores, score
from hwnas.training.objective import Outputs, TrainingObjective
from hwnas.training.options import TrainingOptions
from hwnas.training.regularized import kept_edges
from hwnas.training.state import TrainingState

Batch = tuple[Tensor, Tensor]


def create_stream(data: ImageData, options: TrainingOptions, compute: Compute, seed: int) -> BatchStream:
    """The training batches, of which this rank gets its share."""
    return BatchStream(
        data.train,
        options.batch_size,
        seed=seed,
        extra=_augmentation(data, options),
        num_workers=compute.num_workers,
        rank=rank(),
        num_ranks=world_size(),
    )


def _augmentation(data: ImageData, options: TrainingOptions) -> Augmentation | None:
    operations = [randaugment(magnitude=options.randaugment)] if options.randaugment else []
    operations += [Cutout(options.cutout, data.mean)] if options.cutout else []
    return InTurn(tuple(operations)) if operations else None


@dataclass(eq=False)
class TrainingJob:
    """Everything a step needs.

    Args:
        state: What the steps change.
        forward: The network as it runs in a step.
        objective: The loss.
        options: Hyper-parameters.
        compute: Device, precision, parts of a batch.
        data: For the evaluation.
        steps_per_epoch: Of the training batches.
    """

    state: TrainingState
    forward: nn.Module
    objective: TrainingObjective
    options: TrainingOptions
    compute: Compute
    data: ImageData
    steps_per_epoch: int
    _started: tuple[float, int] = field(init=False)

    def __post_init__(self) -> None:
        self._rate = Cosine(self.options.peak_lr, warm_up=self.options.warm_up)
        self._started = time.monotonic(), self.state.step

    @property
    def total(self) -> int:
        """Steps of the whole training."""
        return self.options.num_epochs * self.steps_per_epoch

    @property
    def lr(self) -> float:
        """Learning rate of the next step."""
        return self._rate(self.state.step / self.total)

    def step(self, batch: Batch) -> float:
        """Moves the weights and returns the loss before, the mean over all ranks."""
        return summed(self.move(batch)) / world_size()

    def move(self, batch: Batch) -> float:
        """Moves the weights and returns the loss before, of this rank's images.

        Gradients of the parts of a batch add up to that of their mean; other ranks' are averaged in at the
        last part.
        """
        state = self.state
        for group in state.optimizer.param_groups:
            group["lr"] = self.lr
        state.optimizer.zero_grad(set_to_none=True)
        losses, seen, num_images = list[Tensor](), 0, len(batch[1])
        for images, labels in self.compute.micro_batches(batch):
            forward = partial(self._forward, self._kept(len(labels), seen))
            seen += len(labels)
            parts_left = seen < num_images
            with self._alone() if parts_left else contextlib.nullcontext(), self.compute.seeded(*self._seed(seen)):
                with self.compute.autocast():
                    loss = self.objective(forward, images, labels, state.step) * (len(labels) / num_images)
                loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        if self.options.grad_clip:
            nn.utils.clip_grad_norm_(state.network.parameters(), self.options.grad_clip)
        state.optimizer.step()
        if state.average:
            state.average.update(state.network, state.step)
        return float(sum(losses))

    def finish_step(self, loss: float) -> bool:
        """Counts the step; returns whether an epoch ends with it."""
        self.state.step += 1
        self.state.loss_sum += loss
        return self.state.step % self.steps_per_epoch == 0

    def finish_epoch(self) -> tuple[Scores, dict[str, float], dict[str, float]]:
        """Evaluates; returns the scores, what the log says about the epoch, and how fast it was."""
        started, first = self._started
        seconds, num_images = time.monotonic() - started, (self.state.step - first) * self.options.batch_size
        scores = self.evaluate()
        figures = {
            "loss": self.state.loss_sum / self.steps_per_epoch,
            "val_loss": scores.loss,
            "accuracy": scores.top1,
            "top5": scores.top5,
            "lr": self.state.optimizer.param_groups[0]["lr"],
        }
        self.state.loss_sum, self._started = 0.0, (time.monotonic(), self.state.step)
        return scores, figures, {"images_per_second": num_images / seconds}

    def evaluate(self) -> Scores:
        """Scores of the weights that will be kept, on the held-out images of all ranks.

        Takes no more images at a time than a step does, so that it needs no more memory.
        """
        broadcast(self.state.evaluated)  # batch-norm statistics are each rank's own
        size = min(256, self.options.batch_size // (world_size() * self.compute.accumulate))
        workers = self.compute.num_workers
        return score(self.state.evaluated, self.data.val, batch_size=size, num_workers=workers, over_ranks=True)

    def _kept(self, num_images: int, first: int) -> tuple[Tensor, ...]:
        """Which edges stay, of images that come after so many of the batch."""
        state, epoch = self.state, self.state.step // self.steps_per_epoch
        probability = self.options.drop_path * epoch / self.options.num_epochs
        return kept_edges(state.network, num_images, probability, self._seed(first), self.compute.place)

    def _seed(self, number: int) -> tuple[int, ...]:
        return self.objective.seed, self.state.step, rank(), number

    def _forward(self, kept: tuple[Tensor, ...], images: Tensor) -> Outputs:
        return self.forward(images, *kept)  # type: ignore[no-any-return]

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        if isinstance(self.forward, DistributedDataParallel):
            return self.forward.no_sync()
        return contextlib.nullcontext()
