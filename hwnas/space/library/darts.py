"""Cells of the DARTS family: every edge is a choice, and cells repeat along a skeleton.

How a cell becomes layers:

- Nodes 0 and 1 are the outputs of the two cells before; ``cellN_pre0`` and ``cellN_pre1`` bring them to C channels.
- ``cellN_edgeST`` is the edge from node S to node T, a layer with one operator an option. It depends on the choice
  ``normal_edgeST`` or ``reduce_edgeST``, which all cells of a kind share by name; of ``gold-nas``, on its own.
- ``cellN_node2`` to ``cellN_node5`` do nothing: their inputs, the edges that end there, are added up.
- ``cellN`` does nothing either: its inputs, the four nodes, are joined.
- An edge that a network lacks is ``none``. A ``Node`` of the space says how many edges into a node are kept. What
  searches, draws, derives and checks architectures keeps to it; the supernet knows nothing of it.
- Where ``none`` is no candidate of a search, it is an option all the same, unsearched.
- An architecture names options only, so one that was found in small cells fits any skeleton of the space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from hwnas.errors import UsageError
from hwnas.space.library.chain import check_size
from hwnas.space.search_space import Choice, LayerSpec, Node, SearchSpace
from hwnas.space.signature import NONE, OpSignature, Shape

KINDS = NORMAL, REDUCE = "normal", "reduce"

NUM_INPUTS, NUM_NODES = 2, 6
"""Of a cell: outputs of earlier cells, and nodes with these."""

EDGES = tuple((source, target) for target in range(NUM_INPUTS, NUM_NODES) for source in range(target))
"""From node, to node, in the order of the released code."""

OPERATORS: dict[str, tuple[str, dict[str, int]]] = {
    NONE: (NONE, {}),
    "max_pool_3x3": ("max_pool", {"k": 3}),
    "avg_pool_3x3": ("avg_pool", {"k": 3}),
    "skip_connect": ("skip", {}),
    "sep_conv_3x3": ("sep_conv", {"k": 3}),
    "sep_conv_5x5": ("sep_conv", {"k": 5}),
    "dil_conv_3x3": ("dil_conv", {"k": 3}),
    "dil_conv_5x5": ("dil_conv", {"k": 5}),
}
"""Option -> operator and its attributes, in the order of DARTS."""

S1 = {
    NORMAL: "skip+dil3 skip+dil5 skip+dil5 skip+sep3 skip+dil3 max+skip skip+sep3 skip+sep3 skip+dil3 skip+sep3 "
    "max+skip skip+dil3 dil3+dil5 dil3+dil5",
    REDUCE: "max+avg max+dil3 max+avg max+avg skip+dil5 max+avg max+sep3 skip+dil3 skip+dil5 max+avg max+avg skip+dil5"
    " skip+dil5 skip+dil5",
}
"""Candidates of every edge of RobustDARTS' S1. Source: arXiv 1909.09656, appendix, and released code."""

SHORT = {
    "max": "max_pool_3x3",
    "avg": "avg_pool_3x3",
    "skip": "skip_connect",
    "sep3": "sep_conv_3x3",
    "dil3": "dil_conv_3x3",
    "dil5": "dil_conv_5x5",
}


@dataclass(frozen=True)
class Skeleton:
    """What cells are put into.

    Args:
        name: Of the space.
        resolution: Height and width of the input.
        num_classes: Outputs of the classifier.
        channels: C of the first cell.
        num_cells: From 3.
        stem_stride: 1 or 8.
        inputs: Edges that are kept into every node; 0 for any number.
    """

    name: str
    resolution: int
    num_classes: int
    channels: int
    num_cells: int
    stem_stride: int
    inputs: int = 0

    def __post_init__(self) -> None:
        check_size(self.name, resolution=self.resolution, num_classes=self.num_classes)
        fits = 2 <= self.channels <= 1024 and 3 <= self.num_cells <= 100
        if not fits or self.stem_stride not in (1, 8) or not 0 <= self.inputs <= NUM_INPUTS:
            raise UsageError(
                f"space '{self.name}' needs 2 to 1024 channels, 3 to 100 cells, a stem of stride 1 or 8 and 0 to 2 "
                f"inputs a node; got {self.channels}, {self.num_cells}, {self.stem_stride}, {self.inputs}."
            )


@dataclass(frozen=True)
class Branch:
    """One layer of an edge.

    Args:
        layer: Its name within the cell.
        choice: Its choice.
    """

    layer: str
    choice: Choice


Branches = Callable[[int, str, int], Sequence[Branch]]
"""Number of a cell, its kind, number of an edge -> what lies on that edge, side by side."""


def darts_cell(
    *,
    resolution: int = 32,
    num_classes: int = 10,
    channels: int = 16,
    num_cells: int = 8,
    stem_stride: int = 1,
    inputs: int = 2,
    with_none: int = 1,
) -> SearchSpace:
    """DARTS cells, normal and reducing: 14 edges of 8 candidates each; 1.1e18 networks.

    As searched by DARTS if nothing is given. Its network for CIFAR: 36 channels, 20 cells; for ImageNet: 48 channels,
    14 cells, a stem of stride 8, resolution 224.

    Args:
        resolution: Height and width of the input, at least 16.
        num_classes: Outputs of the classifier, at least 2.
        channels: C of the first cells; doubled by each of the two reducing cells.
        num_cells: Cells, from 3; those after a third and two thirds of them reduce.
        stem_stride: 1, a 3x3 convolution to 3C channels; or 8, three of them to C channels.
        inputs: Edges into every node that a network keeps; 0 for any number, as SNAS derives.
        with_none: 0 leaves ``none`` out of the search, as FairDARTS does.

    Source:
        DARTS, arXiv 1806.09055, sections 2.1 and 3, and released code.
        Differs: a stem of stride 1, the first two convolutions of another stem, and the classifier are initialised, and
        batch-norms of the former have the epsilon, of this package (``build_op``).
    """
    skeleton = Skeleton("darts-cell", resolution, num_classes, channels, num_cells, stem_stride, inputs)
    names = tuple(OPERATORS) if with_none else tuple(OPERATORS)[1:]
    return _space(
        skeleton, lambda cell, kind, edge: _shared(kind, edge, names), {"inputs": inputs, "with_none": with_none}
    )


def robust_darts(
    *,
    subspace: int = 2,
    resolution: int = 32,
    num_classes: int = 10,
    channels: int = 16,
    num_cells: int = 8,
    stem_stride: int = 1,
    inputs: int = 2,
) -> SearchSpace:
    """The spaces S1 to S4 of RobustDARTS, in which DARTS fails: cells of few candidates an edge.

    1: two candidates, other ones on every edge. 2: skip, sep_conv_3x3. 3: none, skip, sep_conv_3x3. 4: noise,
    sep_conv_3x3.

    Args:
        subspace: 1 to 4.
        resolution: As of ``darts-cell``, and so are the others.
        num_classes: Outputs of the classifier.
        channels: C of the first cells.
        num_cells: Cells.
        stem_stride: 1 or 8.
        inputs: Edges into every node that a network keeps.

    Source:
        RobustDARTS, arXiv 1909.09656, section 3, and released code.
    """
    skeleton = Skeleton("robust-darts", resolution, num_classes, channels, num_cells, stem_stride, inputs)
    if subspace not in (1, 2, 3, 4):
        raise UsageError(f"space 'robust-darts' has no subspace {subspace}; it has 1 to 4.")
    options = {"inputs": inputs, "subspace": subspace}
    return _space(skeleton, lambda cell, kind, edge: _shared(kind, edge, _robust(subspace, kind, edge)), options)


def gold_nas(
    *,
    resolution: int = 32,
    num_classes: int = 10,
    channels: int = 16,
    num_cells: int = 20,
    stem_stride: int = 1,
) -> SearchSpace:
    """GOLD-NAS: every cell for itself; on every edge a skip, a sep_conv_3x3, both or neither.

    Two choices an edge, whose only searched option is the operator: under a softmax it is certain, under a logistic
    function its weight is its own.

    Args:
        resolution: Height and width of the input, at least 16.
        num_classes: Outputs of the classifier, at least 2.
        channels: C of the first cells.
        num_cells: Cells; 20 of them make 2^560 networks.
        stem_stride: 1 or 8; see ``darts-cell``.

    Source:
        GOLD-NAS, arXiv 2007.03331, section 3. Differs: number of channels and cells are not confirmed; a cell reads the
        two cells before it, as in DARTS, though the paper also speaks of giving that rule up.
    """

    def branches(cell: int, kind: str, edge: int) -> list[Branch]:
        names = {f"{edge_name(*EDGES[edge])}_{short}": SHORT[short] for short in ("skip", "sep3")}
        return [Branch(name, Choice(f"cell{cell}_{name}", (NONE, some), (NONE,))) for name, some in names.items()]

    return _space(Skeleton("gold-nas", resolution, num_classes, channels, num_cells, stem_stride), branches, {})


def edge_name(source: int, target: int) -> str:
    """What an edge is called within its cell."""
    return f"edge{source}{target}"


def _robust(subspace: int, kind: str, edge: int) -> tuple[str, ...]:
    if subspace == 1:
        return tuple(SHORT[short] for short in S1[kind].split()[edge].split("+"))
    return {2: ("skip_connect",), 3: (NONE, "skip_connect"), 4: ("noise",)}[subspace] + ("sep_conv_3x3",)


def _shared(kind: str, edge: int, candidates: tuple[str, ...]) -> list[Branch]:
    """One layer, whose choice all cells of its kind share."""
    name = edge_name(*EDGES[edge])
    more = () if NONE in candidates else (NONE,)
    return [Branch(name, Choice(f"{kind}_{name}", (*more, *candidates), more))]


def _space(skeleton: Skeleton, branches: Branches, options: dict[str, int]) -> SearchSpace:
    before, layers = _stem(skeleton)
    choices: dict[str, dict[str, Choice]] = {kind: {} for kind in KINDS}
    channels, reduced = skeleton.channels, skeleton.stem_stride > 1
    for number in range(skeleton.num_cells):
        reduces = number in (skeleton.num_cells // 3, 2 * skeleton.num_cells // 3)
        channels *= 2 if reduces else 1
        kind = REDUCE if reduces else NORMAL
        found = partial(branches, number, kind)
        cell = _cell(f"cell{number}", before, channels, found, reduces=reduces, reduced=reduced)
        layers += cell
        before, reduced = (before[1], cell[-1]), reduces
        choices[kind] |= {b.choice.name: b.choice for edge in range(len(EDGES)) for b in found(edge)}
    classes = (skeleton.num_classes, 1, 1)
    layers.append(LayerSpec("classifier", (OpSignature("classifier", _out(layers[-1]), classes),)))
    image = layers[0].signatures[0].in_shape
    ordered = (*choices[NORMAL].values(), *choices[REDUCE].values())
    nodes = _nodes(skeleton.inputs) if skeleton.inputs else ()
    described = {key: value for key, value in vars(skeleton).items() if key not in ("name", "inputs")}
    auxiliary = f"cell{2 * skeleton.num_cells // 3}"
    return SearchSpace(
        skeleton.name, image, skeleton.num_classes, ordered, tuple(layers), described | options, nodes, auxiliary
    )


def _nodes(kept: int) -> tuple[Node, ...]:
    return tuple(
        Node(f"{kind}_node{target}", tuple(f"{kind}_{edge_name(source, target)}" for source in range(target)), kept)
        for kind in KINDS
        for target in range(NUM_INPUTS, NUM_NODES)
    )


def _stem(skeleton: Skeleton) -> tuple[tuple[LayerSpec, LayerSpec], list[LayerSpec]]:
    """The two outputs that the first cell reads, and the layers up to there."""
    image: Shape = (3, skeleton.resolution, skeleton.resolution)
    channels = skeleton.channels
    if skeleton.stem_stride == 1:
        stem = LayerSpec("stem", (OpSignature.create("conv", image, 3 * channels, k=3, act=NONE),))
        return (stem, stem), [stem]
    first = OpSignature.create("conv", image, channels // 2, stride=2, k=3, act="relu")
    second = OpSignature.create("conv", first.out_shape, channels, stride=2, k=3, act=NONE)
    third = OpSignature.create("relu_conv", second.out_shape, channels, stride=2, k=3)
    layers = [LayerSpec(f"stem{number}", (op,)) for number, op in enumerate((first, second, third), start=1)]
    return (layers[1], layers[2]), layers


def _cell(
    name: str,
    before: tuple[LayerSpec, LayerSpec],
    channels: int,
    branches: Callable[[int], Sequence[Branch]],
    *,
    reduces: bool,
    reduced: bool,
) -> list[LayerSpec]:
    """The layers of one cell, its output last.

    Args:
        name: Prefix of the layers' names.
        before: The layers whose outputs it reads.
        channels: C.
        branches: Of every edge.
        reduces: Whether the edges from outside have stride 2.
        reduced: Whether the cell before did.
    """
    layers = [
        LayerSpec(
            f"{name}_pre0", (_brought(_out(before[0]), channels, halved=reduced),), (), (before[0].name,), plain=True
        ),
        LayerSpec(
            f"{name}_pre1", (_brought(_out(before[1]), channels, halved=False),), (), (before[1].name,), plain=True
        ),
    ]
    nodes = list(layers)
    for target in range(NUM_INPUTS, NUM_NODES):
        ends = []
        for number, (source, end) in enumerate(EDGES):
            if end != target:
                continue
            stride = 2 if reduces and source < NUM_INPUTS else 1
            for branch in branches(number):
                operators = tuple(operator(option, _out(nodes[source]), stride) for option in branch.choice.options)
                layer = f"{name}_{branch.layer}"
                inputs = (nodes[source].name,)
                ends.append(LayerSpec(layer, operators, (branch.choice.name,), inputs, plain=True, norms_pools=True))
        shape = _out(ends[0])
        same = OpSignature.create("skip", shape, channels)
        nodes.append(LayerSpec(f"{name}_node{target}", (same,), (), tuple(end.name for end in ends)))
        layers += [*ends, nodes[-1]]
    inner = nodes[NUM_INPUTS:]
    wide = (len(inner) * channels, *_out(inner[0])[1:])
    whole = OpSignature.create("skip", wide, wide[0])
    return [*layers, LayerSpec(name, (whole,), (), tuple(node.name for node in inner), joins=True)]


def operator(option: str, shape: Shape, stride: int) -> OpSignature:
    """The operator of an option; a skip that strides is a factorised reduction."""
    op, attributes = OPERATORS.get(option, (option, {}))
    if op == "skip" and stride > 1:
        op = "factorized_reduce"
    return OpSignature.create(op, shape, shape[0], stride=stride, **attributes)


def _brought(shape: Shape, channels: int, *, halved: bool) -> OpSignature:
    if halved:
        return OpSignature.create("factorized_reduce", shape, channels, stride=2)
    return OpSignature.create("relu_conv", shape, channels, k=1)


def _out(layer: LayerSpec) -> Shape:
    return layer.signatures[0].out_shape
