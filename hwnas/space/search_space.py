"""A search space as plain data: ordered choices and the layers that depend on them."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from hwnas.errors import ArchitectureError, SpaceError
from hwnas.space.alive import tidied
from hwnas.space.architecture import Architecture
from hwnas.space.signature import NONE, OpSignature, Shape


@dataclass(frozen=True)
class Choice:
    """One decision of the space: a name and its options, in a fixed order.

    Args:
        name: Unique in the space.
        options: Their names.
        unsearched: Those that networks may have but a search does not weigh, such as ``none``.
    """

    name: str
    options: tuple[str, ...]
    unsearched: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.options) < 1 or len(set(self.options)) != len(self.options):
            raise SpaceError(f"choice '{self.name}' needs distinct options; it has {self.options}.")
        if not set(self.unsearched) < set(self.options):
            raise SpaceError(
                f"choice '{self.name}' has options {self.options}; all but {self.unsearched} are searched."
            )

    @property
    def candidates(self) -> tuple[int, ...]:
        """Numbers of the options that a search weighs."""
        return tuple(k for k, option in enumerate(self.options) if option not in self.unsearched)


@dataclass(frozen=True)
class Node:
    """Edges that end in one node of a cell, of which every network keeps equally many; all others are ``none``.

    Args:
        name: Of no choice and no other node.
        choices: Names of the edges' choices.
        kept: How many are kept.
    """

    name: str
    choices: tuple[str, ...]
    kept: int


@dataclass(frozen=True)
class LayerSpec:
    """One layer: an operator for every combination of the choices it depends on.

    Args:
        name: Unique in the space.
        signatures: Row-major over the options of ``choices``; a fixed layer has exactly one.
        choices: Names of the choices this layer depends on; none for a fixed layer.
        inputs: Names of earlier layers whose outputs are added up to its input; none for the layer before it.
        joins: Lay the outputs side by side, channels after channels, instead of adding them up.
        plain: In a supernet its batch-norms do not scale, as logits do that already.
        norms_pools: In a supernet pooling is followed by such a batch-norm.
    """

    name: str
    signatures: tuple[OpSignature, ...]
    choices: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    joins: bool = False
    plain: bool = False
    norms_pools: bool = False

    @property
    def is_edge(self) -> bool:
        """Whether it is searched and lies between nodes, where others are added to it, rather than in a chain."""
        return bool(self.choices and self.inputs)

    @property
    def is_node(self) -> bool:
        """Whether it does nothing but add up or join what enters it."""
        return bool(self.inputs) and not self.choices and self.signatures[0].op == "skip"


class Joined(tuple[int, ...]):
    """Positions of layers whose outputs are laid side by side, channels after channels."""

    __slots__ = ()


Wiring = tuple[tuple[int, ...], ...]
"""Per layer, positions of the layers whose outputs are added up to its input, or ``Joined``; -1 for the image."""


def chained(num_layers: int) -> Wiring:
    """The wiring of layers that follow one another."""
    return tuple((i - 1,) for i in range(num_layers))


@dataclass(frozen=True)
class SearchSpace:
    """Ordered choices plus layers that feed one another; walked by profiler, supernet, cost model and derivation.

    Args:
        name: Registered name, or one of your own.
        input_shape: Channels, height, width of one image.
        num_classes: Outputs of the classifier.
        choices: In the order in which architectures list their options.
        layers: In execution order.
        nodes: Edges of which every network keeps equally many; a choice is in one of them at most.
        auxiliary: Fixed layer whose output a second classifier may read in training; none if not given.
        options: The arguments that the space was created with, kept for its run folder.

    Raises:
        SpaceError: Names repeat, a layer names an unknown choice or has the wrong number of operators,
            takes its input from a layer that does not come before it, or gets another shape than it expects; or
            a node keeps edges that it does not have.
    """

    name: str
    input_shape: Shape
    num_classes: int
    choices: tuple[Choice, ...]
    layers: tuple[LayerSpec, ...]
    options: Mapping[str, int | float] = field(default_factory=dict)
    nodes: tuple[Node, ...] = ()
    auxiliary: str = ""

    def __post_init__(self) -> None:
        by_name = {choice.name: choice for choice in self.choices}
        if len(by_name) != len(self.choices):
            raise SpaceError(f"space '{self.name}' repeats a choice name.")
        if len({layer.name for layer in self.layers}) != len(self.layers):
            raise SpaceError(f"space '{self.name}' repeats a layer name.")
        shapes: list[Shape] = []
        for layer, sources in zip(self.layers, self.wiring, strict=True):
            unknown = [name for name in layer.choices if name not in by_name]
            if unknown:
                raise SpaceError(f"layer '{layer.name}' depends on unknown choice '{unknown[0]}'.")
            expected = math.prod(len(by_name[name].options) for name in layer.choices)
            if len(layer.signatures) != expected:
                raise SpaceError(
                    f"layer '{layer.name}' has {len(layer.signatures)} operators; its choices need {expected}."
                )
            given = [self.input_shape if i < 0 else shapes[i] for i in sources]
            if isinstance(sources, Joined):
                given = [(sum(shape[0] for shape in given), *given[0][1:])]
            for shape, signature in itertools.product(given, layer.signatures):
                if len(layer.choices) < 2 and signature.in_shape != shape:
                    raise SpaceError(f"layer '{layer.name}' gets {shape} but '{signature}' expects another shape.")
            shapes.append(layer.signatures[0].out_shape)
        edges = [name for node in self.nodes for name in node.choices]
        named = [*by_name, *(node.name for node in self.nodes)]
        if len(set(named)) != len(named):
            raise SpaceError(f"space '{self.name}' has a node named like another node or a choice.")
        if len(set(edges)) != len(edges) or not all(NONE in by_name[name].options for name in edges):
            raise SpaceError(f"space '{self.name}' has an edge in two nodes, or one that cannot be '{NONE}'.")
        if not all(1 <= node.kept <= len(node.choices) for node in self.nodes):
            raise SpaceError(f"space '{self.name}' has a node that keeps no edge, or more edges than it has.")

    @cached_property
    def wiring(self) -> Wiring:
        """Where every layer takes its input from."""
        known: dict[str, int] = {}
        wiring = []
        for position, layer in enumerate(self.layers):
            late = [name for name in layer.inputs if name not in known]
            if late:
                raise SpaceError(f"layer '{layer.name}' takes its input from '{late[0]}', which no earlier layer is.")
            sources = tuple(known[name] for name in layer.inputs) or (position - 1,)
            wiring.append(Joined(sources) if layer.joins else sources)
            known[layer.name] = position
        return tuple(wiring)

    def choice(self, name: str) -> Choice:
        """The choice of that name."""
        return self.choices[self.choice_names.index(name)]

    @cached_property
    def choice_names(self) -> tuple[str, ...]:
        """Names of the choices, in order."""
        return tuple(choice.name for choice in self.choices)

    @property
    def candidates(self) -> dict[str, tuple[int, ...]]:
        """Name of every choice of which a search does not weigh all options -> numbers of those it weighs."""
        return {choice.name: choice.candidates for choice in self.choices if choice.unsearched}

    @property
    def idle(self) -> dict[str, int]:
        """Name of every choice that networks may do without, but a search does not weigh -> number of ``none``."""
        return {choice.name: choice.options.index(NONE) for choice in self.choices if NONE in choice.unsearched}

    @cached_property
    def free(self) -> dict[str, int]:
        """Name of every choice that may be ``none`` whatever others are -> number of that option."""
        fixed = {name for node in self.nodes for name in node.choices}
        return {c.name: c.options.index(NONE) for c in self.choices if NONE in c.options and c.name not in fixed}

    @property
    def edges(self) -> dict[str, dict[str, int]]:
        """Node name -> choice name of every edge into it -> number of its option ``none``."""
        return {
            node.name: {name: self.choice(name).options.index(NONE) for name in node.choices} for node in self.nodes
        }

    @property
    def num_options(self) -> tuple[int, ...]:
        """Number of options of each choice, in order."""
        return tuple(len(choice.options) for choice in self.choices)

    @property
    def size(self) -> int:
        """Number of architectures."""
        in_nodes = {name for node in self.nodes for name in node.choices}
        free = math.prod(len(choice.options) for choice in self.choices if choice.name not in in_nodes)
        return free * math.prod(sum(ways for _, ways in self._ways(node)) for node in self.nodes)

    @property
    def fingerprint(self) -> str:
        """Short hash of everything that decides what networks the space holds."""
        described: dict[str, Any] = {
            "input": self.input_shape,
            "classes": self.num_classes,
            "choices": [(choice.name, choice.options) for choice in self.choices],
            "layers": [(layer.name, layer.choices, [str(s) for s in layer.signatures]) for layer in self.layers],
        }
        if self.wiring != chained(len(self.layers)):
            described["wiring"] = self.wiring
        if self.nodes:
            described["nodes"] = [(node.choices, node.kept) for node in self.nodes]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:12]

    def signatures(self) -> tuple[OpSignature, ...]:
        """Every distinct operator of the space, in order of first appearance."""
        return tuple(dict.fromkeys(itertools.chain.from_iterable(layer.signatures for layer in self.layers)))

    def architecture(self, options: Sequence[int] | Mapping[str, str]) -> Architecture:
        """An architecture from option indices in order, or from choice name -> option name.

        Raises:
            ArchitectureError: A choice is missing or an option does not exist.
        """
        if not isinstance(options, Mapping):
            if len(options) != len(self.choices):
                raise ArchitectureError(
                    f"{len(options)} options given; space '{self.name}' has {len(self.choices)} choices."
                )
            for choice, index in zip(self.choices, options, strict=True):
                if not 0 <= index < len(choice.options):
                    raise ArchitectureError(f"choice '{choice.name}' has no option number {index}.")
            options = {c.name: c.options[int(i)] for c, i in zip(self.choices, options, strict=True)}
        if extra := sorted(set(options) - set(self.choice_names)):
            raise ArchitectureError(f"space '{self.name}' has no choice '{extra[0]}'.")
        architecture = Architecture(self.name, tuple((c, options.get(c, "")) for c in self.choice_names))
        self.indices(architecture)
        return architecture

    def indices(self, architecture: Architecture) -> tuple[int, ...]:
        """Option index of every choice, in order.

        Raises:
            ArchitectureError: The architecture belongs to another space or names an unknown option.
        """
        if architecture.space != self.name:
            raise ArchitectureError(f"architecture of space '{architecture.space}' given to space '{self.name}'.")
        chosen = dict(architecture.options)
        found = []
        for choice in self.choices:
            option = chosen.get(choice.name, "")
            if option not in choice.options:
                raise ArchitectureError(
                    f"choice '{choice.name}' has no option '{option}'; it has {', '.join(choice.options)}."
                )
            found.append(choice.options.index(option))
        for node in self.nodes:
            kept = sum(chosen[name] != NONE for name in node.choices)
            if kept != node.kept:
                raise ArchitectureError(
                    f"{kept} of {', '.join(node.choices)} are kept; space '{self.name}' keeps {node.kept}. Make all "
                    f"others '{NONE}', or create the space with inputs=0 to keep any number."
                )
        return tuple(found)

    def operators(self, architecture: Architecture) -> tuple[OpSignature, ...]:
        """The operator of every layer under that architecture."""
        chosen = dict(zip(self.choice_names, self.indices(architecture), strict=True))
        return tuple(layer.signatures[self.row(layer, chosen)] for layer in self.layers)

    def network(self, architecture: Architecture) -> tuple[dict[str, OpSignature], Wiring]:
        """The layers of a network, name -> operator in order, and how they feed one another.

        An edge of ``none`` is left out where something else is added up beside it, and so is what feeds no other layer.
        """
        operators = self.operators(architecture)
        sources = [
            Joined(some)
            if isinstance(some, Joined)
            else tuple(i for i in some if i < 0 or operators[i].op != NONE) or some[:1]
            for some in self.wiring
        ]
        used = {len(sources) - 1}
        for position in reversed(range(len(sources))):
            used |= set(sources[position]) if position in used else set()
        kept = [position for position in range(len(sources)) if position in used]
        moved = {-1: -1} | {position: number for number, position in enumerate(kept)}
        layers = {self.layers[position].name: operators[position] for position in kept}
        return layers, tuple(type(sources[position])(moved[i] for i in sources[position]) for position in kept)

    def row(self, layer: LayerSpec, chosen: Mapping[str, int]) -> int:
        """Index into ``layer.signatures`` for option indices by choice name."""
        row = 0
        for name in layer.choices:
            row = row * len(self.choice(name).options) + chosen[name]
        return row

    def random(self, rng: random.Random) -> Architecture:
        """An architecture drawn uniformly."""
        drawn = dict(zip(self.choice_names, (rng.randrange(count) for count in self.num_options), strict=True))
        for node in self.nodes:
            subsets, ways = zip(*self._ways(node), strict=True)
            (kept,) = rng.choices(subsets, ways)
            for name in node.choices:
                options = self.choice(name).options
                idle = options.index(NONE)
                drawn[name] = rng.choice([k for k in range(len(options)) if k != idle]) if name in kept else idle
        return self.architecture([drawn[name] for name in self.choice_names])

    def _ways(self, node: Node) -> Iterator[tuple[tuple[str, ...], int]]:
        """Edges that a node may keep, and how many operators they may have."""
        for kept in itertools.combinations(node.choices, node.kept):
            yield kept, math.prod(len(self.choice(name).options) - 1 for name in kept)

    def distinct(self, count: int, *, seed: int) -> list[Architecture]:
        """At most ``count`` different random architectures (fewer only if the space is smaller).

        None has operators that change nothing, and in each the image reaches the output.
        """
        rng, drawn = random.Random(seed), set[Architecture]()
        found: dict[Architecture, None] = {}
        while len(found) < count and len(drawn) < self.size:
            drawn.add(architecture := self.random(rng))
            row, connected = tidied(self.indices(architecture), self)
            if connected:
                found[self.architecture(row)] = None
        return list(found)

    def __iter__(self) -> Iterator[Architecture]:
        """Every architecture, last choice fastest; only for small spaces."""
        return (self.architecture(row) for row in itertools.product(*map(range, self.num_options)) if self.permits(row))

    def permits(self, row: Sequence[int]) -> bool:
        """Whether every node keeps as many edges as it must, given an option index of every choice."""
        lost = {c.name for c, index in zip(self.choices, row, strict=True) if c.options[index] == NONE}
        return all(len(lost.intersection(node.choices)) == len(node.choices) - node.kept for node in self.nodes)

    def describe(self) -> dict[str, Any]:
        """What a run folder records about the space."""
        return {"name": self.name, "options": dict(self.options), "fingerprint": self.fingerprint}
