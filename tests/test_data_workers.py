"""Worker processes: the same batches, one thread each, deaf to Ctrl-C, gone at the end."""

import dataclasses
import multiprocessing
import os
import signal

import pytest
import torch

from hwnas.data import BatchStream, ImageData, load_data
from hwnas.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # Python 3.12+, torch's threads


@pytest.fixture(scope="module")
def digits() -> ImageData:
    pytest.importorskip("sklearn", reason="digits need scikit-learn")
    return load_data("digits", resolution=8)


def test_same_batches_despite_ctrl_c_and_workers_end_with_the_iterator(
    digits: ImageData, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = BatchStream(digits.train, 16, seed=1).batches(40)
    batches = BatchStream(digits.train, 16, seed=1, num_workers=2).batches(40)
    for step in range(10):
        (images, labels), (same_images, same_labels) = next(batches), next(expected)
        assert torch.equal(images, same_images)
        assert torch.equal(labels, same_labels)
        if step == 2:  # both workers have read a batch, so they are past their start
            for worker in multiprocessing.active_children():
                os.kill(worker.pid or 0, signal.SIGINT)  # as a terminal does
    assert len(multiprocessing.active_children()) == 2
    batches.close()
    assert multiprocessing.active_children() == []
    assert capfd.readouterr().err == ""


@dataclasses.dataclass(frozen=True)
class InWorker:
    """Shows the number of threads as the value of every pixel; kills its process in which it is asked to."""

    kill: bool

    def __call__(self, image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        if self.kill and multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.full_like(image, torch.get_num_threads())


def test_workers_have_one_thread(digits: ImageData) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        here, there = (
            BatchStream(digits.train, 4, seed=0, extra=InWorker(kill=False), num_workers=n).batches(0) for n in (0, 1)
        )
        values = [255 * (next(batches)[0] * digits.std[0] + digits.mean[0]) for batches in (here, there)]
        there.close()
    finally:
        torch.set_num_threads(before)
    assert [float(value.mean()) for value in values] == pytest.approx([2, 1], abs=1e-3)  # float32, at most 255


def test_a_killed_worker_is_explained(digits: ImageData) -> None:
    batches = BatchStream(digits.train, 4, seed=0, extra=InWorker(kill=True), num_workers=1).batches(0)
    with pytest.raises(DataError, match=r"one of the 1 processes that prepare images was killed .*/dev/shm.*fewer"):
        next(batches)
    assert multiprocessing.active_children() == []
