"""Data sets of which only some classes are loaded."""

import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hwnas.data import ImageData, evaluation_batches, load_data
from hwnas.data.classes import chosen_classes
from hwnas.errors import DataError, UsageError

SYNSETS = [f"n{number:08}" for number in range(100, 112)]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Twelve classes; every image of class i is i everywhere."""
    for split in ("train", "val"):
        for number, name in enumerate(SYNSETS):
            (tmp_path / split / name).mkdir(parents=True)
            for copy in range(2):
                Image.new("L", (4, 4), number).save(tmp_path / split / name / f"{copy}.png")
    return f"imagenet:{tmp_path}"


def values(data: ImageData) -> dict[str, set[int]]:
    """Class -> grey levels of its images, training and held-out."""
    found: dict[str, set[int]] = {name: set() for name in data.classes}
    for part in (data.train, data.val):
        for images, labels in evaluation_batches(part, 5):
            grey = (255 * (images[:, 0, 0, 0] * data.std[0] + data.mean[0])).round().int()
            for value, label in zip(grey.tolist(), labels.tolist(), strict=True):
                found[data.classes[label]].add(value)
    return found


def test_same_classes_with_every_seed_and_fewer_are_part_of_more(folder: str) -> None:
    subsets = [load_data(folder, resolution=4, num_classes=count).classes for count in range(2, 13)]
    assert [len(classes) for classes in subsets] == list(range(2, 13))
    for fewer, more in itertools.pairwise(subsets):
        assert set(fewer) < set(more)
        assert list(more) == sorted(more)
    assert load_data(folder, resolution=4, seed=9, num_classes=5).classes == subsets[3]
    assert subsets[-1] == load_data(folder, resolution=4).classes == tuple(SYNSETS)
    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in SYNSETS}
    assert set(subsets[3]) == set(sorted(SYNSETS, key=lambda name: digests[name])[:5]), "as documented"
    # as good as random: 100 of 1000 consecutive names have a mean position of 499.5 +- 289 / sqrt(100) * 0.95
    chosen = chosen_classes([f"n{number:08}" for number in range(1000)], 100)
    assert np.mean(chosen) == pytest.approx(499.5, abs=4 * 28)


def test_images_follow_their_classes(folder: str) -> None:
    data = load_data(folder, resolution=4, num_classes=4)
    assert (len(data.train), len(data.val), data.train.num_classes) == (8, 8, 4)
    assert values(data) == {name: {SYNSETS.index(name)} for name in data.classes}


def test_folders_of_other_classes_are_not_read(folder: str) -> None:
    unused = (set(SYNSETS) - set(load_data(folder, resolution=4, num_classes=4).classes)).pop()
    for file in (Path(folder.partition(":")[2]) / "train" / unused).iterdir():
        file.unlink()
    load_data(folder, resolution=4, num_classes=4)
    with pytest.raises(DataError, match=f"{unused} has no images"):
        load_data(folder, resolution=4)


@pytest.mark.parametrize("count", [1, 13])
def test_impossible_numbers_of_classes(count: int, folder: str) -> None:
    with pytest.raises(UsageError, match=f"{count} classes cannot be taken from a data set of 12; expected 2 to 12"):
        load_data(folder, resolution=4, num_classes=count)


def test_digits() -> None:
    pytest.importorskip("sklearn", reason="digits need scikit-learn")
    whole, part = (load_data("digits", resolution=8, num_classes=count) for count in (None, 3))
    numbers = [int(name) for name in part.classes]
    for all_of_them, some in ((whole.train, part.train), (whole.val, part.val)):
        assert np.array_equal(np.bincount(some.labels), np.bincount(all_of_them.labels)[numbers])
    # the same held-out images in the same order; each part is normalised by its own training images
    expected = [whole.val[i][0] for i in np.flatnonzero(np.isin(whole.val.labels, numbers))]
    shift, scale = (np.subtract(whole.mean, part.mean) / part.std)[0], np.divide(whole.std, part.std)[0]
    found = torch.stack([part.val[i][0] for i in range(len(part.val))])
    # both come from whole grey levels by one float32 subtraction and product, a few 1e-7 of values up to 3
    torch.testing.assert_close(found, torch.stack(expected) * float(scale) + float(shift), atol=1e-5, rtol=0)


def test_arrays_without_held_out_images_of_the_classes(tmp_path: Path) -> None:
    classes = ["a", "b", "c"]
    left_out = ({0, 1, 2} - set(chosen_classes(classes, 2))).pop()
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4), dtype=np.uint8)
    arrays = {"x_train": images, "y_train": np.arange(6) % 3, "x_test": images[:1], "y_test": np.array([left_out])}
    np.savez(tmp_path / "x.npz", classes=classes, **arrays)
    assert len(load_data(f"npz:{tmp_path}/x.npz", resolution=4).val) == 1
    with pytest.raises(DataError, match=r"x\.npz has no held-out image of the 2 classes"):
        load_data(f"npz:{tmp_path}/x.npz", resolution=4, num_classes=2)
