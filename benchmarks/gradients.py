"""Which way do the logits move? Every relaxation's gradient against what the options really do to the loss.

    python benchmarks/gradients.py --space nas-bench-macro --data npz:cifar10.npz --weights SUPERNET/search.pt

The effect of an option is what a linear fit says about it: losses of paths drawn uniformly, on images that trained no
weights, against the options on them. Where paths are uniform, the gradient of the expected loss with respect to the
logits is that effect, up to a factor. A relaxation's own gradient at the same point is averaged over ``--steps``
batches. Printed are its correlation with the effects; the size of the mean against the spread of one step, which says
how many steps it takes to hear it; and what a step costs. ``--weights`` is the ``search.pt`` of a search of the space,
best with ``--recipe spos``, whose paths are uniform.
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lines import Lines
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import hwnas
from hwnas.checkpoint import load_checkpoint
from hwnas.data import BatchStream, load_data, split_stratified
from hwnas.search.protocols import Relaxation
from hwnas.search.relaxations import (
    BinaryGates,
    Categorical,
    Concrete,
    Softmax,
    StraightThroughGumbel,
    UniformPath,
)
from hwnas.supernet.gates import Gates, detached
from hwnas.supernet.mixed_op import frozen_batchnorm
from hwnas.supernet.supernet import Supernet

RELAXATIONS: dict[str, Relaxation] = {
    "softmax": Softmax(),
    "concrete, tau 1": Concrete(1.0),
    "straight-through Gumbel, tau 1": StraightThroughGumbel(1.0),
    "straight-through Gumbel, tau 10": StraightThroughGumbel(10.0),
    "the same with others added": StraightThroughGumbel(10.0, added=True),
    "binary gates, two paths": BinaryGates("two"),
    "binary gates, all probed": BinaryGates("all"),
    "score function": Categorical(),
}
WEIGHT_SHARE = 0.9
NUM_BATCHES = 100
"""Different batches, which take turns."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="nas-bench-macro")
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--resolution", type=int, help="that of the space if not given")
    parser.add_argument("--seed", type=int, default=0, help="of the search that trained the weights")
    parser.add_argument("--paths", type=int, default=1200, help="random paths behind the effects")
    parser.add_argument("--steps", type=int, default=200, help="of every relaxation")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="also write there")
    arguments = parser.parse_args()
    say = Lines(arguments.output)
    say(f"{datetime.date.today()} {arguments}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    probe = prepared(arguments)
    effects, halves, explained = probe.effects(arguments.paths)
    say(f"effects: {100 * explained:.0f} % of the losses' variance; halves of the paths correlate at {halves:.2f}")
    for name, relaxation in RELAXATIONS.items():
        started = time.perf_counter()
        gradients = probe.gradients(relaxation, arguments.steps)
        seconds = (time.perf_counter() - started) / arguments.steps
        mean, spread = gradients.mean(0), np.sqrt(gradients.var(0).sum())
        say(
            f"{name:32s} correlation {np.corrcoef(mean, effects)[0, 1]:+.2f}, signal to noise of a step "
            f"{np.linalg.norm(mean) / spread:.3f}, {seconds:.3f} s a step"
        )


@dataclass(frozen=True)
class Probe:
    """A trained supernet at uniform probabilities.

    Args:
        supernet: In training mode; its statistics stay as they are.
        batches: Images that trained no weights, with labels.
        logits: All zero.
        generator: Of the gates.
    """

    supernet: Supernet
    batches: Sequence[tuple[Tensor, Tensor]]
    logits: dict[str, nn.Parameter]
    generator: torch.Generator

    def effects(self, num_paths: int) -> tuple[np.ndarray, float, float]:
        """Loss of every option beyond the mean of its choice, how well two halves agree, and the share explained."""
        rows, losses = [], []
        for number in range(num_paths):
            gates = self.drawn(UniformPath())
            options = [np.eye(len(gate.weights))[gate.active[0]] for gate in gates.values()]
            rows.append(np.concatenate([*options, np.eye(len(self.batches))[number % len(self.batches)]]))
            losses.append(float(self.loss(gates, number)))
        design, measured = np.asarray(rows), np.asarray(losses)
        fitted = np.linalg.lstsq(design, measured, rcond=None)[0]
        one, other = (
            self.centred(np.linalg.lstsq(design[part::2], measured[part::2], rcond=None)[0]) for part in (0, 1)
        )
        explained = 1 - np.var(measured - design @ fitted) / np.var(measured)
        return self.centred(fitted), float(np.corrcoef(one, other)[0, 1]), float(explained)

    def gradients(self, relaxation: Relaxation, num_steps: int) -> np.ndarray:
        """Gradient of the loss with respect to all logits, by step; the score function's has the mean as baseline."""
        found, losses, scores = [], [], []
        for number in range(num_steps):
            gates = self.drawn(relaxation)
            if relaxation.differentiable:
                found.append(self.through_gates(gates, number))
            else:
                losses.append(float(self.loss(gates, number)))
                log_prob = torch.stack([gate.log_prob for gate in gates.values() if gate.log_prob is not None]).sum()
                scores.append(flat(torch.autograd.grad(log_prob, list(self.logits.values()))))
        if scores:
            return (np.asarray(losses) - np.mean(losses))[:, None] * np.asarray(scores)
        return np.asarray(found)

    def through_gates(self, gates: Gates, number: int) -> np.ndarray:
        """One step's gradient along the weights of the gates."""
        batch = self.batches[number % len(self.batches)]
        leaves = detached(gates, batch[0].device, requires_grad=True)
        with frozen_batchnorm(self.supernet):
            loss = cross_entropy(self.supernet(batch[0], leaves), batch[1])
            of_gates = torch.autograd.grad(loss, [leaf.weights for leaf in leaves.values()])
        weights = [gate.weights for gate in gates.values()]
        given = [gradient.cpu() for gradient in of_gates]
        return flat(torch.autograd.grad(weights, list(self.logits.values()), given))

    def drawn(self, relaxation: Relaxation) -> Gates:
        """Gates of one pass."""
        return relaxation(self.logits, progress=0.0, generator=self.generator)

    @torch.no_grad()
    def loss(self, gates: Gates, number: int) -> Tensor:
        """Of one path on one of the batches."""
        images, labels = self.batches[number % len(self.batches)]
        with frozen_batchnorm(self.supernet):
            return cross_entropy(self.supernet(images, detached(gates, images.device)), labels)

    def centred(self, fitted: np.ndarray) -> np.ndarray:
        """The options' coefficients without the mean of their choice."""
        parts = np.split(fitted, np.cumsum([len(logit) for logit in self.logits.values()]))[:-1]
        return np.concatenate([part - part.mean() for part in parts])


def flat(tensors: Sequence[Tensor]) -> np.ndarray:
    """One vector of all options."""
    return torch.cat(list(tensors)).detach().numpy()


def prepared(arguments: argparse.Namespace) -> Probe:
    """The supernet with its weights, and images that did not train them."""
    size = {} if arguments.resolution is None else {"resolution": arguments.resolution}
    space = hwnas.create_space(arguments.space, **size)
    data = load_data(arguments.data, resolution=space.input_shape[1], seed=arguments.seed)
    _, held_out = split_stratified(data.train, WEIGHT_SHARE, seed=arguments.seed)
    supernet = Supernet(space)
    supernet.load_state_dict(load_checkpoint(arguments.weights)["supernet"])
    supernet.to(arguments.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    stream = BatchStream(held_out, arguments.batch_size, seed=1)
    batches = [
        (images.to(arguments.device, memory_format=torch.channels_last), labels.to(arguments.device))
        for _, (images, labels) in zip(range(NUM_BATCHES), stream.batches(0), strict=False)
    ]
    logits = {choice.name: nn.Parameter(torch.zeros(len(choice.options))) for choice in space.choices}
    return Probe(supernet, batches, logits, torch.Generator().manual_seed(arguments.seed))


if __name__ == "__main__":
    main()
