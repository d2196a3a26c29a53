"""Spaces, signatures and architectures: plain data, exact round trips, formulas against real modules."""

from __future__ import annotations

import itertools
import json
import random

import pytest
import torch
from torch import nn

from hwnas.errors import ArchitectureError, SpaceError, UnknownNameError, UsageError
from hwnas.ops.blocks import build_op
from hwnas.space import (
    SPACES,
    Architecture,
    Choice,
    LayerSpec,
    OpSignature,
    SearchSpace,
    create_space,
    macs,
    parameters,
)
from hwnas.testing.toys import toy_space


@pytest.mark.parametrize("name", SPACES)
def test_every_space_is_consistent(name: str) -> None:
    space = create_space(name)
    assert space.size == _product(space.num_options)
    for seed in range(5):
        architecture = space.random(random.Random(seed))
        assert space.architecture(dict(architecture.options)) == architecture
        operators = space.operators(architecture)
        assert operators[0].in_shape == space.input_shape
        assert operators[-1].out_shape == (space.num_classes, 1, 1)
        assert all(a.out_shape == b.in_shape for a, b in itertools.pairwise(operators))


@pytest.mark.parametrize("signature", create_space("tiny-mbconv").signatures(), ids=str)
def test_signature_text_round_trip_and_cost_formula(signature: OpSignature) -> None:
    assert OpSignature.parse(str(signature)) == signature
    module = build_op(signature).eval()
    counted = 0

    def count(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal counted
        per_output = layer.weight[0].numel()  # type: ignore[index, operator]
        counted += per_output * output[0].numel()  # type: ignore[operator]

    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    out = module(torch.zeros(2, *signature.in_shape))
    assert out.shape[1] == signature.out_shape[0]
    assert tuple(out.shape[2:]) in (signature.out_shape[1:], ())
    assert counted == macs(signature)
    assert sum(p.numel() for p in module.parameters()) == parameters(signature)


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
