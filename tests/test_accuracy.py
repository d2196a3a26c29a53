"""Accuracy of paths: the right number, decoded once, and nothing asked twice, even after a kill."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hwnas.accuracy import PathAccuracy
from hwnas.compute import Compute
from hwnas.data import BatchStream, ImageDataset
from hwnas.data.images import ArrayImages
from hwnas.errors import OutputError, RunError
from hwnas.latency.budget import Budget, feasible_range_ms
from hwnas.latency.table import LatencyTable
from hwnas.search.derivations import Evolution
from hwnas.search.protocols import Finished
from hwnas.space import Architecture, create_space
from hwnas.steps import search_run
from hwnas.supernet.supernet import Supernet, extract, recalibrate_batchnorm
from hwnas.testing.toys import toy_latency_model
from hwnas.training import score

SPACE, MODEL = toy_latency_model()
SOME = [SPACE.architecture(indices) for indices in ((0, 1, 2), (1, 1, 1), (2, 0, 0))]


class Stop(Exception):
    """Ends work in the middle."""


@dataclass(frozen=True, eq=False)
class Counted(ArrayImages):
    """Counts how often an image is asked for."""

    asked: list[int] = field(default_factory=list)

    def evaluation_image(self, index: int) -> torch.Tensor:
        self.asked.append(index)
        return super().evaluation_image(index)


def random_images(count: int, *, seed: int, channels: int = 3) -> ImageDataset:
    rng = np.random.default_rng(seed)
    pixels = torch.from_numpy(rng.integers(0, 256, (count, channels, 8, 8), dtype=np.uint8))
    return ImageDataset(
        Counted(pixels, 8, max_shift=0, flip=False), rng.integers(0, 10, count),
        classes=tuple("0123456789"), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3),
    )  # fmt: skip


def path_accuracy(path: Path | None = None, *, seed: int = 0, channels: int = 3) -> PathAccuracy:
    """Of a supernet with random weights, on random images."""
    torch.manual_seed(seed)
    images = random_images(90, seed=1, channels=channels), random_images(400, seed=2, channels=channels)
    return PathAccuracy(
        Supernet(SPACE).train(), *images, Compute(device="cpu"), 5,
        num_batches=4, batch_size=32, max_images=300, path=path,
    )  # fmt: skip


@pytest.mark.parametrize("channels", [1, 3])
def test_it_is_the_accuracy_of_the_extracted_network_with_its_own_statistics(channels: int) -> None:
    accuracy = path_accuracy(channels=channels)
    before = {name: value.clone() for name, value in accuracy.supernet.state_dict().items()}
    shown = accuracy.held_out.subset(np.linspace(0, 399, 300).round().astype(int))
    found = [accuracy(architecture) for architecture in SOME]
    for architecture, value in zip(SOME, found, strict=True):
        network = extract(accuracy.supernet, architecture)
        assert accuracy.as_trained(architecture) == score(network, shown).top1
        batches = BatchStream(accuracy.weight_images, 32, seed=5, augment=False).batches(0)
        recalibrate_batchnorm(network, (images for images, _ in itertools.islice(batches, 4)))
        assert value == score(network, shown).top1
    assert len(set(found)) > 1
    assert all(torch.equal(value, before[name]) for name, value in accuracy.supernet.state_dict().items())


def test_images_are_decoded_once() -> None:
    accuracy = path_accuracy()
    counts = [images._images.asked for images in (accuracy.held_out, accuracy.weight_images)]
    for architecture in SOME:
        accuracy(architecture)
        accuracy.as_trained(architecture)
        assert [len(asked) for asked in counts] == [300, 4 * 32]
    assert len(set(counts[0])) == 300


def test_every_answer_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    accuracy = path_accuracy(path)
    first = [accuracy(architecture) for architecture in SOME]
    assert [accuracy(architecture) for architecture in SOME] == first
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["architecture"], line["accuracy"]) for line in lines] == [
        (dict(architecture.options), value) for architecture, value in zip(SOME, first, strict=True)
    ]


def change_first(path: Path) -> None:
    """Gives the first answer an accuracy that nothing computes."""
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([json.dumps(json.loads(lines[0]) | {"accuracy": 0.123456}) + "\n", *lines[1:]]))


def test_a_line_that_was_cut_short_is_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    accuracy = path_accuracy(path)
    values = [accuracy(architecture) for architecture in SOME]
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    again = path_accuracy(path)
    assert [again(architecture) for architecture in SOME] == values
    assert path.read_bytes() == whole
    change_first(path)
    believed = path_accuracy(path)
    assert [believed(architecture) for architecture in SOME] == [0.123456, *values[1:]]


@pytest.mark.parametrize(
    "other",
    [
        lambda path: path_accuracy(path, seed=1),
        lambda path: replace(path_accuracy(path), seed=6),
        lambda path: replace(path_accuracy(path), max_images=299),
        lambda path: replace(path_accuracy(path), held_out=random_images(400, seed=3)),
    ],
    ids=["weights", "batches", "fewer images", "other images"],
)
def test_answers_of_something_else_are_dropped(tmp_path: Path, other: Callable[[Path], PathAccuracy]) -> None:
    path = tmp_path / "scores.jsonl"
    for architecture in SOME:
        path_accuracy(path)(architecture)
    change_first(path)
    accuracy = other(path)
    assert accuracy(SOME[0]) == replace(accuracy, path=None)(SOME[0]) != 0.123456
    assert len(path.read_text().splitlines()) == 1


def test_damaged_and_unwritable_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_text("{}\n")
    with pytest.raises(RunError, match=r"line 1 of .*scores\.jsonl is no entry of a log"):
        path_accuracy(path)(SOME[0])
    with pytest.raises(OutputError, match=r"cannot write .*absent/scores\.jsonl"):
        path_accuracy(tmp_path / "absent" / "scores.jsonl")(SOME[0])


def test_an_evolution_that_was_killed_asks_only_for_the_rest(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    budget = Budget(MODEL, feasible_range_ms(MODEL)[1])
    evolution = Evolution(population=5, generations=3, num_parents=2, num_mutations=2, num_crossovers=2)
    uniform = {c.name: torch.full((3,), 1 / 3) for c in SPACE.choices}

    def derived(path: Path, stop_after: int | None = None) -> list[Architecture]:
        accuracy = path_accuracy(path)

        def evaluate(architecture: Architecture) -> float:
            if path.exists() and len(path.read_text().splitlines()) == stop_after:
                raise Stop
            return accuracy(architecture)

        return [*evolution(Finished(uniform, evaluate), budget)]

    expected = derived(whole)
    assert len(expected) == len(whole.read_text().splitlines()) == 15
    for stop_after in (2, 8):
        with pytest.raises(Stop):
            derived(broken, stop_after)
    assert len(broken.read_text().splitlines()) == 8
    assert derived(broken) == expected
    assert broken.read_bytes() == whole.read_bytes()  # every answer once, in the same order


def test_a_search_that_was_killed_while_scoring_goes_on_there(table: Path, noise: str, tmp_path: Path) -> None:
    told: list[int] = []

    def searched(name: str, *, stop_at: int | None = None, resume: bool = False) -> None:
        def progress(what: str, done: int, total: int) -> None:
            if what == "scoring":
                assert total == 6
                told.append(done)
                if done == stop_at:
                    raise Stop

        arguments = {"num_epochs": 1, "batch_size": 8, "weight_share": 0.5, "num_samples": 6}
        space = create_space("tiny-mbconv", resolution=16, width=0.25)
        search_run(
            space, LatencyTable.load(table), tmp_path / name, data=noise, recipe="random", recipe_arguments=arguments,
            other_device=True, resume=resume, progress=progress, compute=Compute(device="cpu"),
        )  # fmt: skip

    searched("whole")
    assert told == [1, 2, 3, 4, 5, 6]
    with pytest.raises(Stop):
        searched("broken", stop_at=4)
    scores = tmp_path / "broken" / "scores.jsonl"
    assert len(scores.read_text().splitlines()) == 4
    searched("broken", resume=True)
    for file in ("scores.jsonl", "derivation.json", "architecture.json"):
        assert (tmp_path / "broken" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
