"""Learning from a network of torchvision."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models

from hwnas.compute import Compute
from hwnas.data import ImageData, load_data
from hwnas.errors import DataError, UnknownNameError, UsageError
from hwnas.run import RunFolder
from hwnas.training import TrainingOptions, train
from hwnas.training.teacher import create_teacher


@pytest.fixture(scope="module")
def data() -> ImageData:
    """Handwritten digits: 16 to train on, 16 held out."""
    digits = load_data("digits", resolution=32)
    train_images, val_images = digits.train.subset(np.arange(16)), digits.val.subset(np.arange(16))
    return dataclasses.replace(digits, train=train_images, val=val_images)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state dict of a ResNet-18 that is certain that everything is a seven."""
    network = models.resnet18(num_classes=10)
    nn.init.zeros_(network.fc.weight)
    with torch.no_grad():
        network.fc.bias.copy_(20.0 * torch.nn.functional.one_hot(torch.tensor(7), 10))
    path = tmp_path_factory.mktemp("teacher") / "resnet18.pth"
    torch.save(network.state_dict(), path)
    return path


def test_the_network_comes_to_agree_with_its_teacher(data: ImageData, weights: Path, tmp_path: Path) -> None:
    network = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 10))
    options = TrainingOptions(
        num_epochs=5, batch_size=8, lr=0.5, teacher=f"resnet18:{weights}", distillation_weight=0.99, temperature=1.0
    )
    scores = train(network, data, RunFolder(tmp_path), options=options, compute=Compute("cpu"))
    assert scores.top1 == (data.val.labels == 7).mean(), "it says seven, whatever the labels are"


def test_a_teacher_does_not_learn(data: ImageData, weights: Path) -> None:
    teacher = create_teacher(f"resnet18:{weights}", data)
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_teachers_that_cannot_be_had(data: ImageData, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown teacher 'resnet19'; available: .*resnet18.*Did you mean"):
        create_teacher("resnet19", data)
    with pytest.raises(UsageError, match=r"teacher file .*absent.pth cannot be read: No such file"):
        create_teacher(f"resnet18:{tmp_path}/absent.pth", data)
    with pytest.raises(UsageError, match="no state dict of resnet34 with 10 classes"):
        create_teacher(f"resnet34:{weights}", data)
    three = dataclasses.replace(data, classes=("a", "b", "c"))
    with pytest.raises(UsageError, match=r"resnet18 with 3 classes .*fc.*10.*Save the state_dict"):
        create_teacher(f"resnet18:{weights}", three)
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(UsageError, match=r"text.pth is no state dict"):
        create_teacher(f"resnet18:{tmp_path}/text.pth", data)


def test_published_weights_must_fit_the_data(data: ImageData) -> None:
    with pytest.raises(UsageError, match=r"'resnet18' knows 1000 classes, data set 'digits' has 10. Train a resnet18"):
        create_teacher("resnet18", data)
    thousand = dataclasses.replace(data, classes=tuple(map(str, range(1000))))
    with pytest.raises(DataError, match=r"'resnet18' expects images of mean .*0.485.*'digits' is normalised by"):
        create_teacher("resnet18", thousand)
