"""The state of a search, kept so that it survives a kill."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from hwnas.checkpoint import fitting_state, load_checkpoint, to_bytes
from hwnas.distributed import rank
from hwnas.errors import RunError
from hwnas.files import write_atomic
from hwnas.search.protocols import Epoch, SearchState


class Checkpoints:
    """Writes a state of rank 0 now and then, once one more step from it has gone well.

    Args:
        path: The file.
        seconds: From one to the next.
        data: Fingerprint of the images; a state of others is refused.
    """

    def __init__(self, path: Path, seconds: float, data: str) -> None:
        self._path, self._seconds, self._data, self._saved = path, seconds, data, time.monotonic()
        self._unproven: bytes | None = None

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

    def proven(self) -> None:
        """A step from the last state has gone well."""
        if self._unproven is not None:
            write_atomic(self._path, self._unproven)
            self._unproven = None

    def offer(self, state: SearchState, *, now: bool) -> None:
        """A state that may be kept, or has to be, as there will be no other."""
        if rank() == 0 and (now or time.monotonic() - self._saved > self._seconds):
            self._unproven, self._saved = to_bytes({**_snapshot(state), "data": self._data}), time.monotonic()
            if now:
                self.proven()

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
        "history": [(epoch.probabilities, epoch.figures) for epoch in state.history],
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
