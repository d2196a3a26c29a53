"""A few image files that cannot be read are left out; many end the run. Real files, real workers."""

import itertools
import json
import logging
import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hwnas.deploy.report.data import collect
from PIL import Image

from hwnas.data import BatchStream, ImageData, ImageDataset, evaluation_batches, load_data, split_stratified
from hwnas.errors import DataError
from hwnas.run import RunFolder

forks = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # Python 3.12+, torch's threads
NUM_IMAGES = 1000  # of which one, 0.1 %, may be unreadable


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1000 training images of two classes, each of one colour, all different; and one held-out image a class."""
    folder = tmp_path_factory.mktemp("intact")
    for number in range(NUM_IMAGES):
        path = folder / f"train/{number % 2}/{number:03}.ppm"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number % 256, number // 256, 0)).save(path)
    for name in ("0", "1"):
        (folder / "val" / name).mkdir(parents=True)
        shutil.copy(folder / f"train/{name}/00{name}.ppm", folder / "val" / name)
    return folder


def damaged(intact: Path, folder: Path, *numbers: int) -> ImageData:
    """The data set, of which some training images hold text."""
    shutil.copytree(intact, folder, copy_function=lambda source, target: Path(target).hardlink_to(source))
    for number in numbers:
        path = folder / f"train/{number % 2}/{number:03}.ppm"
        path.unlink()
        path.write_text("text")
    return load_data(f"imagefolder:{folder}", resolution=4)


def numbers(data: ImageData, images: torch.Tensor) -> list[int]:
    """Which images these are; cropping and mirroring leave their colour alone."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (data.mean, data.std))
    red, green, _ = (255 * (images * std + mean)).round().int()[:, :, 0, 0].T.tolist() or ([], [], [])
    return [r + 256 * g for r, g in zip(red, green, strict=True)]


def epoch(data: ImageData, stream: BatchStream) -> list[list[int]]:
    """The images of every batch of the first epoch, and that their labels fit."""
    found = []
    for images, labels in itertools.islice(stream.batches(0), stream.steps_per_epoch):
        found.append(numbers(data, images))
        assert [number % 2 for number in found[-1]] == labels.tolist()
    return found


@forks
@pytest.mark.parametrize("num_workers", [0, 2])
def test_one_file_is_left_out_and_named_once(
    num_workers: int, intact: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, whole = damaged(intact, tmp_path / "data", 123), load_data(f"imagefolder:{intact}", resolution=4)
    found = epoch(data, BatchStream(data.train, 50, seed=1, num_workers=num_workers))
    expected = epoch(whole, BatchStream(whole.train, 50, seed=1))
    assert found == [[number for number in batch if number != 123] for batch in expected]
    assert sorted(map(len, found)) == [49] + [50] * 19
    everything = evaluation_batches(data.train, 300, num_workers=num_workers)
    assert sum(len(labels) for _, labels in everything) == NUM_IMAGES - 1
    assert len(data.train.unreadable) == len(split_stratified(data.train, 0.5, seed=0)[0].unreadable) == 1
    (record,) = caplog.records  # of two passes
    assert (record.name, record.levelno) == ("hwnas", logging.WARNING)
    assert f"image {tmp_path}/data/train/1/123.ppm cannot be read (cannot identify" in record.getMessage()
    assert "Replace the file or remove it" in record.getMessage()


@forks
@pytest.mark.parametrize("num_workers", [0, 1])
def test_more_than_one_in_a_thousand_end_the_run(num_workers: int, intact: Path, tmp_path: Path) -> None:
    data = damaged(intact, tmp_path / "data", 7, 900)
    stream = BatchStream(data.train, 100, seed=0, num_workers=num_workers)
    with pytest.raises(DataError, match=r"^2 of 1000 images cannot be read, expected at most 0.1%: ") as caught:
        for _ in itertools.islice(stream.batches(0), 10):
            pass
    for part in (
        "train/1/007.ppm",
        "train/0/900.ppm",
        "of the same names and go on",
        "or remove them",
        "check the disk",
    ):
        assert part in str(caught.value)
    assert " more. " not in str(caught.value)
    assert multiprocessing.active_children() == [], "although the traceback holds on to the iterator"


def test_the_list_of_many_is_cut(intact: Path, tmp_path: Path) -> None:
    data = damaged(intact, tmp_path / "data", *range(25))
    with pytest.raises(DataError, match=r"^25 of 1000 images .*\.ppm and 5 more\. Replace") as caught:
        next(evaluation_batches(data.train, NUM_IMAGES))
    assert str(caught.value).count(".ppm") == 20


def test_a_batch_of_fewer_than_two_is_replaced_by_the_next(intact: Path, tmp_path: Path) -> None:
    """So that a step is the same step on resume, and every rank has a batch for it."""
    data = damaged(intact, tmp_path / "data", 500)

    def of_rank(data: ImageData, rank: int) -> BatchStream:
        return BatchStream(data.train, 4, seed=0, rank=rank, num_ranks=2)

    whole = load_data(f"imagefolder:{intact}", resolution=4)
    expected = [epoch(whole, of_rank(whole, rank)) for rank in range(2)]
    rank, step = next((r, s) for r in range(2) for s in range(250) if 500 in expected[r][s])
    expected[rank][step] = expected[rank][step + 1]
    assert [epoch(data, of_rank(data, r)) for r in range(2)] == expected
    resumed = of_rank(data, rank).batches(step)
    assert [numbers(data, images) for images, _ in itertools.islice(resumed, 2)] == expected[rank][step : step + 2]


def test_an_empty_batch_of_an_evaluation_is_passed_over(intact: Path, tmp_path: Path) -> None:
    data = damaged(intact, tmp_path / "data", 123)
    position = next(i for i in range(NUM_IMAGES) if data.train.name(i).endswith("/123.ppm"))
    around: ImageDataset = data.train.subset(np.arange(max(0, position - 2), min(NUM_IMAGES, position + 3)))
    batches = list(evaluation_batches(around, 1))
    assert [len(labels) for _, labels in batches] == [1] * (len(around) - 1)


# --- runs

TEN = 10  # classes, as many as the run has


@pytest.fixture(scope="module")
def ten_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1000 training images of ten classes, each of one colour, all different; and two held-out images a class."""
    folder = tmp_path_factory.mktemp("ten")
    for number in range(NUM_IMAGES):
        for path in (f"train/{number % TEN}", *([f"val/{number % TEN}"] if number < 2 * TEN else [])):
            (folder / path).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (number % 256, number // 256, 0)).save(folder / path / f"{number:03}.ppm")
    return folder


def test_what_was_left_out_is_said_at_the_end_and_kept(
    ten_classes: Path,
    hwnas: Callable[..., Any],
    small: list[str],
    table: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(ten_classes, folder, copy_function=lambda source, target: Path(target).hardlink_to(source))
    (folder / "train/3/123.ppm").unlink()
    (folder / "train/3/123.ppm").write_text("text")
    given = ["--data", f"imagefolder:{folder}", "--epochs", 1, "--batch-size", 250, "--device", "cpu"]
    search = ["search", *small, "--table", table, "--recipe", "snas", "--output", run]
    for command in (search, ["train", run]):
        caplog.clear()
        hwnas(*command, *given).done()
        said = [record.getMessage() for record in caplog.records if "left out." in record.getMessage()]
        assert said[1:] == ["1 of 1020 images was left out."], "after the warning that names it"
    for name in ("derivation.json", "training.json"):
        assert json.loads((run / name).read_text())["num_unreadable"] == 1
    assert {
        "The search left out 1 image that could not be read.",
        "The training left out 1 image that could not be read.",
    } <= {*collect(RunFolder.open(run))["notes"]}


# --- ranks


@pytest.fixture(scope="module")
def read_by(ten_classes: Path) -> list[list[set[int]]]:
    """The images that each of two ranks reads in each of two epochs of a training."""
    data, found = load_data(f"imagefolder:{ten_classes}", resolution=4), []
    for rank in (0, 1):
        stream = BatchStream(data.train, 500, seed=0, rank=rank, num_ranks=2)
        read = [set(numbers(data, images)) for images, _ in itertools.islice(stream.batches(0), 4)]
        found.append([read[0] | read[1], read[2] | read[3]])
    return found


@pytest.mark.distributed
@pytest.mark.parametrize("case", ["one each", "two on one rank", "the same in turn", "held out"])
def test_the_limit_holds_for_all_ranks_together(
    case: str,
    ten_classes: Path,
    read_by: list[list[set[int]]],
    run: Path,
    start_ranks: Callable[..., list[Any]],
    tmp_path: Path,
) -> None:
    (first, _), (other, other_later) = read_by
    folder = tmp_path / "data"
    shutil.copytree(ten_classes, folder, copy_function=lambda source, target: Path(target).hardlink_to(source))
    broken = {
        "one each": [min(first), min(other)],
        "two on one rank": sorted(other)[:2],
        "the same in turn": [min(first & other_later)],
        "held out": [3],
    }[case]
    for number in broken:
        path = folder / ("val" if case == "held out" else "train") / f"{number % TEN}" / f"{number:03}.ppm"
        path.unlink()
        path.write_text("text")
    command = ["train", run, "--data", f"imagefolder:{folder}", "--epochs", 2, "--batch-size", 500, "--device", "cpu"]
    ended = [rank.end() for rank in start_ranks(*command)]
    if case == "the same in turn":
        assert [code for code, _ in ended] == [0, 0], "one file is one, whoever finds it"
        return
    of = "1 of 20" if case == "held out" else "2 of 1000"
    for code, words in ended:
        assert code == 1
        assert f"error: {of} images cannot be read, expected at most 0.1%: " in words
        assert all(f"{number:03}.ppm" in words.partition("error: ")[2] for number in broken)
    assert "".join(words for _, words in ended).count("Until then it is left out") == len(broken)
