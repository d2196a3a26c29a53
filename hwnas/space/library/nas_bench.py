"""The spaces of two benchmarks whose networks have all been trained: NAS-Bench-Macro and NAS-Bench-201."""

from __future__ import annotations

from hwnas.errors import UsageError
from hwnas.space.library.chain import Stage, chain_space, check_size, make_divisible
from hwnas.space.search_space import Choice, LayerSpec, SearchSpace
from hwnas.space.signature import OpSignature, Shape


def nas_bench_macro(*, resolution: int = 32, num_classes: int = 10, width: float = 1.0) -> SearchSpace:
    """NAS-Bench-Macro: eight searched layers of identity, MBConv k3 e3 or MBConv k5 e6; 6,561 codes.

    Three stages of 2, 3 and 3 layers; the first of each halves the resolution and doubles the channels, where
    identity is a strided 1x1 convolution. Options are named ``i``, ``k3_e3`` and ``k5_e6``: the digits 0, 1, 2
    of the published codes.

    Args:
        resolution: Height and width of the input, at least 16.
        num_classes: Outputs of the classifier, at least 2.
        width: Multiplier of every channel count, rounded to multiples of 8.

    Source:
        Su et al., arXiv 2103.11922, section 4 and its released code.
    """
    options = {"resolution": resolution, "num_classes": num_classes, "width": width}
    check_size("nas-bench-macro", resolution=resolution, num_classes=num_classes, width=width)
    image: Shape = (3, resolution, resolution)
    stem = OpSignature.create("conv", image, make_divisible(32 * width), k=3, act="relu")
    return chain_space(
        "nas-bench-macro",
        [("stem", stem)],
        (Stage(64, 2, 2), Stage(128, 3, 2), Stage(256, 3, 2)),
        _macro_candidates,
        1280,
        num_classes=num_classes,
        width=width,
        options=options,
        activation={"act": "relu"},
    )


def _macro_candidates(shape: Shape, channels: int, stride: int) -> dict[str, OpSignature]:
    residual = {"r": 1} if stride == 1 and shape[0] == channels else {}
    identity = OpSignature.create("skip", shape, channels, stride=stride)
    blocks = {
        f"k{k}_e{e}": OpSignature.create("mbconv", shape, channels, stride=stride, k=k, e=e, act="relu", **residual)
        for k, e in ((3, 3), (5, 6))
    }
    return {"i": identity, **blocks}


EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
"""Of the NAS-Bench-201 cell: from node, to node, in the benchmark's order."""


def nas_bench_201(
    *, resolution: int = 32, num_classes: int = 10, width: float = 1.0, num_cells: int = 5
) -> SearchSpace:
    """NAS-Bench-201: one cell of six edges, repeated; 15,625 networks.

    Three stages of ``num_cells`` cells at 16, 32 and 64 channels, with a residual block of stride 2 between them.
    Every edge is one of ``none``, ``skip_connect``, ``nor_conv_1x1``, ``nor_conv_3x3`` and ``avg_pool_3x3``; a
    node adds up its edges.

    Args:
        resolution: Height and width of the input, at least 16.
        num_classes: Outputs of the classifier, at least 2.
        width: Multiplier of every channel count, rounded to multiples of 8.
        num_cells: Cells a stage, from 1 to 100.

    Source:
        Dong and Yang, arXiv 2001.00326, section 2.
        Differs: stem and classifier are initialised, and their batch-norms have the epsilon, as in chains of this
        package.
    """
    options = {"resolution": resolution, "num_classes": num_classes, "width": width, "num_cells": num_cells}
    check_size("nas-bench-201", resolution=resolution, num_classes=num_classes, width=width)
    if not 1 <= num_cells <= 100:
        raise UsageError(f"space 'nas-bench-201' needs 1 to 100 cells a stage; got {num_cells}. The benchmark has 5.")
    image: Shape = (3, resolution, resolution)
    stem = OpSignature.create("conv", image, make_divisible(16 * width), k=3, act="none")
    layers = [LayerSpec("stem", (stem,))]
    ends: tuple[str, ...] = ("stem",)
    for stage, channels in enumerate((16, 32, 64), start=1):
        if stage > 1:
            before = layers[-1].signatures[0].out_shape
            block = OpSignature.create("resblock", before, make_divisible(channels * width), stride=2)
            layers.append(LayerSpec(f"reduce{stage}", (block,), inputs=ends))
            ends = (f"reduce{stage}",)
        for number in range(1, num_cells + 1):
            layers += _cell(f"stage{stage}_cell{number}", layers[-1].signatures[0].out_shape, ends)
            ends = tuple(layer.name for layer in layers[-3:])
    classifier = OpSignature(
        "classifier", layers[-1].signatures[0].out_shape, (num_classes, 1, 1), 1, (("pre", "norm"),)
    )
    layers.append(LayerSpec("classifier", (classifier,), inputs=ends))
    names = tuple(_edge_operators(stem.out_shape))
    choices = tuple(Choice(_edge_name(*edge), names) for edge in EDGES)
    return SearchSpace("nas-bench-201", image, num_classes, choices, tuple(layers), options)


def _cell(name: str, shape: Shape, inputs: tuple[str, ...]) -> list[LayerSpec]:
    operators = tuple(_edge_operators(shape).values())
    layers = []
    for source, target in EDGES:
        into_source = tuple(f"{name}_{_edge_name(*edge)}" for edge in EDGES if edge[1] == source)
        choice = _edge_name(source, target)
        layers.append(LayerSpec(f"{name}_{choice}", operators, (choice,), into_source or inputs, plain=True))
    return layers


def _edge_name(source: int, target: int) -> str:
    return f"edge{source}{target}"


def _edge_operators(shape: Shape) -> dict[str, OpSignature]:
    channels = shape[0]
    return {
        "none": OpSignature.create("none", shape, channels),
        "skip_connect": OpSignature.create("skip", shape, channels),
        "nor_conv_1x1": OpSignature.create("relu_conv", shape, channels, k=1),
        "nor_conv_3x3": OpSignature.create("relu_conv", shape, channels, k=3),
        "avg_pool_3x3": OpSignature.create("avg_pool", shape, channels, k=3),
    }
