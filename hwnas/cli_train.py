"""The command ``hwnas train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hwnas.cli_options import (
    Accumulate,
    ChannelsLast,
    CheckpointActivations,
    CheckpointSeconds,
    Compile,
    Device,
    Precision,
    RunPath,
    Workers,
    compute,
    is_first_rank,
    say,
)
from hwnas.console import Reporter

Data = Annotated[str | None, typer.Option(help="Another data set than the run's.")]
Epochs = Annotated[int, typer.Option(help="Passes over the training images.")]
BatchSize = Annotated[int, typer.Option(help="Images a step, over all devices.")]
Optimizer = Annotated[str, typer.Option(help="sgd, rmsprop or adamw.")]
LearningRate = Annotated[
    float | None, typer.Option("--lr", help="Peak learning rate; the optimizer's, scaled by the batch, if not given.")
]
WeightDecay = Annotated[float | None, typer.Option(help="The optimizer's own if not given.")]
WarmUp = Annotated[float, typer.Option(help="Share of the training in which the rate rises; 0: none.")]
Ema = Annotated[float, typer.Option(help="Decay of averaged weights, such as 0.9999; 0: off.")]
Mixup = Annotated[float, typer.Option(help="Mixes pairs of images, such as 0.2; 0: off.")]
RandAugment = Annotated[int, typer.Option("--randaugment", help="Magnitude, such as 9; 0: off.")]
Cutout = Annotated[int, typer.Option(help="Side of a square cut out of every image, such as 16; 0: off.")]
DropPath = Annotated[float, typer.Option(help="Probability in the end to drop an edge of a cell, such as 0.2; 0: off.")]
Auxiliary = Annotated[float, typer.Option(help="Weight of a second classifier's loss, such as 0.4; 0: off.")]
GradClip = Annotated[float, typer.Option(help="Largest norm of the gradient, such as 5; 0: off.")]
Teacher = Annotated[str, typer.Option(help="Network of torchvision to learn from: NAME, or NAME:FILE.pth.")]


def train(
    run: RunPath,
    data: Data = None,
    epochs: Epochs = 30,
    batch_size: BatchSize = 64,
    optimizer: Optimizer = "sgd",
    lr: LearningRate = None,
    weight_decay: WeightDecay = None,
    warm_up: WarmUp = 0.05,
    label_smoothing: Annotated[float, typer.Option(help="Of the cross-entropy.")] = 0.1,
    ema: Ema = 0.0,
    mixup: Mixup = 0.0,
    randaugment: RandAugment = 0,
    cutout: Cutout = 0,
    drop_path: DropPath = 0.0,
    auxiliary: Auxiliary = 0.0,
    grad_clip: GradClip = 0.0,
    teacher: Teacher = "",
    device: Device = "auto",
    precision: Precision = "fp32",
    accumulate: Accumulate = 1,
    checkpoint_activations: CheckpointActivations = False,
    channels_last: ChannelsLast = True,
    compile_: Compile = False,
    workers: Workers = 0,
    checkpoint_seconds: CheckpointSeconds = 60.0,
) -> None:
    """Train the derived network from scratch; resumes if interrupted. Under torchrun, on several devices."""
    from hwnas.run import RunFolder
    from hwnas.steps import train_run
    from hwnas.training import TrainingOptions

    folder = RunFolder.open(run)
    options = TrainingOptions(
        num_epochs=epochs, batch_size=batch_size, lr=lr, optimizer=optimizer, weight_decay=weight_decay,
        warm_up=warm_up, label_smoothing=label_smoothing, ema=ema, mixup=mixup, randaugment=randaugment, cutout=cutout,
        drop_path=drop_path, auxiliary=auxiliary, grad_clip=grad_clip, teacher=teacher,
    )  # fmt: skip
    with Reporter() as reporter:
        train_run(
            folder, data=data, options=options, checkpoint_seconds=checkpoint_seconds, progress=reporter, say=say,
            compute=compute(device, precision, accumulate, checkpoint_activations, compile_, channels_last, workers),
        )  # fmt: skip
    if is_first_rank():
        _say_accuracy(folder.file("training.json"))


def _say_accuracy(path: Path) -> None:
    from hwnas.files import read_json

    say("top-1 {accuracy:.2%}, top-5 {top5:.2%} on held-out images".format(**read_json(path)))
