"""Retraining cells: a second head, edges that are dropped, squares that are cut out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from hwnas.compute import Compute
from hwnas.data import ImageData, load_data
from hwnas.data.augmentation import Cutout, InTurn, randaugment
from hwnas.errors import UsageError
from hwnas.metrics import read_log
from hwnas.run import RunFolder
from hwnas.space import NONE, create_space
from hwnas.space.genotype import DARTS_V2
from hwnas.supernet.supernet import Network
from hwnas.testing.toys import toy_space
from hwnas.training import TrainingOptions, train
from hwnas.training.job import TrainingJob, create_stream
from hwnas.training.objective import TrainingObjective
from hwnas.training.optimizers import create_optimizer
from hwnas.training.regularized import Regularized, auxiliary_head, kept_edges, regularized
from hwnas.training.state import TrainingState

CPU = Compute(device="cpu")
OPTIONS = TrainingOptions(num_epochs=2, batch_size=8, drop_path=0.5, auxiliary=0.4, cutout=5, label_smoothing=0.0)
SPACE = create_space("darts-cell", channels=4, num_cells=3, resolution=16)


@pytest.fixture(scope="module")
def data() -> ImageData:
    """Handwritten digits: 16 to train on, 10 held out."""
    digits = load_data("digits", resolution=16)
    return dataclasses.replace(digits, train=digits.train.subset(np.arange(16)), val=digits.val.subset(np.arange(10)))


def new_network() -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Network(SPACE, DARTS_V2.architecture(SPACE))


def test_the_second_head_is_the_published_one() -> None:
    # The network for CIFAR: 576 channels on 8x8 after the second reduction.
    space = create_space("darts-cell", channels=36, num_cells=20)
    shape = next(layer for layer in space.layers if layer.name == space.auxiliary).signatures[0].out_shape
    assert (space.auxiliary, shape) == ("cell13", (576, 8, 8))
    head = auxiliary_head(shape, 10)
    expected = 576 * 128 + 2 * 128 + 128 * 768 * 4 + 2 * 768 + 768 * 10 + 10
    assert sum(p.numel() for p in head.parameters()) == expected
    for size in (8, 7, 6, 4, 2):
        assert auxiliary_head((9, size, size), 3).eval()(torch.zeros(1, 9, size, size)).shape == (1, 3)


def test_edges_that_compute_are_dropped_image_by_image() -> None:
    network = new_network()
    module = regularized(network, OPTIONS, seed=0).train()
    assert isinstance(module, Regularized)
    names = list(dict(network.named_children()))
    found = {names[i] for i in module.dropped}
    chosen = dict(network.architecture.options)
    expected = set()
    for layer in SPACE.layers:
        for choice in layer.choices:
            strided = layer.signatures[0].stride > 1
            expected |= (
                {layer.name}
                if chosen[choice] not in (NONE, "skip_connect") or (strided and chosen[choice] == "skip_connect")
                else set()
            )
    assert found == expected
    (kept,) = kept_edges(module, 1000, 0.2, (0, 1), torch.device("cpu"))
    assert kept.shape == (len(found), 1000, 1, 1, 1)
    assert {round(v, 6) for v in kept.unique().tolist()} == {0.0, 1.25}
    assert float(kept.mean()) == pytest.approx(1, abs=5 * 0.5 / np.sqrt(kept.numel()))  # deviation of one: 0.5
    again, other = (kept_edges(module, 1000, 0.2, (0, step), torch.device("cpu"))[0] for step in (1, 2))
    assert torch.equal(kept, again)
    assert not torch.equal(kept, other)


def test_what_is_dropped_counts_nothing_and_evaluation_is_the_network() -> None:
    network, images = new_network(), torch.randn(4, 3, 16, 16)
    module = regularized(network, OPTIONS, seed=0)
    assert isinstance(module, Regularized)
    assert torch.equal(module.eval()(images), network.eval()(images))
    kept = torch.ones(len(module.dropped), 4, 1, 1, 1)
    (logits, second), plain = module.train()(images, kept), network.train()(images)
    assert torch.equal(logits, plain)
    assert second.shape == (4, 10)
    kept[0] = 0
    edge = network[module.dropped[0]]
    module(images, kept)[0].sum().backward()
    assert all(float(p.grad.abs().sum()) == 0 for p in edge.parameters() if p.grad is not None)
    module.checkpointed = True
    assert torch.equal(module(images, torch.ones_like(kept))[0], logits)


def test_the_loss_adds_that_of_the_second_head() -> None:
    logits, second = torch.randn(2, 4, 10)
    labels = torch.tensor([1, 2, 3, 4])
    objective = TrainingObjective(OPTIONS, 10, seed=0)
    found = objective(lambda images: (logits, second), torch.zeros(4, 3, 2, 2), labels, 0)
    assert torch.allclose(found, cross_entropy(logits, labels) + 0.4 * cross_entropy(second, labels))


def test_the_probability_rises_with_the_epochs(data: ImageData) -> None:
    options = dataclasses.replace(OPTIONS, num_epochs=4)
    module = regularized(new_network(), options, seed=0)
    state = TrainingState(module, create_optimizer(module, options), None)
    job = TrainingJob(state, module, TrainingObjective(options, 10, 0), options, CPU, data, 2)
    found = []
    for state.step in (0, 1, 2, 6, 7):
        (kept,) = job._kept(8, 0)
        found.append(float(kept.max()))
    assert found == pytest.approx([1, 1, 1 / (1 - 0.125), 1 / (1 - 0.375), 1 / (1 - 0.375)])


def test_a_resumed_training_equals_an_uninterrupted_one(data: ImageData, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(what: str, done: int, total: int) -> None:
        if done == 3:
            raise Stop

    states = []
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
        run, network = RunFolder(tmp_path / name), new_network()
        if name == "parts":
            with pytest.raises(Stop):
                train(network, data, run, options=OPTIONS, compute=CPU, checkpoint_seconds=0, progress=stop)
            network = new_network()
        train(network, data, run, options=OPTIONS, compute=CPU, checkpoint_seconds=0)
        states.append(network.state_dict())
    assert all(torch.equal(one, two) for one, two in zip(states[0].values(), states[1].values(), strict=True))
    assert not any("head" in name for name in states[0])
    assert len(read_log(run.file("training.jsonl"))) == 2


@pytest.mark.parametrize("compute", [CPU, Compute(device="cpu", accumulate=2, checkpoint_activations=True)])
def test_averaged_weights_end_in_the_network(data: ImageData, tmp_path: Path, compute: Compute) -> None:
    options = dataclasses.replace(OPTIONS, num_epochs=1, ema=0.5)
    network, before, said = new_network(), new_network(), list[str]()
    train(network, data, RunFolder(tmp_path), options=options, compute=compute, say=said.append)
    assert "predicted peak" in said[0]
    assert not torch.equal(
        network.get_parameter("classifier.linear.weight"), before.get_parameter("classifier.linear.weight")
    )


def test_options_without_effect_are_refused() -> None:
    space = toy_space()
    network = Network(space, space.architecture([0, 1, 2]))
    with pytest.raises(UsageError, match="space 'toy' has no place for a second head"):
        regularized(network, TrainingOptions(auxiliary=0.4), seed=0)
    with pytest.raises(UsageError, match="no edges are added up in 'toy'"):
        regularized(network, TrainingOptions(drop_path=0.2), seed=0)
    with pytest.raises(UsageError, match="not for a Linear"):
        regularized(nn.Linear(2, 2), TrainingOptions(drop_path=0.2), seed=0)
    assert regularized(network, TrainingOptions(), seed=0) is network
    with pytest.raises(UsageError, match=r"drop_path 1.0 is out of range"):
        TrainingOptions(drop_path=1.0)


def test_a_square_is_cut_out_around_any_pixel() -> None:
    image = torch.full((3, 8, 8), 200, dtype=torch.uint8)
    cut = Cutout(3, (0.0, 0.5, 1.0))
    counts = torch.zeros(8, 8)
    for seed in range(400):
        found = cut(image, torch.Generator().manual_seed(seed))
        gone = (found != 200).all(0)
        rows, columns = gone.any(1), gone.any(0)
        assert torch.equal(gone, rows[:, None] & columns)
        assert {2, 3} >= {int(rows.sum()), int(columns.sum())}
        assert found[:, gone].unique(dim=1).flatten().tolist() == [0, 128, 255]
        counts += gone
    assert image.min() == 200
    assert counts.min() > 0
    # A corner is reached from 4 of 64 centres, a pixel inside from 9.
    assert float(counts[3, 3]) / 400 == pytest.approx(9 / 64, abs=5 * np.sqrt(9 / 64 / 400))
    with pytest.raises(UsageError, match="square of 0 pixels"):
        Cutout(0, (0, 0, 0))


def test_augmentations_follow_one_another(data: ImageData) -> None:
    image = torch.randint(256, (3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    generator, same = (torch.Generator().manual_seed(3) for _ in range(2))
    cut = Cutout(4, data.mean)
    expected = cut(randaugment(magnitude=7)(image, generator), generator)
    assert torch.equal(InTurn((randaugment(magnitude=7), cut))(image, same), expected)
    images, _ = next(create_stream(data, OPTIONS, CPU, 0).batches(0))
    # What is left is the mean, which is zero once normalised up to the rounding of a pixel.
    assert (images.abs() < 1.01 * 0.5 / 255 / min(data.std)).flatten(1).sum(1).min() >= 3 * 3 * 3
