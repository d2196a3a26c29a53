"""Spaces, signatures and architectures: plain data, exact round trips, formulas against real modules."""

from __future__ import annotations

import csv
import json
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v2

from hwnas.errors import ArchitectureError, SpaceError, UnknownNameError, UsageError
from hwnas.ops.blocks import build_op
from hwnas.space import (
    SPACES,
    Architecture,
    Choice,
    Joined,
    LayerSpec,
    OpSignature,
    SearchSpace,
    create_space,
    macs,
    parameters,
)
from hwnas.supernet.supernet import Network
from hwnas.testing.toys import toy_space

SHARED = Path(os.environ.get("HWNAS_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.mark.parametrize("name", SPACES)
def test_every_space_is_consistent(name: str) -> None:
    space = create_space(name)
    assert (space.size == _product(space.num_options)) == (not space.nodes)
    for seed in range(5):
        architecture = space.random(random.Random(seed))
        assert space.architecture(dict(architecture.options)) == architecture
        operators = space.operators(architecture)
        assert operators[0].in_shape == space.input_shape
        assert operators[-1].out_shape == (space.num_classes, 1, 1)
        for operator, sources in zip(operators, space.wiring, strict=True):
            given = [operators[i].out_shape if i >= 0 else space.input_shape for i in sources]
            if isinstance(sources, Joined):
                given = [(sum(shape[0] for shape in given), *given[0][1:])]
            assert all(operator.in_shape == shape for shape in given)


NARROW: dict[str, dict[str, float]] = {
    "tiny-mbconv": {"resolution": 32, "width": 0.25},
    "proxylessnas": {"resolution": 33, "width": 0.25},
    "fbnet": {"resolution": 32, "width": 0.25},
    "nas-bench-macro": {"resolution": 16, "width": 0.25},
    "nas-bench-201": {"resolution": 17, "width": 0.25},
    "darts-cell": {"resolution": 17, "channels": 5, "num_cells": 3},
    "robust-darts": {"resolution": 16, "channels": 4, "num_cells": 3, "subspace": 4},
}

ONE_OF_EACH = {
    (s.op, s.attributes, s.in_shape == s.out_shape): s
    for name, options in NARROW.items()
    for s in create_space(name, **options).signatures()
}
"""Every kind of operator of every space once, at odd sizes too."""


@pytest.mark.parametrize("signature", ONE_OF_EACH.values(), ids=str)
def test_signature_text_round_trip_and_cost_formula(signature: OpSignature) -> None:
    assert OpSignature.parse(str(signature)) == signature
    module = build_op(signature).eval()
    found = 0

    def count(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal found
        per_output = layer.weight[0].numel()  # type: ignore[index, operator]
        found += per_output * output[0].numel()  # type: ignore[operator]

    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    out = module(torch.zeros(2, *signature.in_shape))
    assert out.shape[1] == signature.out_shape[0]
    assert tuple(out.shape[2:]) in (signature.out_shape[1:], ())
    assert found == macs(signature)
    assert sum(p.numel() for p in module.parameters()) == parameters(signature)


def counted(space: SearchSpace, options: Sequence[int] | Mapping[str, str]) -> tuple[int, int]:
    """Multiply-adds and parameters of one network."""
    operators = space.operators(space.architecture(options))
    return sum(map(macs, operators)), sum(map(parameters, operators))


@pytest.mark.parametrize(
    ("option", "mega_macs", "mega_parameters"),
    [
        ("k3_e3", 257.42, 3.192), ("k3_e6", 472.62, 4.685), ("k5_e3", 284.22, 3.276),
        ("k5_e6", 526.21, 4.852), ("k7_e3", 324.41, 3.401), ("k7_e6", 606.59, 5.103),
    ],
)  # fmt: skip
def test_proxylessnas_uniform_networks(option: str, mega_macs: float, mega_parameters: float) -> None:
    # Counted by hand from the table of the paper's space.
    space = create_space("proxylessnas")
    found = counted(space, dict.fromkeys(space.choice_names, option))
    assert found == (pytest.approx(mega_macs * 1e6, rel=3e-5), pytest.approx(mega_parameters * 1e6, rel=3e-4))


def test_proxylessnas_size_and_smallest_network() -> None:
    space = create_space("proxylessnas")
    assert space.size == 6**6 * 7**15
    smallest = {c.name: "skip" if "skip" in c.options else "k3_e3" for c in space.choices}
    assert counted(space, smallest) == (pytest.approx(102.53e6, rel=1e-4), pytest.approx(2.155e6, rel=1e-3))


def test_mobilenetv2_is_torchvisions() -> None:
    space = create_space("mobilenetv2", resolution=64, num_classes=10)
    ours = Network(space, space.architecture(dict.fromkeys(space.choice_names, "k3_e6")))
    theirs = mobilenet_v2(weights=None, num_classes=10, dropout=0.0, norm_layer=partial(nn.BatchNorm2d, eps=1e-3))
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found, expected = ours.train()(images), theirs.train()(images)  # statistics of the batch keep activations large
    assert float(expected.detach().abs().max()) > 0.01
    torch.testing.assert_close(found, expected)
    assert space.size == 6**6 * 7**10


FBNETS = {
    # Layers in order as kernel_expansion[_g2], s for skip; channels of the head; million multiply-adds as released,
    # where blocks of expansion 1 have no first convolution, and with it.
    "A": ("s k3_3 k3_1 s s k5_6 k3_3 k5_1 k3_3 k5_6 k5_3 k5_1_g2 k5_6 k3_6 k5_1_g2 k5_3 k3_1_g2 k5_6 k5_6 k5_3 k5_6"
          " k5_6", 1504, 244.45, 249.92),
    "B": ("k3_1 k3_6 k5_1 k3_1 k3_1 k5_6 k5_3 k3_6 k5_6 k5_6 k5_6 s k5_3 k5_6 k3_1 k5_1 k5_3 k5_6 k5_1 k5_6 k5_6"
          " k3_6", 1984, 291.00, 306.21),
    "C": ("k3_1 k3_6 s k3_1 k3_1 k5_6 k5_3 k5_6 k3_6 k5_6 k5_3 k5_6 k5_6 k5_6 k5_6 k5_6 k5_3 k5_6 k5_6 k5_6 k5_6"
          " k3_6", 1984, 378.14, 384.96),
}  # fmt: skip


@pytest.mark.parametrize("name", FBNETS)
def test_released_fbnets(name: str) -> None:
    layers, head, released, kept = FBNETS[name]
    space = create_space("fbnet", head=head)
    assert space.size == 9**22
    options = ["skip" if layer == "s" else layer.replace("_", "_e", 1) for layer in layers.split()]
    operators = space.operators(space.architecture(dict(zip(space.choice_names, options, strict=True))))
    without = [replace(s, attributes=tuple(a for a in s.attributes if a[0] != "expand")) for s in operators]
    assert sum(map(macs, operators)) == pytest.approx(kept * 1e6, rel=3e-5)
    assert sum(map(macs, without)) == pytest.approx(released * 1e6, rel=3e-5)


@pytest.mark.parametrize(
    ("digit", "expected"), [(0, (7_713_280, 387_882)), (1, (53_246_464, 1_588_874)), (2, (105_660_928, 2_932_586))]
)
def test_nas_bench_macro_uniform_networks(digit: int, expected: tuple[int, int]) -> None:
    # Published with the benchmark.
    space = create_space("nas-bench-macro")
    assert space.size == 6561
    assert counted(space, [digit] * 8) == expected


def test_nas_bench_macro_costs_of_every_network() -> None:
    path = SHARED / "nas-bench-macro" / "nas_bench_macro.csv"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    space = create_space("nas-bench-macro")
    costs = [[np.asarray([cost(s) for s in layer.signatures]) for layer in space.layers] for cost in (macs, parameters)]
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == space.size
    codes = np.asarray([[0, *map(int, row["arch"]), 0, 0] for row in rows])  # stem, head and classifier are fixed
    for column, layers in zip(("macs", "params"), costs, strict=True):
        total = sum(layer[codes[:, i]] for i, layer in enumerate(layers))
        assert total.tolist() == [int(row[column]) for row in rows]


def test_nas_bench_201_uniform_networks() -> None:
    # Published: 1.531546 M parameters of the network of 3x3 convolutions, 0.073306 M of skips.
    space = create_space("nas-bench-201")
    assert space.size == 5**6
    for option, expected in (("nor_conv_3x3", 1_531_546), ("skip_connect", 73_306)):
        assert counted(space, dict.fromkeys(space.choice_names, option))[1] == expected


def test_tiny_mbconv_size() -> None:
    # 7 layers: 3 change shape (2 kernels x 2 expansions), 4 keep it and may be skipped: 4^3 * 5^4.
    assert create_space("tiny-mbconv").size == 4**3 * 5**4


def test_options_change_the_space() -> None:
    space = create_space("tiny-mbconv", resolution=64, num_classes=100, width=2.0)
    assert space.input_shape == (3, 64, 64)
    assert space.operators(space.random(random.Random(0)))[0].out_shape == (32, 32, 32)
    assert space.fingerprint != create_space("tiny-mbconv").fingerprint
    assert space.fingerprint == create_space("tiny-mbconv", resolution=64, num_classes=100, width=2.0).fingerprint


def test_unknown_space_and_option() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown space 'tiny-mbcon'.*Did you mean 'tiny-mbconv'\?"):
        create_space("tiny-mbcon")
    with pytest.raises(UsageError, match="has no option 'depth'; it takes resolution, num_classes, width"):
        create_space("tiny-mbconv", depth=3)
    with pytest.raises(UsageError, match="got resolution 4"):
        create_space("tiny-mbconv", resolution=4)


@pytest.mark.parametrize(
    "text",
    ["", "mbconv", "mbconv k3 24x56x56 -> 32x28x28", "mbconv e6 k5 s2 24x56x56 -> 32x28x28", "conv k3 s1 3x8x8 -> 8x8"],
)
def test_malformed_signatures_are_refused(text: str) -> None:
    with pytest.raises(SpaceError, match=r"signature|canonical"):
        OpSignature.parse(text)


def test_signature_with_word_attribute_round_trips() -> None:
    signature = OpSignature.create("conv", (3, 9, 9), 8, stride=2, k=3, act="relu")
    # Odd sizes round up: ceil(9 / 2) = 5.
    assert str(signature) == "conv k3 act=relu s2 3x9x9 -> 8x5x5"
    assert OpSignature.parse(str(signature)) == signature


def test_architecture_json_round_trip_and_stable_id() -> None:
    space = toy_space()
    architecture = space.architecture([0, 1, 2])
    assert Architecture.from_json(architecture.to_json()) == architecture
    assert Architecture.from_json(json.dumps(json.loads(architecture.to_json()), indent=3)) == architecture
    assert len({a.id for a in space}) == space.size
    assert architecture["layer2"] == "k5_e2"
    for broken in ("", "[]", '{"space": "toy"}', '{"space": "toy", "options": 3}'):
        with pytest.raises(ArchitectureError, match="expected JSON like"):
            Architecture.from_json(broken)


def test_architectures_of_another_space_or_option_are_refused() -> None:
    space = toy_space()
    with pytest.raises(ArchitectureError, match="space 'tiny-mbconv' given to space 'toy'"):
        space.indices(create_space("tiny-mbconv").random(random.Random(0)))
    with pytest.raises(ArchitectureError, match="choice 'layer2' has no option 'k9'"):
        space.architecture({"layer1": "skip", "layer2": "k9", "layer3": "skip"})
    with pytest.raises(ArchitectureError, match="has no choice 'layer9'"):
        space.architecture({"layer1": "skip", "layer2": "skip", "layer3": "skip", "layer9": "skip"})
    with pytest.raises(ArchitectureError, match="2 options given"):
        space.architecture([0, 0])
    with pytest.raises(ArchitectureError, match="no option number 7"):
        space.architecture([0, 0, 7])


def test_inconsistent_spaces_are_refused() -> None:
    conv = OpSignature.create("conv", (3, 8, 8), 8, k=3)
    other = OpSignature.create("conv", (4, 8, 8), 8, k=3)

    def build(*layers: LayerSpec, choices: tuple[Choice, ...] = ()) -> SearchSpace:
        return SearchSpace("broken", (3, 8, 8), 10, choices, layers)

    with pytest.raises(SpaceError, match="repeats a layer name"):
        build(LayerSpec("a", (conv,)), LayerSpec("a", (conv,)))
    with pytest.raises(SpaceError, match="unknown choice 'x'"):
        build(LayerSpec("a", (conv,), ("x",)))
    with pytest.raises(SpaceError, match="has 1 operators; its choices need 2"):
        build(LayerSpec("a", (conv,), ("x",)), choices=(Choice("x", ("p", "q")),))
    with pytest.raises(SpaceError, match="expects another shape"):
        build(LayerSpec("a", (other,)))
    with pytest.raises(SpaceError, match="takes its input from 'b', which no earlier layer is"):
        build(LayerSpec("a", (conv,), inputs=("b",)))
    with pytest.raises(SpaceError, match=r"'b' gets \(8, 8, 8\) but"):
        build(LayerSpec("a", (conv,)), LayerSpec("b", (conv,), inputs=("a",)))
    with pytest.raises(SpaceError, match="distinct options"):
        Choice("x", ("p", "p"))


def test_distinct_gives_different_networks_and_stops_at_the_whole_space() -> None:
    space = toy_space(num_layers=2)
    assert len(set(space.distinct(5, seed=3))) == 5
    assert space.distinct(5, seed=3) == space.distinct(5, seed=3)
    assert set(space.distinct(100, seed=0)) == set(space)


def _product(values: tuple[int, ...]) -> int:
    total = 1
    for value in values:
        total *= value
    return total
