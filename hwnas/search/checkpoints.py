"""The state of a search, kept so that it survives a kill."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from hwnas.checkpoint import fitting_state, has_finite_weights, load_checkpoint, save_checkpoint, to_bytes
from hwnas.distributed import any_rank, rank
from hwnas.errors import NumericsError, RunError
from hwnas.files import write_atomic
from hwnas.search.protocols import Epoch, SearchState


class Checkpoints:
    """Writes a state of rank 0 now and then, once one more step from it has gone well.

    Args:
        path: The file.
        seconds: From one to the next.
        data: Fingerprint of the images; a state of others is refused.
        reach: The state at the end of every epoch is kept in a file of its own, beside the other, for as long as a
            search that goes on from that one may go back so many epochs; none is kept if None.
    """

    def __init__(self, path: Path, seconds: float, data: str, *, reach: int | None = None) -> None:
        self._path, self._seconds, self._data, self._saved = path, seconds, data, time.monotonic()
        self._reach, self._epochs = reach, 0
        self._unproven: tuple[bytes, int] | None = None

    def restore(self, state: SearchState) -> None:
        """Goes on from the file, if there is one.

        Raises:
            RunError: It cannot be read, or is of another space or of other images; says which.
        """
        if self._path.exists():
            snapshot = load_checkpoint(self._path, "space")
            self._check(snapshot, state.supernet.space.fingerprint)
            with fitting_state(self._path):
                _restore(state, snapshot)
        self._epochs = len(state.history)

    def proven(self) -> None:
        """A step from the last state has gone well."""
        if self._unproven is not None:
            snapshot, epochs = self._unproven
            write_atomic(self._path, snapshot)
            self._unproven = None
            self._forget(epochs - (self._reach or 0))

    def offer(self, state: SearchState, *, now: bool) -> None:
        """A state that may be kept, or has to be, as there will be no other.

        Raises:
            NumericsError: It has to be, and a weight is NaN or infinite; the file is left as it was.
        """
        if now and not has_finite_weights(state.supernet):
            raise NumericsError(f"a weight became infinite or NaN before step {state.step}")
        epochs = len(state.history)
        if rank() == 0 and self._reach is not None and epochs > self._epochs:
            write_atomic(self._of_epoch(epochs), to_bytes({**_snapshot(state), "data": self._data}))
        self._epochs = epochs
        if rank() == 0 and (now or time.monotonic() - self._saved > self._seconds):
            self._unproven = to_bytes({**_snapshot(state), "data": self._data}), epochs
            self._saved = time.monotonic()
            if now:
                self.proven()

    def roll_back(self, epoch: int, weight_decay: float) -> None:
        """Makes the state at the end of an epoch the one to go on from, but for the weight decay and older figures.

        Args:
            epoch: Its number, from 1.
            weight_decay: Of the weight optimizer from there on.

        Raises:
            RunError: The state is not there.
        """
        if rank() == 0:
            snapshot = load_checkpoint(self._of_epoch(epoch), "history", "weight_optimizer")
            *before, last = snapshot["history"]
            snapshot["history"] = [*((each[0], {}, *each[2:]) for each in before), last]
            for group in snapshot["weight_optimizer"]["param_groups"]:
                group["weight_decay"] = weight_decay
            save_checkpoint(self._path, snapshot)
        any_rank(False)  # the others wait until it is there

    def finish(self) -> None:
        """No search will go back any more."""
        self._forget(self._epochs + 1)

    def _forget(self, before: int) -> None:
        for path in self._path.parent.glob(f"{self._path.stem}-epoch*.pt") if self._reach is not None else ():
            if rank() == 0 and int(path.stem.rpartition("epoch")[2]) < before:
                path.unlink()

    def _of_epoch(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.stem}-epoch{number}.pt")

    def _check(self, snapshot: dict[str, Any], space: str) -> None:
        if snapshot["space"] != space:
            raise RunError(
                f"checkpoint {self._path.name} is of another space ({snapshot['space']}, here {space}). "
                "Choose another output."
            )
        if "data" not in snapshot:
            raise RunError(f"checkpoint {self._path} was written by another version of hwnas. Choose another output.")
        if snapshot["data"] != self._data:
            raise RunError(
                f"checkpoint {self._path} was made with other images ({snapshot['data']}) than are here "
                f"({self._data}). Restore the files and their names as they were, or choose another output."
            )


def _snapshot(state: SearchState) -> dict[str, Any]:
    return {
        "space": state.supernet.space.fingerprint,
        "supernet": state.supernet.state_dict(),
        "logits": {name: logit.detach() for name, logit in state.logits.items()},
        "weight_optimizer": state.weight_optimizer.state_dict(),
        "arch_optimizer": state.arch_optimizer.state_dict(),
        "step": state.step,
        "arch_batches": state.arch_batches,
        "scalars": state.scalars,
        "candidates": dict(state.candidates),
        "history": [(epoch.probabilities, epoch.figures, epoch.within) for epoch in state.history],
    }


def _restore(state: SearchState, snapshot: dict[str, Any]) -> None:
    state.supernet.load_state_dict(snapshot["supernet"])
    for choice, values in snapshot["logits"].items():
        state.logits[choice].data.copy_(values)
    state.weight_optimizer.load_state_dict(snapshot["weight_optimizer"])
    state.arch_optimizer.load_state_dict(snapshot["arch_optimizer"])
    state.step, state.arch_batches = snapshot["step"], snapshot["arch_batches"]
    state.scalars, state.candidates = dict(snapshot["scalars"]), dict(snapshot["candidates"])
    state.history = [Epoch(*each) for each in snapshot["history"]]
