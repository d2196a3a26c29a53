"""Cells of the DARTS family: published sizes, nodes that keep two edges, derived cells and their text."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hwnas.console import draw
from hwnas.errors import ArchitectureError, SpaceError, UsageError
from hwnas.latency.budget import Budget, feasible_range_ms, solve
from hwnas.latency.model import LatencyModel
from hwnas.onnx_graph import export_many, join
from hwnas.ops.blocks import build_op
from hwnas.ops.cells import FactorizedReduce
from hwnas.run import RunFolder
from hwnas.search.derivations import Argmax, Evolution, MostProbableWithinBudget, StrongestEdges
from hwnas.search.nodes import among_networks
from hwnas.search.protocols import Finished
from hwnas.search.sampling import BandSampler, kept_edges
from hwnas.space import (
    NONE,
    Choice,
    LayerSpec,
    Node,
    OpSignature,
    SearchSpace,
    create_space,
    macs,
    parameters,
)
from hwnas.space.genotype import DARTS_V2, Genotype
from hwnas.supernet.gates import one_hot_gates
from hwnas.supernet.supernet import Network, Supernet, extract
from hwnas.testing.toys import toy_table

SMALL = {"channels": 4, "num_cells": 3, "resolution": 16}


def small_node(kept: int = 2, searched: bool = True) -> SearchSpace:
    """Four edges side by side into one node: none, a 1x1 or a 3x3 convolution."""
    stem = OpSignature.create("conv", (3, 8, 8), 8, k=3)
    edge = tuple(
        OpSignature.create(op, (8, 8, 8), 8, **k) for op, k in (("none", {}), ("conv", {"k": 1}), ("conv", {"k": 3}))
    )
    names = tuple(f"edge{i}" for i in range(4))
    layers = [LayerSpec("stem", (stem,)), *(LayerSpec(name, edge, (name,), ("stem",)) for name in names)]
    layers.append(LayerSpec("classifier", (OpSignature("classifier", (8, 8, 8), (10, 1, 1)),), (), names))
    choices = tuple(Choice(name, (NONE, "k1", "k3"), () if searched else (NONE,)) for name in names)
    return SearchSpace("node", (3, 8, 8), 10, choices, tuple(layers), nodes=(Node("node", names, kept),))


@pytest.fixture
def model() -> LatencyModel:
    space = small_node()
    return LatencyModel.from_table(space, toy_table(space))


def test_published_sizes() -> None:
    # Two of 2, 3, 4 and 5 edges with 7 operators each, in two cells: (1 * 3 * 6 * 10 * 7^8)^2.
    space = create_space("darts-cell")
    assert space.size == (180 * 7**8) ** 2
    assert len(space.choices) == 28
    assert all(len(choice.options) == 8 for choice in space.choices)
    with torch.device("meta"):
        supernet = Supernet(space)
    assert sum(p.numel() for p in supernet.parameters()) == 1_930_618  # of the released search network


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"channels": 36, "num_cells": 20}, 3_349_342),
        # 4.7 million in the paper; the released network for ImageNet has these.
        ({"channels": 48, "num_cells": 14, "stem_stride": 8, "resolution": 224, "num_classes": 1000}, 4_718_752),
    ],
)
def test_published_networks(options: dict[str, int], expected: int) -> None:
    space = create_space("darts-cell", **options)
    architecture = DARTS_V2.architecture(space)
    layers, _ = space.network(architecture)
    assert sum(map(parameters, layers.values())) == expected
    with torch.device("meta"):
        network = Network(space, architecture)
    assert sum(p.numel() for p in network.parameters()) == expected
    assert not any(op.op == NONE for op in layers.values())
    small = create_space("darts-cell", **SMALL)
    assert small.indices(architecture) == space.indices(architecture)


def test_candidates_of_every_space() -> None:
    def candidates(space: SearchSpace) -> list[set[str]]:
        return [{choice.options[k] for k in choice.candidates} for choice in space.choices]

    for subspace, expected in ((2, {"skip_connect", "sep_conv_3x3"}), (4, {"noise", "sep_conv_3x3"})):
        space = create_space("robust-darts", subspace=subspace, **SMALL)
        assert candidates(space) == [expected] * 28
        assert space.size == (180 * 2**8) ** 2
    assert candidates(create_space("robust-darts", subspace=3, **SMALL))[0] == {NONE, "skip_connect", "sep_conv_3x3"}
    ragged = candidates(create_space("robust-darts", subspace=1, **SMALL))
    assert {len(some) for some in ragged} == {2}
    assert ragged[5] == {"max_pool_3x3", "skip_connect"}
    assert ragged[14] == {"max_pool_3x3", "avg_pool_3x3"}
    assert len(set(map(frozenset, ragged))) == 8
    assert NONE not in set().union(*candidates(create_space("darts-cell", with_none=0, **SMALL)))
    gold = create_space("gold-nas", num_cells=3, channels=4)
    assert (len(gold.choices), gold.size, gold.nodes) == (3 * 28, 2**84, ())


def test_candidates_of_s1_are_the_published_ones() -> None:
    # Edges in the order of the released code, by the pair of candidates that they have.
    published = {
        "normal": {
            "skip_connect dil_conv_3x3": (0, 4, 8, 11), "skip_connect dil_conv_5x5": (1, 2),
            "skip_connect sep_conv_3x3": (3, 6, 7, 9), "max_pool_3x3 skip_connect": (5, 10),
            "dil_conv_3x3 dil_conv_5x5": (12, 13),
        },
        "reduce": {
            "max_pool_3x3 avg_pool_3x3": (0, 2, 3, 5, 9, 10), "max_pool_3x3 dil_conv_3x3": (1,),
            "skip_connect dil_conv_5x5": (4, 8, 11, 12, 13), "max_pool_3x3 sep_conv_3x3": (6,),
            "skip_connect dil_conv_3x3": (7,),
        },
    }  # fmt: skip
    space = create_space("robust-darts", subspace=1, **SMALL)
    edges = ["02", "12", "03", "13", "23", "04", "14", "24", "34", "05", "15", "25", "35", "45"]
    for kind, pairs in published.items():
        assert sorted(number for numbers in pairs.values() for number in numbers) == list(range(14))
        for pair, numbers in pairs.items():
            for number in numbers:
                choice = space.choice(f"{kind}_edge{edges[number]}")
                assert [choice.options[k] for k in choice.candidates] == pair.split()


def test_cells_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match="3 to 100 cells"):
        create_space("darts-cell", num_cells=2)
    with pytest.raises(UsageError, match="has no subspace 5"):
        create_space("robust-darts", subspace=5)
    with pytest.raises(SpaceError, match="keeps no edge"):
        small_node(kept=5)
    with pytest.raises(SpaceError, match="all but"):
        Choice("x", ("p",), ("p",))


def test_described_options_make_the_same_space() -> None:
    for name, options in (
        ("darts-cell", {"inputs": 0, "with_none": 0, "stem_stride": 8}),
        ("robust-darts", {"subspace": 4, "inputs": 1}),
        ("gold-nas", {"num_cells": 4}),
    ):
        space = create_space(name, **options)
        assert create_space(name, **space.options).fingerprint == space.fingerprint
        assert space.fingerprint != create_space(name).fingerprint


def test_a_node_keeps_as_many_edges_as_it_must() -> None:
    space = small_node()
    assert space.size == 6 * 4  # two of four edges, two operators each
    networks = list(space)
    assert len(networks) == len(set(networks)) == space.size
    assert set(space.distinct(100, seed=0)) == set(networks)
    counts = Counter(space.random(random.Random(seed)) for seed in range(2400))
    # 100 each is expected, with a deviation of sqrt(2400 * 1/24 * 23/24) = 9.8: five of them.
    assert all(abs(count - 100) < 49 for count in counts.values())
    with pytest.raises(ArchitectureError, match="1 of edge0, edge1, edge2, edge3 are kept; space 'node' keeps 2"):
        space.architecture([1, 0, 0, 0])


def test_the_programme_and_the_draws_keep_to_the_node(model: LatencyModel) -> None:
    space = model.space
    rng = np.random.default_rng(0)
    scores = [np.log(rng.dirichlet(np.ones(3))) for _ in range(4)]
    rows = np.array([space.indices(a) for a in space])
    value = np.array([sum(score[k] for score, k in zip(scores, row, strict=True)) for row in rows])
    assert [*solve(model, scores)] == [tuple(rows[i]) for i in np.argsort(-value)]
    ms = model.exact_ms_many(rows)
    assert feasible_range_ms(model) == pytest.approx((ms.min(), ms.max()))
    sampler = BandSampler(model, scores, max_ms=float(np.inf))
    drawn = Counter(map(tuple, sampler.draw(np.random.default_rng(1), 65_536)))
    p = np.exp(value) / np.exp(value).sum()
    for row, share in zip(rows, p, strict=True):  # five deviations of a share of 65,536 draws
        assert drawn[tuple(row)] / 65_536 == pytest.approx(share, abs=5 * np.sqrt(share / 65_536))
    assert sampler._expected_ms(0.0) == pytest.approx(float(p @ ms))
    weights = {n: torch.from_numpy(np.exp(s)).requires_grad_() for n, s in zip(space.choice_names, scores, strict=True)}
    expected = model.expected_ms(among_networks(space, weights))
    assert float(expected.detach()) == pytest.approx(float(p @ ms))
    assert torch.autograd.gradcheck(
        lambda *some: model.expected_ms(among_networks(space, dict(zip(weights, some, strict=True)))),
        [*weights.values()],
    )
    one = space.architecture([0, 2, 1, 0])
    hot = {name: gate.weights.double() for name, gate in one_hot_gates(space, one).items()}
    assert float(model.expected_ms(among_networks(space, hot))) == pytest.approx(model.exact_ms(one))
    even = among_networks(space, {name: torch.tensor([0.0, 0.5, 0.5]) for name in weights})  # none is no candidate
    assert torch.allclose(torch.stack([*even.values()]), torch.tensor([0.5, 0.25, 0.25]))
    (node,) = kept_edges(space, [np.exp(score) for score in scores])
    assert node.probabilities.sum() == pytest.approx(1)
    tight = replace(sampler, max_ms=float(np.sort(ms)[2]))
    assert tight.tilt > 0
    assert {*map(space.indices, tight.distinct(0))} == {tuple(row) for row in rows[ms <= tight.max_ms]}


def finished(space: SearchSpace, rows: list[list[float]]) -> Finished:
    chances = {name: torch.tensor(row) for name, row in zip(space.choice_names, rows, strict=True)}
    return Finished(chances, lambda architecture: 1 - space.indices(architecture).count(2) / 10)


def test_the_strongest_edges_are_kept(model: LatencyModel) -> None:
    free = Budget(model, 1e9)
    # The second edge's best operator is the third strongest, as none takes half of it.
    rows = [[0.1, 0.6, 0.3], [0.5, 0.1, 0.4], [0.45, 0.5, 0.05], [0.2, 0.3, 0.5]]
    first, second = itertools.islice(StrongestEdges()(finished(model.space, rows), free), 2)
    assert model.space.indices(first) == (1, 0, 1, 0)  # 0.5 against 0.5: the earlier edge
    assert model.space.indices(second) == (1, 0, 0, 2)
    dominated = [[0.9, 0.06, 0.04]] * 4
    assert model.space.indices(next(StrongestEdges()(finished(model.space, dominated), free))) == (1, 1, 0, 0)
    raised = [[0.94, 0.036, 0.024], *dominated[1:]]  # none of a kept edge grows until it loses its place
    assert model.space.indices(next(StrongestEdges()(finished(model.space, raised), free))) == (0, 1, 1, 0)


def test_every_derivation_keeps_node_and_limit(model: LatencyModel) -> None:
    rows = [[0.01, 0.01, 0.98]] * 4
    done, low = finished(model.space, rows), model.exact_ms(model.space.architecture([1, 1, 0, 0]))
    high = model.exact_ms(model.space.architecture([2, 2, 0, 0]))
    budget = Budget(model, (low + high) / 2)  # one 3x3 convolution fits, two do not
    evolution = Evolution(population=8, generations=3, num_parents=4, num_mutations=4, num_crossovers=4)
    for derivation in (StrongestEdges(), StrongestEdges(floor=0.99), Argmax(), MostProbableWithinBudget(0), evolution):
        found = [*derivation(done, budget)]
        assert found
        assert all(model.exact_ms(a) <= budget.max_ms for a in found)
        assert all(sum(option != NONE for _, option in a.options) == 2 for a in found)
        if derivation is not evolution:
            assert sorted(option for _, option in found[0].options) == ["k1", "k3", NONE, NONE]
    with pytest.raises(UsageError, match="floor=2"):
        StrongestEdges(floor=2)


def test_deriving_from_one_hot_gives_that_architecture() -> None:
    space = create_space("darts-cell", **SMALL)
    budget = Budget(LatencyModel.from_table(space, toy_table(space)), 1e9)
    for architecture in (DARTS_V2.architecture(space), *space.distinct(2, seed=0)):
        chances = {name: gate.weights for name, gate in one_hot_gates(space, architecture).items()}
        assert next(StrongestEdges()(Finished(chances, lambda a: 0.0), budget)) == architecture


def test_genotypes_are_read_and_printed() -> None:
    space = create_space("darts-cell", **SMALL)
    printed = str(DARTS_V2)
    assert printed.endswith("('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=[2, 3, 4, 5])")
    assert Genotype.parse(printed.replace("[2, 3, 4, 5]", "range(2, 6)")) == DARTS_V2
    assert json.loads(DARTS_V2.to_json())["normal"][-1] == ["dil_conv_3x3", 2]
    for architecture in space.distinct(5, seed=1):
        genotype = Genotype.of(architecture)
        assert genotype.architecture(space) == architecture
        assert Genotype.parse(str(genotype)) == Genotype.from_json(genotype.to_json()) == genotype


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Genotype(normal=[])",
        str(DARTS_V2).replace("Genotype", "print"),
        str(DARTS_V2).replace("[2, 3, 4, 5]", "range(2, 10**9)"),
        str(DARTS_V2).replace("[2, 3, 4, 5]", "[3, 4, 5]"),
        str(DARTS_V2).replace("('dil_conv_3x3', 2)", "('dil_conv_3x3', 0)"),
        str(DARTS_V2).replace("('dil_conv_3x3', 2)", "('dil_conv_3x3', 5)"),
        "(" * 300,
    ],
)
def test_other_text_is_no_genotype(text: str) -> None:
    with pytest.raises(ArchitectureError, match=r"expected (Genotype|8 edges|two different nodes)"):
        Genotype.parse(text)
    with pytest.raises(ArchitectureError, match="not a genotype"):
        Genotype.from_json(text)


@pytest.mark.parametrize("node", ["0.7", "true", '"0"'])
def test_nodes_of_a_genotype_are_whole_numbers(node: str) -> None:
    text = DARTS_V2.to_json().replace('["sep_conv_3x3", 0]', f'["sep_conv_3x3", {node}]', 1)
    with pytest.raises(ArchitectureError, match="is no number of a node"):
        Genotype.from_json(text)


def test_a_run_keeps_the_genotype_of_its_last_cells(tmp_path: Path) -> None:
    run, space = RunFolder(tmp_path), create_space("darts-cell", **SMALL)
    found = DARTS_V2.architecture(space)
    run.save_architecture(found)
    assert Genotype.from_json(run.file("genotype.json").read_text()).architecture(space) == found
    run.save_architecture(create_space("gold-nas", **SMALL).distinct(1, seed=0)[0])  # which no genotype can tell
    assert not run.file("genotype.json").exists()


def test_operators_that_a_space_lacks_are_refused() -> None:
    with pytest.raises(ArchitectureError, match="has no option 'dil_conv_3x3'"):
        DARTS_V2.architecture(create_space("robust-darts", **SMALL))
    with pytest.raises(ArchitectureError, match="has 0 edges"):
        Genotype.of(create_space("nas-bench-201").distinct(1, seed=0)[0])


@pytest.mark.parametrize(
    ("name", "options"),
    [("darts-cell", {}), ("darts-cell", {"stem_stride": 8, "resolution": 33}), ("robust-darts", {"subspace": 1}),
     ("gold-nas", {}), ("nas-bench-201", {})],
)  # fmt: skip
def test_extraction_leaves_edges_of_none_out_and_is_exact(name: str, options: dict[str, int]) -> None:
    torch.manual_seed(0)
    sizes = {"num_cells": 1, "width": 0.25} if name == "nas-bench-201" else SMALL
    space = create_space(name, **(sizes | options))
    supernet, images = Supernet(space), torch.randn(2, *space.input_shape)
    networks = [extract(supernet, architecture) for architecture in space.distinct(3, seed=0)]
    assert min(map(len, networks)) < len(space.layers)
    for network in networks:
        assert torch.equal(network(images), supernet(images, one_hot_gates(space, network.architecture)))


def test_a_node_without_edges_is_zero() -> None:
    space = create_space("nas-bench-201", resolution=16, num_cells=1, width=0.25)
    network = Network(space, space.architecture([0] * 6)).eval()
    assert [name for name in network._modules if "edge" in name] == [f"stage{s}_cell1_edge03" for s in (1, 2, 3)]
    assert torch.equal(network(torch.randn(1, 3, 16, 16)), network(torch.randn(1, 3, 16, 16)))


def test_searched_norms_do_not_scale() -> None:
    supernet = Supernet(create_space("darts-cell", **SMALL))
    affine = {name for name, m in supernet.named_modules() if isinstance(m, torch.nn.BatchNorm2d) and m.affine}
    assert affine == {"layers.stem.norm"}
    pool = supernet.get_submodule("layers.cell0_edge02.options.1")
    assert [type(m).__name__ for m in pool] == ["MaxPool2d", "BatchNorm2d"]
    other = Supernet(create_space("nas-bench-201", resolution=16, num_cells=1, width=0.25))
    assert type(other.get_submodule("layers.stage1_cell1_edge01.options.4")) is torch.nn.AvgPool2d
    scaling = {n for n, m in other.named_modules() if isinstance(m, torch.nn.BatchNorm2d) and m.affine}
    assert scaling
    assert not any("edge" in name for name in scaling)


def test_latency_and_graph_of_a_network_lack_its_edges_of_none() -> None:
    space = create_space("darts-cell", **SMALL)
    table = toy_table(space)
    architecture = DARTS_V2.architecture(space)
    layers, wiring = space.network(architecture)
    model = LatencyModel.from_table(space, table)
    assert model.exact_ms(architecture) == pytest.approx(sum(table.entries[s].ms for s in layers.values()))
    assert sum(map(macs, layers.values())) < sum(max(map(macs, layer.signatures)) for layer in space.layers)
    pytest.importorskip("onnx")
    operators = {s: build_op(s).eval() for s in dict.fromkeys(layers.values())}
    graphs = dict(zip(operators, export_many([*operators.values()], [s.in_shape for s in operators]), strict=True))
    kinds = Counter(node.op_type for node in join([graphs[s] for s in layers.values()], wiring).graph.node)
    assert kinds["Sum"] == 3 * 4  # two edges of every node
    assert kinds["Concat"] >= 3


def test_factorized_reduction_reads_every_second_pixel_and_the_others() -> None:
    reduce = FactorizedReduce(OpSignature.create("factorized_reduce", (1, 5, 5), 2, stride=2)).eval()
    with torch.no_grad():
        for parameter in (reduce.first.weight, reduce.second.weight):
            parameter.fill_(1)
        found = reduce(torch.arange(1.0, 26.0).view(1, 1, 5, 5)) * (1 + reduce.norm.eps) ** 0.5
    assert torch.allclose(found[0, 0], torch.tensor([[1.0, 3, 5], [11, 13, 15], [21, 23, 25]]))
    assert torch.allclose(found[0, 1], torch.tensor([[7.0, 9, 0], [17, 19, 0], [0, 0, 0]]))


def test_a_relu_first_convolution_starts_as_published() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _, convolution, norm = build_op(OpSignature.create("relu_conv", (16, 4, 4), 16, k=1))
    assert norm.eps == 1e-5
    largest = float(convolution.weight.detach().abs().max())
    assert 0.9 / 4 < largest <= 1 / 4  # even between -1 and 1 over the root of the 16 inputs


def test_a_drawn_cell_shows_what_computes_and_counts_the_rest() -> None:
    space = create_space("gold-nas", **SMALL)
    lost = {name for name in space.choice_names if name.startswith("cell1_") and name.endswith("sep3")}
    *lines, last = draw(space, space.architecture([int(name not in lost) for name in space.choice_names])).splitlines()
    shown = [line.split()[0] for line in lines]
    assert shown == [layer.name for layer in space.layers if not layer.is_node and layer.name not in lost]
    assert last == "  not shown: 15 nodes, which add up or join, and 14 edges of none"
    assert max(line.count("█") for line in lines) == 24
