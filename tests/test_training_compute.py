"""Device, precision and memory savings of a training: each has its effect, and changes only what it says."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile

from hwnas.compute import Compute
from hwnas.data import ImageData, load_data
from hwnas.errors import MemoryExhaustedError, UsageError
from hwnas.run import RunFolder
from hwnas.supernet.supernet import Network
from hwnas.testing.toys import toy_space
from hwnas.training import TrainingOptions, score, train
from hwnas.training.wrapping import CheckpointedLayers, wrapped

Trained = tuple[dict[str, Tensor], float]


@pytest.fixture(scope="module")
def data() -> ImageData:
    """Handwritten digits: 40 to train on, 20 held out."""
    digits = load_data("digits", resolution=8)
    train_images, val_images = digits.train.subset(np.arange(40)), digits.val.subset(np.arange(20))
    return dataclasses.replace(digits, train=train_images, val=val_images)


def new_network() -> Network:
    space = toy_space()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Network(space, space.architecture([1, 0, 2]))


def without_batchnorm() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10))


@pytest.fixture
def trained(data: ImageData, tmp_path: Path) -> Callable[..., Trained]:
    """Trains for two epochs; returns weights and statistics, and the loss of the last epoch."""

    def work(make: Callable[[], nn.Module] = new_network, batch_size: int = 20, **compute: Any) -> Trained:
        network, options = make(), TrainingOptions(num_epochs=2, batch_size=batch_size, lr=0.05)
        run = RunFolder(tmp_path / f"run{len(list(tmp_path.iterdir()))}")
        run.path.mkdir()
        train(network, data, run, options=options, compute=Compute("cpu", **compute))
        loss = float(run.file("training.jsonl").read_text().splitlines()[-1].split('"loss": ')[1].split(",")[0])
        return network.state_dict(), loss

    return work


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference of two states."""
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize("accumulate", [2, 4])  # parts of 5 and 5; of 3, 3, 3 and 1
def test_accumulated_gradients_are_those_of_the_whole_batch(accumulate: int, trained: Callable[..., Trained]) -> None:
    whole, loss = trained(without_batchnorm, batch_size=10)
    parts, parts_loss = trained(without_batchnorm, batch_size=10, accumulate=accumulate)
    # The order of summation differs: rounding of float32, 6e-8 of numbers near 1, over eight steps.
    assert distance(whole, parts) < 1e-5
    assert parts_loss == pytest.approx(loss, rel=1e-5)


def test_batchnorm_sees_the_parts(trained: Callable[..., Trained]) -> None:
    whole, parts = trained()[0], trained(accumulate=2)[0]
    assert distance(whole, parts) > 1e-3
    assert [int(state["stem.norm.num_batches_tracked"]) for state in (whole, parts)] == [4, 8]


def test_checkpointed_activations_change_no_bit(trained: Callable[..., Trained]) -> None:
    plain, checkpointed = trained(), trained(checkpoint_activations=True)
    assert checkpointed[1] == plain[1]
    assert distance(plain[0], checkpointed[0]) == 0, "batch-norm statistics included"


def kept_bytes(module: nn.Module, images: Tensor) -> int:
    """Memory that a forward pass leaves allocated until its backward pass."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        output = module(images)
    assert output.requires_grad
    return sum(event.self_cpu_memory_usage for event in profiler.key_averages())


def test_checkpointed_activations_are_not_kept() -> None:
    network, images = new_network().train(), torch.randn(64, 3, 8, 8)
    plain = kept_bytes(network, images)
    checkpointed = kept_bytes(wrapped(network, Compute("cpu", checkpoint_activations=True)), images)
    # What lies between layers is 8 channels of 4 x 4 in fp32, 32 KiB for 64 images: after the stem, layer1 and
    # layer2 (layer3 skips). Inside a layer are 16 channels before and after two batch-norms and activations.
    assert 3 * 32 * 1024 <= checkpointed < 5 * 32 * 1024
    assert plain > 3 * checkpointed


def test_only_sequences_of_layers_are_checkpointed() -> None:
    with pytest.raises(UsageError, match=r"activations of a Bilinear cannot be checkpointed.*Leave out"):
        CheckpointedLayers(nn.Bilinear(1, 1, 1))


def test_bf16_stays_close(trained: Callable[..., Trained]) -> None:
    (full, loss), (mixed, mixed_loss) = trained(), trained(precision="bf16")
    assert all(mixed[name].dtype == full[name].dtype for name in full), "parameters stay fp32"
    # Eight bits of mantissa: every activation is off by up to 0.4 %.
    assert mixed_loss == pytest.approx(loss, rel=0.02)
    assert mixed_loss != loss


@pytest.mark.parametrize("checkpoint_activations", [False, True])
def test_compiled_training_stays_close(checkpoint_activations: bool, trained: Callable[..., Trained]) -> None:
    plain, loss = trained()
    torch._dynamo.reset()
    counters.clear()
    # Tracing and differentiating as always; to generate C++ takes half a minute.
    with torch.compiler.set_stance(force_backend="aot_eager"):
        compiled, compiled_loss = trained(compile=True, checkpoint_activations=checkpoint_activations)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert compiled_loss == pytest.approx(loss, rel=1e-4)
    assert distance(plain, compiled) < 1e-4, "rounding, over four steps; batch-norm statistics included"


@pytest.mark.parametrize("channels_last", [True, False])
def test_memory_format(channels_last: bool, data: ImageData, tmp_path: Path) -> None:
    seen = set()

    class Watching(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                seen.add(x.is_contiguous(memory_format=torch.channels_last))
            return super().forward(x)  # type: ignore[no-any-return]

    network, options = Watching(*without_batchnorm()), TrainingOptions(num_epochs=1, batch_size=20)
    train(network, data, RunFolder(tmp_path), options=options, compute=Compute("cpu", channels_last=channels_last))
    assert seen == {channels_last}
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last) == channels_last


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # Python 3.12+, torch's threads
def test_workers_prepare_the_same_batches(trained: Callable[..., Trained]) -> None:
    assert distance(trained()[0], trained(num_workers=1)[0]) == 0


@pytest.mark.parametrize("predictable", [True, False])
def test_exhausted_memory_says_what_would_fit(predictable: bool, data: ImageData, tmp_path: Path) -> None:
    class Hungry(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if x.is_meta and predictable:
                return x.mean((2, 3)) @ self.weight[:3]
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    need = r", predicted need [\d.]+ MiB" if predictable else ""
    with pytest.raises(MemoryExhaustedError, match=rf"at batch size 20 in 2 part\(s\){need}\. .*--precision bf16"):
        train(
            Hungry(10, 10), data, RunFolder(tmp_path),
            options=TrainingOptions(num_epochs=1, batch_size=20), compute=Compute("cpu", accumulate=2),
        )  # fmt: skip


@pytest.mark.parametrize("where", ["hwnas.compute.Compute.move", "hwnas.training.job.score"])
def test_memory_that_is_exhausted_outside_of_steps(
    where: str, data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the network is moved to the device, and where it is evaluated."""
    path, _, name = where.rpartition(".")
    original = getattr(import_module(path) if "job" in path else Compute, name)

    def exhausted(first: Any, *args: Any, **options: Any) -> Any:
        if getattr(first, "place", None) == torch.device("meta"):
            return original(first, *args, **options)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(where, exhausted)
    with pytest.raises(MemoryExhaustedError, match=r"at batch size 20 in 1 part\(s\), predicted need [\d.]+ MiB"):
        train(new_network(), data, RunFolder(tmp_path), options=TrainingOptions(num_epochs=1, batch_size=20))


def test_exhausted_memory_of_an_evaluation(data: ImageData) -> None:
    class Hungry(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(MemoryExhaustedError, match=r"cpu is out of memory while 7 images at a time.*evaluate fewer"):
        score(Hungry(1, 1), data.val, batch_size=7)


@pytest.mark.parametrize(
    ("options", "compute"),
    [
        ({}, {}),
        ({"optimizer": "adamw", "ema": 0.5, "mixup": 0.2}, {"accumulate": 2}),
        ({}, {"precision": "bf16"}),
        ({"optimizer": "rmsprop"}, {"checkpoint_activations": True}),
    ],
    ids=str,
)
def test_the_predicted_memory_is_what_is_measured(
    options: dict[str, Any], compute: dict[str, Any], data: ImageData, tmp_path: Path
) -> None:
    said = list[str]()
    network, settings = new_network(), TrainingOptions(num_epochs=1, batch_size=20, **options)
    state = torch.get_rng_state()
    train(network, data, RunFolder(tmp_path), options=settings, compute=Compute("cpu", **compute), say=said.append)
    assert torch.equal(torch.get_rng_state(), state)
    predicted, measured = said
    parameters = 4 * sum(p.numel() for p in network.parameters())
    buffers = sum(b.numel() * b.element_size() for b in network.buffers())
    (total, weights, optimizer, step) = (float(number) for number in re.findall(r"[\d.]+", predicted))
    copies, moments = (2 if settings.ema else 1), (2 if settings.optimizer == "adamw" else 1)
    moments += settings.optimizer == "rmsprop"  # squares, and momentum
    size = 2**20
    # Said to a tenth of a MiB.
    assert weights == pytest.approx(copies * (parameters + buffers) / size, abs=0.06)
    assert optimizer == pytest.approx(moments * parameters / size, abs=0.06)
    assert total == pytest.approx(weights + optimizer + step, abs=0.2)
    found, expected = (float(number) for number in re.findall(r"[\d.]+", measured))
    assert expected == step
    # The first step also makes the state of the optimizer.
    assert step - 0.06 <= found <= step + optimizer + 0.06
