"""Augmentation on top of the standard one of a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hwnas.errors import UsageError

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
"""From a uint8 image ``(3, H, W)`` and the generator of this image to another of the same shape and type.

Runs in the workers, so it must be picklable; it must draw from the generator alone.
"""

NUM_MAGNITUDES = 31


@dataclass(frozen=True)
class RandAugment:
    """A few random operations (shear, rotate, posterise, contrast, ...) on every image; see ``randaugment``.

    Args:
        num_ops: Operations on each image, one after the other; at least 1.
        magnitude: Their strength, 0 to 30.

    Raises:
        UsageError: A value is out of range.
    """

    num_ops: int
    magnitude: int

    def __post_init__(self) -> None:
        if self.num_ops < 1 or not 0 <= self.magnitude < NUM_MAGNITUDES:
            raise UsageError(
                f"RandAugment with {self.num_ops} operations of magnitude {self.magnitude} is not possible; expected "
                f"at least 1 operation and a magnitude of 0 to {NUM_MAGNITUDES - 1}. Use for example 2 and 9."
            )
        import torchvision.transforms.v2  # noqa: F401 - takes seconds: once here, not in every worker

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """The image after the operations: uint8, the same shape."""
        from torchvision.transforms import v2

        seed = int(torch.randint(2**63 - 1, (), generator=generator))
        transform = v2.RandAugment(self.num_ops, self.magnitude, NUM_MAGNITUDES)
        # torchvision draws from the global generator of the CPU; torch.manual_seed would also seed the GPUs'
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            result: Tensor = transform(image)
        return result


@dataclass(frozen=True)
class Cutout:
    """Cuts a square out of every image, around a random pixel; what lies beyond the border is lost.

    Args:
        size: Side of the square, in pixels; at least 1.
        colour: Red, green and blue of what is left there, from 0 to 1; the data's mean is 0 once normalised.

    Raises:
        UsageError: The size is below 1.

    Source:
        DeVries and Taylor, arXiv 1708.04552, section 3. Differs: the mean is rounded to 8 bits.
    """

    size: int
    colour: tuple[float, float, float]

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UsageError(f"a square of {self.size} pixels cannot be cut out. Use for example 16.")

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """The image with the square: uint8, the same shape."""
        image = image.clone()
        spans = []
        for length in image.shape[1:]:
            start = int(torch.randint(length, (), generator=generator)) - self.size // 2
            spans.append(slice(max(0, start), max(0, start + self.size)))
        image[:, spans[0], spans[1]] = (255 * torch.tensor(self.colour)).round().to(torch.uint8).view(3, 1, 1)
        return image


@dataclass(frozen=True)
class InTurn:
    """Augmentations one after the other, with one generator.

    Args:
        operations: In order.
    """

    operations: tuple[Augmentation, ...]

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """The image after all of them."""
        for operation in self.operations:
            image = operation(image, generator)
        return image


def randaugment(*, num_ops: int = 2, magnitude: int = 9) -> Augmentation:
    """RandAugment, for ``BatchStream(..., extra=randaugment())``.

    Args:
        num_ops: Operations on each image, one after the other; at least 1.
        magnitude: Their strength, 0 to 30.

    Raises:
        UsageError: A value is out of range.

    Example:
        >>> import torch
        >>> image = torch.arange(3 * 8 * 8, dtype=torch.uint8).view(3, 8, 8)
        >>> augment = randaugment(num_ops=2, magnitude=9)
        >>> one, same = (augment(image, torch.Generator().manual_seed(5)) for _ in range(2))
        >>> torch.equal(one, same), one.shape, one.dtype
        (True, torch.Size([3, 8, 8]), torch.uint8)

    Source:
        Cubuk et al., arXiv 1909.13719. Operations, their ranges in 31 steps, and the defaults 2 and 9 are those
        of torchvision's ``v2.RandAugment``.
    """
    return RandAugment(num_ops, magnitude)
