"""Specs, digits, splits, batches and their parts; see also the other test_data_*.py."""

import itertools
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hwnas.data import (
    BatchStream,
    ImageData,
    ImageDataset,
    evaluation_batches,
    load_data,
    randaugment,
    split_stratified,
)
from hwnas.errors import DataError, MissingPackageError, UnknownNameError, UsageError


@pytest.fixture(scope="module")
def digits() -> ImageData:
    pytest.importorskip("sklearn", reason="digits need scikit-learn")
    return load_data("digits", resolution=8)


@pytest.fixture
def twelve(tmp_path: Path) -> ImageData:
    """12 training and 4 held-out images, 4 x 4, classes 0, 1, 0, 1 ...; image i is 10 * i everywhere."""
    images, labels = np.repeat(10 * np.arange(12, dtype=np.uint8), 16).reshape(12, 4, 4), np.arange(12) % 2
    path = tmp_path / "twelve.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images[:4], y_test=labels[:4])
    return load_data(f"npz:{path}", resolution=4)


def pixels(data: ImageData, images: torch.Tensor) -> np.ndarray:
    """Undoes the normalisation: uint8 of the same shape."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (data.mean, data.std))
    return (255 * (images * std + mean)).round().to(torch.uint8).numpy()


def everything(dataset: ImageDataset) -> torch.Tensor:
    return torch.cat([images for images, _ in evaluation_batches(dataset, 256)])


def numbers(data: ImageData, images: torch.Tensor) -> list[int]:
    """Which of the images of ``twelve`` these are."""
    return (pixels(data, images)[:, 0, 0, 0] // 10).tolist()


# --- what a spec may be


def test_unknown_data_set_is_named_with_the_nearest_known_one() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown data set 'digit'; available: cifar10.*mean 'digits'\?"):
        load_data("digit", resolution=8)


@pytest.mark.parametrize("kind", ["cifar10", "imagefolder", "imagenet", "npz"])
@pytest.mark.parametrize("colon", ["", ":"])
def test_path_is_needed(kind: str, colon: str) -> None:
    with pytest.raises(UsageError, match=f"'{kind}{colon}' lacks a path; expected '{kind}:PATH'. Add the path"):
        load_data(kind + colon, resolution=8)


@pytest.mark.parametrize(
    ("spec", "settings", "message"),
    [
        ("digits:/data", {"resolution": 8}, "'digits:/data' has a path.* Use 'digits'"),
        ("digits", {"resolution": 0}, "resolution 0 is no image size; expected 1 or more"),
        ("digits", {"resolution": 8, "seed": -1}, "seed -1 is negative; expected 0 or more"),
    ],
)
def test_wrong_arguments(spec: str, settings: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_data(spec, **settings)


@pytest.mark.parametrize("kind", ["cifar10", "imagefolder", "imagenet", "npz"])
def test_missing_path_is_named(kind: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"/absent .*expected.*(Check|Unpack)"):
        load_data(f"{kind}:{tmp_path}/absent", resolution=8)


# --- digits


def test_digits_are_all_there_and_split_by_class(digits: ImageData) -> None:
    from sklearn.datasets import load_digits

    original = load_digits()
    counts = np.bincount(original.target)
    assert digits.classes == tuple("0123456789")
    assert np.array_equal(np.bincount(digits.train.labels), np.floor(0.8 * counts + 0.5))
    assert np.array_equal(np.bincount(digits.train.labels) + np.bincount(digits.val.labels), counts)
    loaded = pixels(digits, torch.cat([everything(digits.train), everything(digits.val)]))
    expected = np.rint(original.images * 255 / 16).astype(np.uint8)
    assert (loaded == loaded[:, :1]).all(), "three equal channels"
    assert sorted(image[0].tobytes() for image in loaded) == sorted(image.tobytes() for image in expected)
    assert {0, 255} <= set(loaded.ravel().tolist()), "the full range of grey levels"


@pytest.mark.parametrize("resolution", [8, 20])
def test_digits_are_normalised_at_the_resolution(digits: ImageData, resolution: int) -> None:
    train = everything(load_data("digits", resolution=resolution).train)
    assert train.shape[1:] == (3, resolution, resolution)
    # constants are exact to double, images to float32: about 1e-7 a pixel, so 1e-5 is ample
    assert train.double().mean() == pytest.approx(0, abs=1e-5)
    assert train.double().std(correction=0) == pytest.approx(1, abs=1e-5)


def test_seed_orders_training_digits_and_nothing_else(digits: ImageData) -> None:
    same, other = (load_data("digits", resolution=8, seed=seed) for seed in (0, 1))
    assert torch.equal(everything(same.train), everything(digits.train))
    assert torch.equal(everything(other.val), everything(digits.val))
    assert not np.array_equal(other.train.labels, digits.train.labels)
    one, two = (sorted(image.numpy().tobytes() for image in everything(d.train)) for d in (digits, other))
    assert one == two
    # any prefix is a random sample: 100 images lack a class of about 10 % with probability 0.9**100
    assert set(digits.train.labels[:100]) == set(range(10))


def test_digits_are_shifted_but_never_mirrored(digits: ImageData) -> None:
    index = digits.train.labels.tolist().index(7)
    image = pixels(digits, digits.train[index][0])
    padded = np.pad(image, [(0, 0), (1, 1), (1, 1)])  # an eighth of the resolution
    shifts = {padded[:, y : y + 8, x : x + 8].tobytes() for y in range(3) for x in range(3)}
    seen = {pixels(digits, digits.train[index, seed][0]).tobytes() for seed in range(100)}
    assert seen == shifts  # one of nine is missed by 100 draws with probability below 9 * (8/9)**100 = 7e-5


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingPackageError, match=r"scikit-learn.*pip install 'hwnas\[demo\]'"):
        load_data("digits", resolution=8)


# --- items of a data set


def test_items_are_float_images_and_int_labels(twelve: ImageData) -> None:
    image, label = twelve.train[0]
    assert (image.shape, image.dtype, type(label)) == ((3, 4, 4), torch.float32, int)
    assert (len(twelve.train), twelve.train.num_classes, twelve.train.labels.dtype) == (12, 2, np.int64)
    with pytest.raises(IndexError):
        twelve.train[12]


def test_same_seed_same_bits_and_global_random_state_untouched(digits: ImageData) -> None:
    before = torch.get_rng_state()
    again = pickle.loads(pickle.dumps(digits.train))
    for seed in (0, 1, 2**64 - 1):
        assert torch.equal(digits.train[3, seed][0], again[3, seed][0])
    assert torch.equal(torch.get_rng_state(), before)


# --- splits


def test_split_is_disjoint_complete_and_keeps_proportions(digits: ImageData) -> None:
    first, second = split_stratified(digits.train, 0.5, seed=3)
    counts = np.bincount(digits.train.labels)
    assert np.array_equal(np.bincount(first.labels), (counts + 1) // 2)
    assert np.array_equal(np.bincount(second.labels), counts // 2)
    images = [image.numpy().tobytes() for part in (first, second) for image in everything(part)]
    assert sorted(images) == sorted(image.numpy().tobytes() for image in everything(digits.train))
    assert first._images is second._images is digits.train._images, "pixels are shared"


def test_split_depends_on_its_seed_and_can_be_repeated(twelve: ImageData) -> None:
    def members(seed: int) -> list[int]:
        return numbers(twelve, everything(split_stratified(twelve.train, 0.5, seed=seed)[0]))

    assert members(0) == members(0)
    assert len({tuple(members(seed)) for seed in range(5)}) > 1
    half, _ = split_stratified(twelve.train, 0.7, seed=0)  # 6 a class: 4.2 -> 4
    quarter, _ = split_stratified(half, 0.25, seed=0)  # 4 a class: 1
    assert np.bincount(quarter.labels).tolist() == [1, 1]
    assert set(numbers(twelve, everything(quarter))) < set(numbers(twelve, everything(half)))
    image, label = quarter[1, 5]
    assert (image.shape, label) == ((3, 4, 4), quarter.labels[1])


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, float("nan")])
def test_split_needs_a_fraction(fraction: float, twelve: ImageData) -> None:
    with pytest.raises(UsageError, match=f"fraction {fraction} leaves one part.*between 0 and 1.*Use"):
        split_stratified(twelve.train, fraction, seed=0)


@pytest.mark.parametrize(("fraction", "parts"), [(0.05, (0, 6)), (0.95, (6, 0))])
def test_split_that_would_lack_a_class(fraction: float, parts: tuple[int, int], twelve: ImageData) -> None:
    message = f"class '0' has 6 images.*{fraction} would put {parts[0]} into the first part and {parts[1]} into"
    with pytest.raises(DataError, match=message):
        split_stratified(twelve.train, fraction, seed=0)


# --- batches


def test_resumed_stream_continues_exactly(digits: ImageData) -> None:
    stream = BatchStream(digits.train, 100, seed=5)
    assert stream.steps_per_epoch == len(digits.train) // 100
    start = stream.steps_per_epoch - 2  # so that four batches cross into the next epoch
    whole = itertools.islice(stream.batches(0), start, start + 4)
    resumed = BatchStream(digits.train, 100, seed=5).batches(start)
    for (images, labels), (same_images, same_labels) in zip(whole, resumed, strict=False):
        assert torch.equal(images, same_images)
        assert torch.equal(labels, same_labels)


def test_every_epoch_is_a_permutation(twelve: ImageData) -> None:
    stream = BatchStream(twelve.train, 5, seed=0, augment=False)
    assert stream.steps_per_epoch == 2  # 12 images: two are left over
    batches = list(itertools.islice(stream.batches(0), 6))
    epochs = [numbers(twelve, torch.cat([images for images, _ in batches[first : first + 2]])) for first in (0, 2, 4)]
    assert all(len(set(epoch)) == 10 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    for images, labels in batches:
        assert (images.shape, labels.shape, labels.dtype) == ((5, 3, 4, 4), (5,), torch.int64)
        assert [number % 2 for number in numbers(twelve, images)] == labels.tolist()


def test_order_depends_on_the_seed_and_augmentation_on_the_epoch(digits: ImageData) -> None:
    part, _ = split_stratified(digits.train, 0.1, seed=0)
    one, two = (next(BatchStream(part, 64, seed=seed).batches(0))[1] for seed in (0, 1))
    assert not torch.equal(one, two)
    stream = BatchStream(part, len(part), seed=0)
    epochs = [images for images, _ in itertools.islice(stream.batches(0), 2)]
    first, second = ({image.numpy().tobytes() for image in images} for images in epochs)
    # each image keeps its shift with probability 1/9: most must differ
    assert len(first & second) < len(part) / 2


def test_stream_leaves_the_global_random_state_alone(digits: ImageData) -> None:
    before = torch.get_rng_state()
    next(BatchStream(digits.train, 8, seed=0).batches(0))
    next(evaluation_batches(digits.val, 8))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 13}, "batch size 13 is larger than the data set, which has 12 images.*at most 12"),
        ({"batch_size": 1}, "batch size 1 cannot be shared.*at least 2 images each, for batch-norm"),
        (
            {"batch_size": 8, "num_ranks": 3},
            r"batch size 8 cannot be shared among 3 rank\(s\); expected a multiple of 3",
        ),
        ({"batch_size": 6, "num_ranks": 6}, "batch size 6 cannot be shared among 6.*at least 2 images each"),
        (
            {"batch_size": 26, "num_ranks": 13},
            "13 ranks are more than the data set has images, 12; expected at least 2",
        ),
        ({"batch_size": 4, "rank": 2, "num_ranks": 2}, "rank 2 of 2 ranks cannot be; expected 0 <= rank < num_ranks"),
        ({"batch_size": 4, "augment": False, "extra": randaugment()}, "'extra' has no effect.*set augment=True"),
        ({"batch_size": 4, "num_workers": -1}, "num_workers -1 is negative; expected 0 or more"),
        ({"batch_size": 4, "seed": -3}, "seed -3 is negative"),
    ],
)
def test_streams_that_cannot_be(settings: dict[str, object], message: str, twelve: ImageData) -> None:
    with pytest.raises(UsageError, match=message):
        BatchStream(twelve.train, **{"seed": 0, **settings})


def test_steps_count_from_zero(twelve: ImageData) -> None:
    with pytest.raises(UsageError, match="start_step -1 is negative; batches are numbered from 0"):
        BatchStream(twelve.train, 4, seed=0).batches(-1)


def test_evaluation_is_one_ordered_pass(twelve: ImageData) -> None:
    batches = list(evaluation_batches(twelve.train, 5))
    assert [len(labels) for _, labels in batches] == [5, 5, 2]
    for index, image in enumerate(torch.cat([images for images, _ in batches])):
        assert torch.equal(image, twelve.train[index][0])
    assert torch.cat([labels for _, labels in batches]).tolist() == twelve.train.labels.tolist()
    with pytest.raises(UsageError, match="batch size 0"):
        evaluation_batches(twelve.train, 0)


# --- several ranks


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_together_see_the_batch_of_one_process(num_ranks: int, digits: ImageData) -> None:
    settings = {"seed": 2, "extra": randaugment()}
    expected = BatchStream(digits.train, 64, **settings).batches(20)
    streams = [BatchStream(digits.train, 64, rank=rank, num_ranks=num_ranks, **settings) for rank in range(num_ranks)]
    assert len({stream.steps_per_epoch for stream in streams}) == 1
    parts = zip(*(stream.batches(20) for stream in streams), strict=True)
    for (images, labels), joint in itertools.islice(zip(expected, parts, strict=False), 3):  # across an epoch of 22
        assert [len(part) for _, part in joint] == [64 // num_ranks] * num_ranks
        assert torch.equal(images, torch.cat([part for part, _ in joint]))
        assert torch.equal(labels, torch.cat([part for _, part in joint]))


def test_a_rank_reads_its_own_images_only(twelve: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    original = type(twelve.train._images).evaluation_image
    monkeypatch.setattr(
        type(twelve.train._images),
        "evaluation_image",
        lambda images, index: (read.append(index), original(images, index))[1],
    )
    next(BatchStream(twelve.train, 12, seed=0, rank=1, num_ranks=3).batches(0))
    assert len(read) == len(set(read)) == 4


@pytest.mark.parametrize("num_ranks", [1, 2, 5, 13])
def test_ranks_evaluate_every_image_once(num_ranks: int, twelve: ImageData) -> None:
    ranks = [list(evaluation_batches(twelve.train, 2, rank=rank, num_ranks=num_ranks)) for rank in range(num_ranks)]
    seen = torch.cat([images for batches in ranks for images, _ in batches])
    assert sorted(numbers(twelve, seen)) == list(range(12))
    sizes = [sum(len(labels) for _, labels in batches) for batches in ranks]
    assert max(sizes) - min(sizes) <= 1
    with pytest.raises(UsageError, match=f"rank {num_ranks} of {num_ranks} ranks cannot be"):
        evaluation_batches(twelve.train, 2, rank=num_ranks, num_ranks=num_ranks)
