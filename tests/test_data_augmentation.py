"""RandAugment and the place where it, or any other augmentation, is applied."""

import pickle
import random

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from hwnas.data import BatchStream, ImageData, load_data, randaugment
from hwnas.errors import UsageError


@pytest.fixture(scope="module")
def digits() -> ImageData:
    pytest.importorskip("sklearn", reason="digits need scikit-learn")
    return load_data("digits", resolution=16)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


NOISE = torch.randint(256, (3, 12, 10), generator=generator(0)).to(torch.uint8)


def test_randaugment_is_torchvisions() -> None:
    for seed in range(30):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**63 - 1, (), generator=generator(seed))))
            expected = v2.RandAugment(num_ops=3, magnitude=11)(NOISE)
        found = randaugment(num_ops=3, magnitude=11)(NOISE, generator(seed))
        assert torch.equal(found, expected)
        assert (found.shape, found.dtype) == (NOISE.shape, torch.uint8)


def test_randaugment_leaves_global_generators_alone_and_ignores_them() -> None:
    def states() -> list[object]:
        return [torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())]

    augment = randaugment()
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = states()
        results.append([augment(NOISE, generator(i)) for i in range(20)])
        assert states() == before
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_randaugment_changes_most_images_and_more_so_with_a_larger_magnitude() -> None:
    def change(magnitude: int) -> list[float]:
        augment = randaugment(num_ops=1, magnitude=magnitude)
        return [float((augment(NOISE, generator(i)).float() - NOISE).abs().mean()) for i in range(200)]

    # of 14 operations, only identity, or posterise, solarise and translate at a small magnitude, change nothing
    assert sum(value > 0 for value in change(15)) > 100
    assert np.mean(change(3)) < np.mean(change(15)) < np.mean(change(30))
    assert randaugment() == randaugment(num_ops=2, magnitude=9)


@pytest.mark.parametrize(("num_ops", "magnitude"), [(0, 9), (2, -1), (2, 31)])
def test_randaugment_out_of_range(num_ops: int, magnitude: int) -> None:
    with pytest.raises(
        UsageError, match=f"with {num_ops} operations of magnitude {magnitude} is not possible.*0 to 30"
    ):
        randaugment(num_ops=num_ops, magnitude=magnitude)


class Inverted:
    """Also checks what it is given: grey digits in three channels."""

    def __call__(self, image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        assert (image.shape, image.dtype) == ((3, 16, 16), torch.uint8)
        assert image.is_contiguous()
        return 255 - image


def test_it_comes_after_the_standard_augmentation_and_before_normalisation(digits: ImageData) -> None:
    plain, labels = next(BatchStream(digits.train, 32, seed=3).batches(5))
    inverted, same_labels = next(BatchStream(digits.train, 32, seed=3, extra=Inverted()).batches(5))
    # v -> 255 - v is x -> (1 - 2 mean) / std - x after normalisation; float32 of values up to 3
    torch.testing.assert_close(inverted, (1 - 2 * digits.mean[0]) / digits.std[0] - plain, atol=1e-5, rtol=0)
    assert torch.equal(labels, same_labels)


def test_same_seed_same_bits_after_pickling_and_evaluation_is_untouched(digits: ImageData) -> None:
    augmented = digits.train.augmented_by(randaugment(magnitude=20))
    again = pickle.loads(pickle.dumps(augmented))
    for seed in range(5):
        assert torch.equal(augmented[3, seed][0], again[3, seed][0])
    assert any(not torch.equal(augmented[3, seed][0], digits.train[3, seed][0]) for seed in range(5))
    assert torch.equal(augmented[3][0], digits.train[3][0])
