"""What a training has reached, and how it is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hwnas.checkpoint import fitting_state, has_finite_weights, load_checkpoint, save_checkpoint
from hwnas.errors import NumericsError, RunError
from hwnas.training.optimizers import Average

Identity = Mapping[str, str | int | float | None]
"""Name -> value of everything that decides the result of a training."""


@dataclass(eq=False)
class TrainingState:
    """Changes with every step.

    Args:
        network: The weights.
        optimizer: Of them.
        average: Of them, if asked for.
        step: Steps done.
        loss_sum: Of the steps done in this epoch.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    average: Average | None
    step: int = 0
    loss_sum: float = 0.0

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated and kept."""
        return self.average.network if self.average else self.network

    def save(self, path: Path, identity: Identity) -> None:
        """Writes a checkpoint.

        Raises:
            NumericsError: A weight became NaN or infinite; the file is left as it was.
        """
        if not has_finite_weights(self.network):
            raise NumericsError(f"a weight became infinite or NaN before step {self.step}; {kept(path)}")
        save_checkpoint(
            path,
            {
                "network": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": self.average.network.state_dict() if self.average else {},
                "step": self.step,
                "loss_sum": self.loss_sum,
                "identity": dict(identity),
            },
        )

    def restore(self, path: Path, identity: Identity) -> None:
        """Goes on from a checkpoint.

        Raises:
            RunError: It cannot be read, or is of another training; names what differs.
        """
        snapshot = load_checkpoint(path)
        stored, asked = snapshot.get("identity"), dict(identity)
        if not isinstance(stored, dict):
            raise RunError(f"checkpoint {path} was written by another version of hwnas. Delete it to train anew.")
        different = [name for name in {**stored, **asked} if stored.get(name) != asked.get(name)]
        if different:
            advice = "Restore the images and their names, or delete it" if "data" in different else "Delete it"
            raise RunError(
                f"checkpoint {path} is of another training ({_listed(stored, different)}; asked now: "
                f"{_listed(asked, different)}). {advice} to train anew."
            )
        with fitting_state(path):
            self.network.load_state_dict(snapshot["network"])
            self.optimizer.load_state_dict(snapshot["optimizer"])
            if self.average:
                self.average.network.load_state_dict(snapshot["average"])
            self.step, self.loss_sum = int(snapshot["step"]), float(snapshot["loss_sum"])


def kept(path: Path) -> str:
    """What is left of a training that broke off, and what to do."""
    if not path.exists():
        return "there is no checkpoint yet. Train with a lower learning rate."
    return (
        f"the checkpoint {path} from before it is kept. Go on from it, or delete it and train with a lower "
        "learning rate."
    )


def _listed(values: Mapping[str, Any], names: list[str]) -> str:
    return ", ".join(f"{name}={values.get(name)}" for name in names)
