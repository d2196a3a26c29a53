"""Arrays in npz files, and CIFAR-10 as published."""

import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10
from torchvision.transforms import v2

from hwnas.data import ImageData, ImageDataset, evaluation_batches, load_data
from hwnas.errors import DataError

SHARED = Path(os.environ.get("HWNAS_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="module")
def cifar_npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tool = SHARED.parent / "tools" / "unpack-cifar10"
    if not tool.exists() or not (SHARED / "cifar10").is_dir():
        pytest.skip(f"no CIFAR-10 pack in {SHARED}; set HWNAS_SHARED_DATA")
    path = tmp_path_factory.mktemp("cifar") / "a.npz"
    subprocess.run([sys.executable, tool, path, "a"], check=True, capture_output=True)
    return path


def write_npz(path: Path, **changes: object) -> str:
    """An npz of 12 training and 4 test images, 4 x 4, of two classes; image i is 10 * i everywhere."""
    arrays: dict[str, object] = {
        "x_train": np.repeat(10 * np.arange(12, dtype=np.uint8), 16).reshape(12, 4, 4),
        "y_train": np.arange(12) % 2,
        "x_test": np.repeat(10 * np.arange(4, dtype=np.uint8), 16).reshape(4, 4, 4),
        "y_test": np.arange(4) % 2,
    }
    arrays.update(changes)
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return f"npz:{path}"


def pixels(data: ImageData, images: torch.Tensor) -> np.ndarray:
    """Undoes the normalisation: uint8 of the same shape."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (data.mean, data.std))
    return (255 * (images * std + mean)).round().to(torch.uint8).numpy()


def everything(dataset: ImageDataset) -> torch.Tensor:
    return torch.cat([images for images, _ in evaluation_batches(dataset, 256)])


# --- arrays


def test_cifar_arrays(cifar_npz: Path) -> None:
    data = load_data(f"npz:{cifar_npz}", resolution=32)
    assert data.classes[:3] == ("airplane", "automobile", "bird")
    assert np.bincount(data.train.labels).tolist() == [2000] * 10  # README: 2000 + 400 a class
    assert np.bincount(data.val.labels).tolist() == [400] * 10
    # README: the whole training set has these; of 20 million pixels a third is sampled
    assert data.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=0.005)
    assert data.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=0.005)
    with np.load(cifar_npz) as arrays:
        expected, labels = arrays["x_test"][:50], arrays["y_test"]
    images, _ = next(evaluation_batches(data.val, 50))
    assert np.array_equal(pixels(data, images), expected.transpose(0, 3, 1, 2))
    assert np.array_equal(data.val.labels, labels)


def test_array_augmentation_is_torchvisions(cifar_npz: Path) -> None:
    published = v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()])
    data = load_data(f"npz:{cifar_npz}", resolution=32)
    image = torch.from_numpy(pixels(data, data.train[0][0]))
    for seed in range(20):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            expected = published(image)
        assert np.array_equal(pixels(data, data.train[0, seed][0]), expected)


def test_arrays_of_another_size_are_resized(tmp_path: Path) -> None:
    spec = write_npz(tmp_path / "colour.npz", x_train=np.full((12, 4, 6, 3), (0, 50, 100), np.uint8))
    with pytest.raises(DataError, match="channel 0 of the training images has the value 0 everywhere"):
        load_data(spec, resolution=8)
    data = load_data(write_npz(tmp_path / "grey.npz"), resolution=7)
    assert (pixels(data, everything(data.val)) == 10 * np.arange(4).reshape(4, 1, 1, 1)).all()
    assert data.train[0, 1][0].shape == (3, 7, 7)


def test_statistics_of_arrays(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (12, 5, 4, 3), dtype=np.uint8)
    data = load_data(write_npz(tmp_path / "colour.npz", x_train=x), resolution=4)
    assert data.mean == pytest.approx((x / 255).mean((0, 1, 2)))
    assert data.std == pytest.approx((x / 255).std((0, 1, 2)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": None, "y_test": None}, "lacks x_test, y_test; it has x_train, y_train. Expected.*savez"),
        ({"x_train": np.zeros((12, 4, 4))}, r"x_train has dtype float64; expected uint8.*astype\('uint8'\)"),
        ({"x_train": np.zeros((12, 3, 4, 4), np.uint8)}, r"x_train has shape \(12, 3, 4, 4\).*transpose"),
        ({"x_test": np.zeros((4, 4, 4, 2), np.uint8)}, r"x_test has shape \(4, 4, 4, 2\); expected grey"),
        ({"x_test": np.zeros((4, 0, 4), np.uint8)}, r"x_test has shape \(4, 0, 4\)"),
        ({"x_test": np.zeros((0, 4, 4), np.uint8)}, "x_test is empty; expected at least one image. Save"),
        ({"y_train": np.arange(11) % 2}, "y_train has 11 labels, but x_train has 12 images.*same length"),
        ({"y_train": np.eye(2)[np.arange(12) % 2]}, r"dtype float64 and shape \(12, 2\).*argmax"),
        ({"y_test": np.array([0, 1, -1, 0])}, "y_test holds label -1; expected labels from 0"),
        ({"classes": ["a", "b"], "y_test": [0, 1, 2, 0]}, "label 2 is out of range of the 2 classes.*0 to 1"),
        ({"classes": ["a", "b", "c"]}, r"class 'c' \(label 2\) has no training image.*Add some"),
        ({"y_train": np.arange(12) % 2 + 1}, r"class '0' \(label 0\) has no training image.*from 0 without"),
        ({"y_test": np.array([0, 1, 10**9, 0])}, r"class '2' \(label 2\) has no training image"),
        ({"y_train": np.zeros(12, int), "y_test": np.zeros(4, int)}, "has one class, '0'; expected.*two"),
        ({"y_test": np.array([0, "a", 1, 1], object)}, "cannot be read .*none of them pickled.*savez"),
    ],
)
def test_faulty_arrays(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    spec = write_npz(tmp_path / "faulty.npz", **changes)
    with pytest.raises(DataError, match=rf"faulty\.npz.*{message}"):
        load_data(spec, resolution=4)


@pytest.mark.parametrize("keep", [0.0, 0.5, None], ids=["empty", "cut in half", "text"])
def test_not_an_npz_file(keep: float | None, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    spec = write_npz(path)
    whole = path.read_bytes()
    path.write_bytes(b"no arrays here" if keep is None else whole[: int(keep * len(whole))])
    with pytest.raises(DataError, match=r"x\.npz is not an npz file. Write one with numpy.savez\(path, x_train="):
        load_data(spec, resolution=4)


def test_damaged_npz_file(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    spec = write_npz(path)
    content = bytearray(path.read_bytes())
    content[200] ^= 0xFF  # inside the first array: its header takes 128 bytes, its pixels 192
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.npz cannot be read \(.*CRC.*\).*Write it again"):
        load_data(spec, resolution=4)


# --- CIFAR-10 as published


@pytest.fixture
def cifar_folder(cifar_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The official layout with 20 images a batch; torchvision is told the checksums of these files."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()

    def write(name: str, content: dict[str, object]) -> str:
        # Python 2 wrote False and True as the numbers 0 and 1, about which NumPy 2.4.0 to 2.4.4 warn
        raw = pickle.dumps(content, protocol=2).replace(b"\x89\x88\x87", b"K\x00K\x01\x87")
        (folder / name).write_bytes(raw)
        return hashlib.md5(raw).hexdigest()

    with np.load(cifar_npz) as arrays:
        x, y, classes = arrays["x_train"][:120], arrays["y_train"][:120], arrays["classes"].tolist()
    flat = x.transpose(0, 3, 1, 2).reshape(6, 20, 3072)
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    parts = zip(names, flat, y.reshape(6, 20).tolist(), strict=True)
    sums = [[name, write(name, {"data": data, "labels": labels})] for name, data, labels in parts]
    monkeypatch.setattr(CIFAR10, "train_list", sums[:5])
    monkeypatch.setattr(CIFAR10, "test_list", sums[5:])
    meta = {"filename": "batches.meta", "key": "label_names"}
    monkeypatch.setattr(CIFAR10, "meta", {**meta, "md5": write("batches.meta", {"label_names": classes})})
    return folder


def test_official_cifar_files(cifar_folder: Path, cifar_npz: Path) -> None:
    with np.load(cifar_npz) as arrays:
        expected = arrays["x_train"][100:120].transpose(0, 3, 1, 2)
    for path in (cifar_folder, cifar_folder.parent):
        data = load_data(f"cifar10:{path}", resolution=32)
        assert (len(data.train), len(data.val), data.classes[9]) == (100, 20, "truck")
        assert np.array_equal(pixels(data, everything(data.val)), expected)
        assert (data.mean, data.std) == ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


def test_damaged_cifar_files(cifar_folder: Path) -> None:
    with (cifar_folder / "data_batch_3").open("ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match=r"cifar-10-batches-py is incomplete or damaged.*checksum.*Unpack https"):
        load_data(f"cifar10:{cifar_folder}", resolution=32)


def test_absent_cifar_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no folder cifar-10-batches-py; expected the official python"):
        load_data(f"cifar10:{tmp_path}", resolution=32)
