"""Folders of image files, small ones made here and real ones from ../shared/data."""

import io
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from hwnas.data import BatchStream, ImageData, evaluation_batches, load_data, split_stratified
from hwnas.errors import DataError

SHARED = Path(os.environ.get("HWNAS_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as torchvision publishes them


def shared(name: str) -> Path:
    if not (SHARED / name).is_dir():
        pytest.skip(f"no {name} in {SHARED}; set HWNAS_SHARED_DATA")
    return SHARED / name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Classes ``cat`` and ``dog``, two training images and one held-out image each."""
    rng = np.random.default_rng(0)
    for name in ("train/cat/1", "train/cat/2", "train/dog/1", "train/dog/2", "val/cat/3", "val/dog/3"):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)
    return tmp_path


def image_of(folder: Path, image: Image.Image, **settings: object) -> ImageData:
    """The data set after its first held-out image was replaced by this one."""
    image.save(folder / "val/cat/3.png", **settings)
    return load_data(f"imagefolder:{folder}", resolution=16)


def normalised(image: Tensor) -> Tensor:
    return v2.functional.normalize(image.float() / 255, MEAN, STD)


# --- what is read


def test_classes_are_the_sorted_folders(folder: Path) -> None:
    (folder / "train/.hidden").mkdir()
    (folder / "train/cat/notes.txt").write_text("passed over")
    (folder / "train/list.csv").write_text("passed over")
    data = load_data(f"imagefolder:{folder}", resolution=16)
    assert data.classes == ("cat", "dog")
    assert (sorted(data.train.labels), data.val.labels.tolist()) == ([0, 0, 1, 1], [0, 1])
    assert (data.mean, data.std, data.resolution) == (MEAN, STD, 16)


def test_imagenette() -> None:
    path = shared("imagenette-112")
    data = load_data(f"imagenet:{path}", resolution=96)
    assert len(data.classes) == 10
    assert (data.classes[0], data.classes[9]) == ("n01440764", "n03888257")  # README: tench ... parachute
    assert np.bincount(data.train.labels).tolist() == [160] * 10
    assert np.bincount(data.val.labels).tolist() == [40] * 10
    stream = BatchStream(data.train, 64, seed=0)
    (images, _), (again, _) = (next(stream.batches(30)) for _ in range(2))
    assert images.shape == (64, 3, 96, 96)
    assert torch.equal(images, again)
    # photographs: a batch's mean and spread lie near ImageNet's, whose images are not these
    assert images.mean().abs() < 0.5
    assert 0.5 < images.std() < 1.5


def test_imagenet_layout_with_grey_images() -> None:
    path = shared("imagenet-layout")
    data = load_data(f"imagenet:{path}", resolution=64)
    assert np.bincount(data.train.labels).tolist() == [12] * 10
    images, labels = next(evaluation_batches(data.val, 60))
    assert labels.tolist() == [label for label in range(10) for _ in range(6)]
    assert images.isfinite().all()


def test_odd_photographs(tmp_path: Path) -> None:
    for split in ("train", "val"):  # links: nothing is copied
        (tmp_path / split).symlink_to(shared("imagenet-layout") / "one-per-class")
    data = load_data(f"imagenet:{tmp_path}", resolution=64)
    assert len(data.train) == len(data.classes) == 80
    for index in range(80):
        for image, _ in (data.train[index], data.train[index, index]):
            assert image.shape == (3, 64, 64)
            assert image.isfinite().all()
    with pytest.raises(DataError, match=r"class 'n01440764' has 1 images, of which a split with fraction 0.5"):
        split_stratified(data.train, 0.5, seed=0)


@pytest.mark.parametrize("size", [(40, 30), (30, 41), (16, 16), (3, 5), (200, 9), (9, 150)])
def test_transforms_are_torchvisions(size: tuple[int, int], folder: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    val = image_of(folder, image).val
    if max(size) <= 8 * min(size):  # longer ones are cut before they are resized
        plain = v2.Compose([v2.Resize(18), v2.CenterCrop(16), v2.PILToTensor()])  # round(16 / 0.875) = 18
        torch.testing.assert_close(val[0][0], normalised(plain(image)))
    published = v2.Compose([v2.RandomResizedCrop(16), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    for seed in range(10):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            expected = published(image)
        torch.testing.assert_close(val[0, seed][0], normalised(expected))


RED = (255, 0, 0)
SOLID: dict[str, tuple[Callable[[], Image.Image], tuple[int, int, int]]] = {
    "RGB": (lambda: Image.new("RGB", (20, 30), RED), RED),
    "grey": (lambda: Image.new("L", (20, 30), 90), (90, 90, 90)),
    "grey with alpha": (lambda: Image.new("LA", (20, 30), (90, 255)), (90, 90, 90)),
    "black and white": (lambda: Image.new("1", (20, 30), 1), (255, 255, 255)),
    "alpha": (lambda: Image.new("RGBA", (20, 30), (*RED, 255)), RED),
    "palette": (lambda: Image.new("RGB", (20, 30), RED).quantize(2), RED),
    "one pixel": (lambda: Image.new("RGB", (1, 1), RED), RED),
    "very wide": (lambda: Image.new("RGB", (30000, 2), RED), RED),
    "very high": (lambda: Image.new("RGB", (1, 500), RED), RED),
}


@pytest.mark.parametrize("kind", SOLID)
def test_modes_and_shapes_become_rgb_squares(kind: str, folder: Path) -> None:
    make, colour = SOLID[kind]
    val = image_of(folder, make()).val
    expected = normalised(torch.tensor(colour).view(3, 1, 1).expand(3, 16, 16))
    torch.testing.assert_close(val[0][0], expected)
    torch.testing.assert_close(val[0, 1][0], expected)


def test_palette_with_transparency_warns_nobody(folder: Path) -> None:
    # Pillow warns about transparency given as bytes; the suite turns warnings into errors
    image = Image.new("RGB", (20, 30), RED).quantize(2)
    val = image_of(folder, image, transparency=bytes([255, 128])).val
    torch.testing.assert_close(val[0][0][:, 0, 0], normalised(torch.tensor(RED).view(3, 1, 1)).flatten())


def test_cmyk_jpeg(folder: Path) -> None:
    (folder / "val/cat/3.png").unlink()
    Image.new("CMYK", (20, 30), (0, 255, 255, 0)).save(folder / "val/cat/3.JPEG")
    image = load_data(f"imagefolder:{folder}", resolution=16).val[0][0]
    expected = normalised(torch.tensor(RED).view(3, 1, 1)).expand(3, 16, 16)
    torch.testing.assert_close(image, expected, atol=3 / 255 / min(STD), rtol=0)  # JPEG: a few grey levels off


# --- files that cannot be read


def jpeg() -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(2).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda: jpeg()[: len(jpeg()) // 2], "truncated"),
        (lambda: b"this is text, not an image", "cannot identify"),
        (lambda: b"", "cannot identify"),
    ],
    ids=["truncated", "text", "empty"],
)
def test_unreadable_image_is_named(content: Callable[[], bytes], reason: str, folder: Path) -> None:
    path = folder / "val/dog/4.jpg"
    path.write_bytes(content())
    val = load_data(f"imagefolder:{folder}", resolution=16).val
    message = rf"image {re.escape(str(path))} cannot be read \(.*{reason}.*expected a complete 8-bit.*Replace"
    for item in (2, (2, 0)):
        with pytest.raises(DataError, match=message):
            val[item]


def test_sixteen_bit_image_is_refused_rather_than_clipped(folder: Path) -> None:
    val = image_of(folder, Image.fromarray(np.full((20, 20), 40000, np.uint16))).val
    with pytest.raises(DataError, match=r"3\.png cannot be read \(its pixels have mode I;16, expected 8 bits"):
        val[0]


# --- folders that cannot be used


def remove(path: Path) -> None:
    for file in sorted(path.rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    path.rmdir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: remove(path / "train"), "has no folder train/; expected train/ and val/.*It holds val"),
        (lambda path: remove(path / "val"), "has no folder val/; expected train/ and val/.*It holds train"),
        (
            lambda path: remove(path / "train/dog"),
            "train has one class, 'cat'; expected at least two folders",
        ),
        (
            lambda path: [remove(p) for p in (path / "train").iterdir()],
            "train has no class folders; expected",
        ),
        (lambda path: (path / "val/dog/3.png").unlink(), "val/dog has no images; expected.*jpg.*Add images"),
        (
            lambda path: (path / "val/dog").rename(path / "val/wolf"),
            "only in train/: dog; only in val/: wolf",
        ),
        (
            lambda path: (path / "val/wolf").mkdir(),
            "only in train/: none; only in val/: wolf; expected the same",
        ),
    ],
)
def test_faulty_folders(change: Callable[[Path], object], message: str, folder: Path) -> None:
    change(folder)
    with pytest.raises(DataError, match=message):
        load_data(f"imagefolder:{folder}", resolution=16)


def test_imagenet_wants_synsets(folder: Path) -> None:
    with pytest.raises(DataError, match=r"no WordNet synsets: cat, dog; .*n01440764.*use 'imagefolder:PATH'"):
        load_data(f"imagenet:{folder}", resolution=16)


def test_class_folders_without_splits() -> None:
    path = shared("imagenet-layout") / "one-per-class"
    with pytest.raises(DataError, match=r"no folder train/.*It holds n\d{8}, .* and 75 more\. Move"):
        load_data(f"imagenet:{path}", resolution=16)
