"""What was begun with some images goes on with these alone, wherever they lie."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hwnas.data import ImageData, load_data
from hwnas.data.arrays import Split, array_data
from hwnas.errors import RunError
from hwnas.run import RunFolder
from hwnas.steps import tighten_run

Run = Callable[..., Any]
Change = Callable[[Path], Any]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Ten classes, four training images and one held-out image each."""
    rng = np.random.default_rng(0)
    for number in range(10):
        for name in ("train/{}/a", "train/{}/b", "train/{}/c", "train/{}/d", "val/{}/e"):
            path = tmp_path / "images" / f"{name.format(number)}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"


def load(folder: Path, **options: Any) -> ImageData:
    return load_data(f"imagefolder:{folder}", **{"resolution": 16} | options)


CHANGES: dict[str, Change] = {
    "removed": lambda folder: (folder / "train/3/c.png").unlink(),
    "renamed": lambda folder: (folder / "train/3/c.png").rename(folder / "train/3/z.png"),
    "added": lambda folder: shutil.copy(folder / "train/3/c.png", folder / "train/5/z.png"),
    "another class": lambda folder: (folder / "train/3/c.png").rename(folder / "train/4/z.png"),
    "held out": lambda folder: (folder / "val/3/e.png").rename(folder / "val/3/z.png"),
}
changes = pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)


# --- fingerprints


@changes
def test_files_that_change_are_other_images(images: Path, change: Change) -> None:
    before = load(images).fingerprint
    assert before == load(images).fingerprint
    change(images)
    assert load(images).fingerprint != before


def test_the_same_images_treated_otherwise_are_others(images: Path) -> None:
    assert load(images).fingerprint != load(images, resolution=8).fingerprint
    half = Split(np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8), np.arange(40) % 2)
    kinds = [
        array_data(
            "mine", half, half, classes=("a", "b"), num_classes=None, resolution=resolution, flip=flip
        ).fingerprint
        for resolution, flip in ((8, False), (8, False), (8, True), (16, False))
    ]
    assert kinds[0] == kinds[1]
    assert len(set(kinds)) == 3


def test_the_same_files_elsewhere_are_the_same_images(images: Path, tmp_path: Path) -> None:
    before = load(images).fingerprint
    assert before.startswith("training 40 images (")
    assert ", held out 10 images (" in before
    images.rename(tmp_path / "elsewhere")
    assert load(tmp_path / "elsewhere").fingerprint == before


def test_parts_are_told_apart_but_not_orders(images: Path) -> None:
    data, other_order = load(images).train, load(images, seed=1).train
    assert data.name(0) != other_order.name(0)
    assert data.fingerprint == other_order.fingerprint
    parts = [data, data.subset(np.arange(20)), data.subset(np.arange(20, 40)), load(images, num_classes=5).train]
    assert len({part.fingerprint for part in parts}) == len(parts)


@pytest.mark.parametrize(
    "changed",
    [
        {"x_train": lambda x: x[:-1], "y_train": lambda y: y[:-1]},
        {"x_train": lambda x: x + np.arange(12, dtype=np.uint8).reshape(12, 1, 1)},  # but for the first
        {"x_train": lambda x: x[[*range(10), 11, 10]]},
        {"y_train": lambda y: 1 - y},
        {"x_train": lambda x: x.reshape(12, 8, 2), "x_test": lambda x: x.reshape(12, 8, 2)},
    ],
)
def test_arrays(changed: dict[str, Callable[[Any], Any]], tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 200, (12, 4, 4), dtype=np.uint8)
    arrays = {"x_train": images, "y_train": np.arange(12) % 2, "x_test": images, "y_test": np.arange(12) % 2}

    def fingerprint(name: str, arrays: dict[str, Any]) -> str:
        np.savez(tmp_path / name, **arrays)
        return load_data(f"npz:{tmp_path / name}", resolution=4).fingerprint

    before = fingerprint("one.npz", arrays)
    assert fingerprint("same.npz", arrays) == before
    assert fingerprint("other.npz", arrays | {key: edit(arrays[key]) for key, edit in changed.items()}) != before


# --- runs


@pytest.fixture
def search(hwnas: Run, small: list[str], table: Path, tmp_path: Path) -> Run:
    """Searches for one epoch into ``tmp_path / "new"``."""
    fixed = ["search", *small, "--table", table, "--epochs", 1, "--batch-size", 4, "--output", tmp_path / "new"]
    return lambda *arguments: hwnas(*fixed, *arguments)


def test_runs_go_on_with_their_images_alone(search: Run, hwnas: Run, images: Path, tmp_path: Path) -> None:
    run, spec = tmp_path / "new", f"imagefolder:{images}"
    search("--data", spec).done()
    train = ["train", run, "--epochs", 1, "--batch-size", 8]
    hwnas(*train).done()

    removed, kept = images / "train/3/c.png", tmp_path / "kept.png"
    removed.rename(kept)
    search("--data", spec, "--resume").failed(1, f"{run} was started with other images (training 40", "training 39")
    hwnas(*train).failed(
        1, "training.pt is of another training (data=training 40 images", "asked now: data=training 39"
    )
    with pytest.raises(RunError, match=r"search\.pt was made with other images \(training 40.*Restore the files"):
        tighten_run(RunFolder.open(run), 1.0)
    kept.rename(removed)

    moved = images.rename(tmp_path / "elsewhere")
    search("--data", f"imagefolder:{moved}", "--resume").done()
    assert RunFolder.open(run).config["data"] == f"imagefolder:{moved}"
    assert "top-1" in hwnas(*train).done(), "where they are now"
