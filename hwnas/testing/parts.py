"""One of every kind of part, for the suites that run over all of them."""

from __future__ import annotations

from hwnas.search.protocols import Relaxation
from hwnas.search.relaxations import (
    BinaryGates,
    Categorical,
    Concrete,
    Sigmoid,
    Softmax,
    StraightThroughGumbel,
    UniformPath,
)
from hwnas.search.schedules import Linear

RELAXATIONS: dict[str, Relaxation] = {
    "softmax": Softmax(),
    "tempered": Softmax(tau=Linear(2.0, 0.5)),
    "sigmoid": Sigmoid(),
    "concrete": Concrete(tau=Linear(5.0, 0.1)),
    "gumbel": StraightThroughGumbel(tau=Linear(10.0, 0.1)),
    "gumbel-added": StraightThroughGumbel(tau=1.0, added=True),
    "two-path": BinaryGates("two"),
    "all-probed": BinaryGates("all"),
    "categorical": Categorical(),
    "uniform": UniformPath(),
}
