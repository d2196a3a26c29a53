"""Image files that cannot be read: named once, counted, and refused when they are many."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from hwnas.distributed import any_rank, gathered
from hwnas.errors import DataError

LOGGER = logging.getLogger("hwnas")
MAX_SHARE = 0.001
"""Share of unreadable images above which a data set is refused: a damaged disk, not a few damaged files."""
NUM_LISTED = 20


class UnreadableImages:
    """The images of a data set that could not be read so far: by this process and its workers, and by other ranks.

    Args:
        num_images: Images in the data set.
    """

    def __init__(self, num_images: int) -> None:
        self.num_images = num_images
        self._names: dict[str, None] = {}  # a dictionary keeps the order of discovery
        self._untold = False

    def __len__(self) -> int:
        return len(self._names)

    def add(self, found: Mapping[str, str]) -> None:
        """Warns about images that are new here; one that was added before has no effect.

        Args:
            found: Name of an image -> why it cannot be read, and what to do.
        """
        for name, message in found.items():
            if name not in self._names:
                LOGGER.warning("%s Until then it is left out.", message)
                self._names[name] = None
                self._untold = True

    @property
    def too_many(self) -> bool:
        """Whether more than ``MAX_SHARE`` of the images cannot be read."""
        return len(self) > MAX_SHARE * self.num_images

    def tell(self) -> None:
        """Joins what all ranks have found, each image once; all ranks must call it at the same time."""
        if any_rank(self._untold):
            self._names = {name: None for names in gathered([*self._names]) for name in names}
            self._untold = False

    def check(self) -> None:
        """Ends the work where too many images are known.

        Raises:
            DataError: More than ``MAX_SHARE`` of the images cannot be read; lists them.
        """
        if self.too_many:
            more = f" and {len(self) - NUM_LISTED} more" if len(self) > NUM_LISTED else ""
            raise DataError(
                f"{len(self)} of {self.num_images} images cannot be read, expected at most {MAX_SHARE:.1%}: "
                f"{', '.join([*self._names][:NUM_LISTED])}{more}. Replace them by "
                "readable ones of the same names and go on, or remove them and choose another output; the warnings "
                "before this say what is wrong with each. If many are good elsewhere, check the disk or copy the data "
                "set again."
            )
