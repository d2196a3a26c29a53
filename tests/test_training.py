"""Training a fixed network: what each option does, that a resumed training equals an uninterrupted one."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from hwnas.compute import Compute
from hwnas.data import ImageData, load_data
from hwnas.errors import NumericsError, RunError, UsageError
from hwnas.run import RunFolder
from hwnas.supernet.supernet import Network
from hwnas.testing.toys import toy_space
from hwnas.training import TrainingOptions, evaluate, score, train
from hwnas.training.job import TrainingJob
from hwnas.training.objective import TrainingObjective, mixed, mixing_share
from hwnas.training.optimizers import Average, create_optimizer
from hwnas.training.state import TrainingState

CPU = Compute(device="cpu")
BATCH, STEPS_PER_EPOCH = 16, 4


@pytest.fixture(scope="module")
def data() -> ImageData:
    """Handwritten digits: 64 to train on, 40 held out."""
    digits = load_data("digits", resolution=8)
    train_images = digits.train.subset(np.arange(BATCH * STEPS_PER_EPOCH))
    return dataclasses.replace(digits, train=train_images, val=digits.val.subset(np.arange(40)))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    (tmp_path / "run").mkdir()
    return RunFolder(tmp_path / "run")


def new_network() -> Network:
    space = toy_space()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Network(space, space.architecture([1, 0, 2]))


def log_of(run: RunFolder, name: str = "training") -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.file(f"{name}.jsonl").read_text().splitlines()]


# --- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_epochs": 0}, "at least 1 epoch.*got 0"),
        ({"batch_size": 1}, "batches of at least 2.*got 30 and 1"),
        ({"optimizer": "adam"}, "unknown optimizer 'adam'; available: adamw, rmsprop, sgd. Did you mean 'adamw'"),
        ({"lr": 0.0}, "lr 0.0 is out of range; expected above 0"),
        ({"lr": math.nan}, "lr nan is out of range"),
        ({"weight_decay": -1.0}, "weight_decay -1.0 is out of range; expected 0 or more"),
        ({"momentum": 1.0}, "momentum 1.0 is out of range; expected from 0 to below 1"),
        ({"warm_up": 1.0}, "warm_up 1.0"),
        ({"label_smoothing": -0.1}, "label_smoothing -0.1"),
        ({"ema": 1.0}, "ema 1.0"),
        ({"mixup": -1.0}, "mixup -1.0"),
        ({"grad_clip": -5.0}, "grad_clip -5.0 is out of range; expected 0 .off. or more"),
        ({"randaugment": 31}, "randaugment 31 is out of range; expected from 0 .off. to 30"),
        ({"temperature": 2.0}, "temperature 2.0 has no effect without a teacher"),
        ({"distillation_weight": 0.5}, "distillation_weight 0.5 has no effect without a teacher"),
        ({"distillation_weight": 1.0, "teacher": "resnet18"}, "distillation_weight 1.0 is out of range"),
        ({"momentum": 0.9, "optimizer": "adamw"}, "momentum 0.9 has no effect on adamw"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainingOptions(**options)


def test_parts_too_small_for_batchnorm(data: ImageData, run: RunFolder) -> None:
    with pytest.raises(UsageError, match=r"batch of 16 cannot be cut .* into 9 part.*Use --batch-size 18 or more"):
        train(new_network(), data, run, options=TrainingOptions(batch_size=16), compute=Compute("cpu", accumulate=9))


def test_the_published_rate_scales_with_the_batch_and_a_given_one_does_not() -> None:
    # torchvision trains MobileNetV3 with 0.064 for 8 x 128 images: for 256 it is a quarter
    assert TrainingOptions(optimizer="rmsprop", batch_size=256).peak_lr == pytest.approx(0.016)
    assert TrainingOptions(optimizer="rmsprop", batch_size=256, lr=0.1).peak_lr == 0.1
    assert TrainingOptions(optimizer="adamw").decay == 0.05
    assert TrainingOptions(optimizer="adamw", weight_decay=0.0).decay == 0.0


# --- optimizers


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop", "adamw"])
def test_every_weight_is_decayed_but_not_batchnorm_and_biases(optimizer: str) -> None:
    network = new_network()
    created = create_optimizer(network, TrainingOptions(optimizer=optimizer, weight_decay=0.01))
    decay = {id(p): group["weight_decay"] for group in created.param_groups for p in group["params"]}
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            free = isinstance(module, nn.BatchNorm2d) or name == "bias"
            assert decay.pop(id(parameter)) == (0.0 if free else 0.01)
    assert not decay


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 0.05), ("rmsprop", 0.004), ("adamw", 0.02)])
def test_every_optimizer_learns(optimizer: str, lr: float, data: ImageData, run: RunFolder) -> None:
    options = TrainingOptions(num_epochs=20, batch_size=BATCH, optimizer=optimizer, lr=lr, label_smoothing=0.0)
    scores = train(new_network(), data, run, options=options, compute=CPU)
    losses = [entry["loss"] for entry in log_of(run)]
    assert losses[0] > 1.8, "it starts near the ln 10 = 2.3 of a guess"
    assert losses[-1] < 0.75 * losses[0]
    assert scores.top1 > 0.2, "twice as good as a guess"


@pytest.mark.parametrize("clip", [0.0, 0.01])
def test_gradients_are_cut_to_their_largest_norm(clip: float, data: ImageData) -> None:
    options = TrainingOptions(batch_size=4, lr=1.0, warm_up=0.0, momentum=0.0, weight_decay=0.0, grad_clip=clip)
    network = new_network().double()
    state = TrainingState(network, create_optimizer(network, options), None)
    job = TrainingJob(state, network, TrainingObjective(options, 10, 0), options, CPU, data, 2)
    before = [p.detach().clone() for p in network.parameters()]
    job.move((torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.arange(4)))
    pairs = zip(before, network.parameters(), strict=True)
    moved = float(torch.cat([(a - b.detach()).flatten() for a, b in pairs]).norm())
    assert moved == pytest.approx(clip, rel=1e-3) if clip else moved > 0.1  # torch divides by the norm and 1e-6 more


def test_the_rate_rises_and_falls(data: ImageData, run: RunFolder) -> None:
    options = TrainingOptions(num_epochs=2, batch_size=BATCH, lr=0.08, warm_up=0.5)
    train(new_network(), data, run, options=options, compute=CPU)
    # Last steps of the epochs: 3 of 8 is 3/4 into the warm-up, 7 of 8 is 3/4 along the half cosine.
    expected = [0.08 * 0.75, 0.08 * 0.5 * (1 + math.cos(0.75 * math.pi))]
    assert [entry["lr"] for entry in log_of(run)] == pytest.approx(expected)


# --- objective


def test_mixing_is_that_of_torchvision() -> None:
    images, labels = torch.randn(6, 3, 4, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    theirs = v2.MixUp(num_classes=4)
    parameters = {"lam": 0.3, "batch_size": 6, "labels": labels}
    assert torch.allclose(mixed(images, 0.3), theirs.transform(images, parameters))
    assert torch.allclose(mixed(nn.functional.one_hot(labels, 4).float(), 0.3), theirs.transform(labels, parameters))


def test_shares_of_mixing_are_beta_distributed_and_belong_to_the_step() -> None:
    shares = np.array([mixing_share(0.4, seed=1, step=step) for step in range(4000)])
    assert mixing_share(0.4, seed=1, step=7) == shares[7]
    assert mixing_share(0.4, seed=2, step=7) != shares[7]
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1)) = 0.139; 4000 draws miss them by 0.006 and 0.002 (1 sigma)
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(1 / (4 * 1.8), abs=0.01)


def fixed(logits: Tensor) -> nn.Module:
    """A network that answers the same for every image."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(3, logits.numel()))
    network[1].weight.data.zero_()
    network[1].bias.data.copy_(logits)
    return network


def test_distillation_weighs_cross_entropy_against_the_distance_to_the_teacher() -> None:
    options = TrainingOptions(teacher="any", distillation_weight=0.9, temperature=2.0, label_smoothing=0.0)
    teacher = fixed(torch.tensor([2 * math.log(3), 0.0]))  # at temperature 2: probabilities 3/4 and 1/4
    objective = TrainingObjective(options, num_classes=2, seed=0, teacher=teacher)
    student = fixed(torch.zeros(2))  # 1/2 and 1/2
    loss = objective(student, torch.randn(5, 3, 1, 1), torch.zeros(5, dtype=torch.int64), 0)
    distance = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert loss.item() == pytest.approx(0.1 * math.log(2) + 0.9 * 4 * distance, rel=1e-6)
    loss.backward()  # type: ignore[no-untyped-call]
    # d CE = p - label = (-1/2, 1/2); T^2 d KL = T (p - q) = 2 (-1/4, 1/4)
    assert torch.allclose(student[1].bias.grad, torch.tensor([-0.5, 0.5]) * (0.1 + 0.9), atol=1e-6)
    assert teacher[1].bias.grad is None


def test_smoothing_mixing_and_augmentation_change_the_training(data: ImageData, run: RunFolder) -> None:
    losses = {}
    for name, value in [("num_epochs", 1), ("label_smoothing", 0.0), ("mixup", 0.5), ("randaugment", 9)]:
        folder = RunFolder(run.path / name)
        folder.path.mkdir()
        options = TrainingOptions(**{"num_epochs": 1, "batch_size": BATCH, name: value})
        train(new_network(), data, folder, options=options, compute=CPU)
        losses[name] = log_of(folder)[0]["loss"]
    assert len(set(losses.values())) == len(losses), losses


# --- averaged weights


def test_the_average_forgets_its_start_and_takes_in_statistics() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1))
    values = [torch.tensor(v) for v in (1.0, 5.0, -2.0)]

    def put(value: Tensor) -> None:
        network[0].weight.data.fill_(value)
        network[1].running_mean.fill_(value)
        network[1].num_batches_tracked.fill_(int(value) + 3)

    put(values[0])
    average = Average(network, 0.15)
    for step, value in enumerate(values[1:]):
        put(value)
        average.update(network, step)
    # decays are min(0.15, 1/10) and min(0.15, 2/11)
    expected = 0.15 * (0.1 * 1 + 0.9 * 5) + 0.85 * -2
    assert average.network[0].weight.item() == pytest.approx(expected)
    assert average.network[1].running_mean.item() == pytest.approx(expected)
    assert average.network[1].num_batches_tracked.item() == 1, "counted, not averaged"
    assert network[0].weight.item() == -2


def test_the_average_is_what_is_evaluated_and_kept(data: ImageData, run: RunFolder) -> None:
    options = TrainingOptions(num_epochs=2, batch_size=BATCH, ema=0.9)
    network = new_network()
    scores = train(network, data, run, options=options, compute=CPU)
    checkpoint = torch.load(run.file("training.pt"), weights_only=True)
    kept = network.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in checkpoint["average"].items())
    assert not torch.equal(checkpoint["network"]["stem.conv.weight"], kept["stem.conv.weight"])
    assert scores == score(network, data.val, batch_size=BATCH)
    assert (scores.top1, scores.top5) == (log_of(run)[-1]["accuracy"], log_of(run)[-1]["top5"])


# --- evaluation


def test_scores(data: ImageData) -> None:
    """A network that finds class 0 most probable, then 1, 2, ...; whatever it sees."""
    bias = -torch.arange(10.0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10))
    network[1].weight.data.zero_()
    network[1].bias.data.copy_(bias)
    labels = data.val.labels
    found = score(network.train(), data.val, batch_size=7)
    assert network.training, "the mode is kept"
    assert (found.top1, found.top5, found.num_images) == ((labels == 0).mean(), (labels < 5).mean(), 40)
    # -log softmax: log(sum exp(-k)) + label
    assert found.loss == pytest.approx(math.log(sum(math.exp(-k) for k in range(10))) + labels.mean(), rel=1e-5)
    assert evaluate(network, data.val) == found.top1


# --- resuming


class Interruption(Exception):
    """Raised in the middle of a training."""


def interrupted(work: Callable[..., Any], seed: int, total: int) -> Any:
    """Does the work, broken off after two random steps and after the last one."""
    for stop in [*sorted(random.Random(seed).sample(range(2, total), 2)), total]:

        def progress(what: str, done: int, total: int, stop: int = stop) -> None:
            if done == stop:
                raise Interruption

        with pytest.raises(Interruption):
            work(progress=progress)
    return work()


def assert_equal(a: Any, b: Any) -> None:
    """Bit for bit, tensors inside included."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_equal(one, other)
    else:
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "sgd", "ema": 0.95},
        {"optimizer": "rmsprop", "mixup": 0.3, "ema": 0.9},
        {"optimizer": "adamw", "mixup": 0.3, "randaugment": 9},
    ],
    ids=lambda options: options["optimizer"],
)
def test_resumed_training_equals_an_uninterrupted_one(
    options: dict[str, Any], data: ImageData, run: RunFolder, tmp_path: Path
) -> None:
    settings = TrainingOptions(num_epochs=3, batch_size=BATCH, **options)
    whole = RunFolder(tmp_path / "whole")
    whole.path.mkdir()

    def work(folder: RunFolder = run, **given: Any) -> tuple[Any, dict[str, Tensor]]:
        network = new_network()
        scores = train(network, data, folder, options=settings, compute=CPU, seed=3, checkpoint_seconds=0, **given)
        return scores, network.state_dict()

    expected, found = work(whole), interrupted(work, seed=1, total=3 * STEPS_PER_EPOCH)
    assert found[0] == expected[0]
    assert_equal(dict(found[1]), dict(expected[1]))
    assert run.file("training.jsonl").read_bytes() == whole.file("training.jsonl").read_bytes()
    assert_equal(*(torch.load(each.file("training.pt"), weights_only=True) for each in (run, whole)))


def test_a_checkpoint_of_another_training_is_refused(data: ImageData, run: RunFolder) -> None:
    options = TrainingOptions(num_epochs=1, batch_size=BATCH)
    train(new_network(), data, run, options=options, compute=CPU, identity="a")
    other = dataclasses.replace(options, ema=0.5)
    with pytest.raises(RunError, match=r"another training \(ema=0.0; asked now: ema=0.5\). Delete it"):
        train(new_network(), data, run, options=other, compute=CPU, identity="a")
    with pytest.raises(RunError, match=r"\(network=a, seed=0; asked now: network=b, seed=1\)"):
        train(new_network(), data, run, options=options, compute=CPU, identity="b", seed=1)
    torch.save({"identity": "of version 0.1"}, run.file("training.pt"))
    with pytest.raises(RunError, match="written by another version"):
        train(new_network(), data, run, options=options, compute=CPU)


def test_what_is_logged(data: ImageData, run: RunFolder) -> None:
    train(new_network(), data, run, options=TrainingOptions(num_epochs=2, batch_size=BATCH), compute=CPU)
    entries, speed = log_of(run), log_of(run, "training-speed")
    assert [entry["step"] for entry in entries] == [entry["step"] for entry in speed] == [3, 7]
    assert all(set(entry) == {"step", "loss", "val_loss", "accuracy", "top5", "lr"} for entry in entries)
    assert all(entry["images_per_second"] > 0 for entry in speed)


# --- numerics


def test_a_diverging_training_stops_and_keeps_the_last_good_checkpoint(data: ImageData, run: RunFolder) -> None:
    options = TrainingOptions(num_epochs=2, batch_size=BATCH, lr=1e25, warm_up=0.4)
    with pytest.raises(NumericsError, match=r"(?s)step \d.*training.pt from before it is kept.*lower learning rate"):
        train(new_network(), data, run, options=options, compute=CPU, checkpoint_seconds=0)
    checkpoint = torch.load(run.file("training.pt"), weights_only=True)
    assert checkpoint["step"] > 0
    assert all(bool(value.isfinite().all()) for name, value in checkpoint["network"].items() if "running" not in name)


def test_infinite_weights_are_not_saved(run: RunFolder) -> None:
    network = new_network()
    state = TrainingState(network, create_optimizer(network, TrainingOptions()), None)
    with torch.no_grad():
        network.stem.conv.weight[0] = math.inf
    with pytest.raises(NumericsError, match=r"infinite or NaN before step 0; there is no checkpoint yet"):
        state.save(run.file("training.pt"), {})
    assert not run.file("training.pt").exists()
