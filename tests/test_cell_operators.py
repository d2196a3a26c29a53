"""Operators of cells, as the published tables define them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from hwnas.ops.blocks import build_op
from hwnas.space import OpSignature, create_space
from hwnas.space.library.darts import OPERATORS, operator
from hwnas.supernet.supernet import Supernet

SMALL = {"channels": 4, "num_cells": 3, "resolution": 16}


def built(option: str, *, stride: int = 1, channels: int = 2, size: int = 9) -> nn.Module:
    """The operator of an option, as an edge has it."""
    return build_op(operator(option, (channels, size, size), stride)).eval()


def alone(size: int = 9) -> Tensor:
    """One image of two channels with a one in the middle."""
    x = torch.zeros(1, 2, size, size)
    x[..., size // 2, size // 2] = 1
    return x


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("option", OPERATORS)
def test_sizes_are_those_of_the_signature(option: str, stride: int) -> None:
    signature = operator(option, (4, 9, 9), stride)
    assert signature.out_shape == (4, 5 if stride == 2 else 9, 5 if stride == 2 else 9)
    assert tuple(build_op(signature)(torch.randn(2, 4, 9, 9)).shape[1:]) == signature.out_shape


@pytest.mark.parametrize(("option", "times"), [("sep_conv_3x3", 2), ("sep_conv_5x5", 2), ("dil_conv_3x3", 1)])
def test_convolutions_are_relu_depthwise_pointwise_and_norm(option: str, times: int) -> None:
    for stride in (1, 2):
        modules = [*built(option, stride=stride, channels=3)]
        assert [type(m) for m in modules] == [nn.ReLU, nn.Conv2d, nn.Conv2d, nn.BatchNorm2d] * times
        deep, wide = modules[1::4], modules[2::4]
        assert [(m.groups, m.stride) for m in deep] == [(3, (stride, stride)), (3, (1, 1))][:times]  # the first strides
        assert [(m.groups, m.kernel_size, m.stride) for m in wide] == [(1, (1, 1), (1, 1))] * times
        assert all(m.bias is None for m in (*deep, *wide))


@pytest.mark.parametrize(
    ("option", "apart", "count"),
    [("sep_conv_3x3", 1, 3), ("sep_conv_5x5", 1, 5), ("dil_conv_3x3", 2, 3), ("dil_conv_5x5", 2, 5)],
)
def test_a_depthwise_kernel_reaches_as_far_as_published(option: str, apart: int, count: int) -> None:
    depthwise = built(option)[1]  # type: ignore[index]
    with torch.no_grad():
        depthwise.weight.fill_(1)
        found = depthwise(alone())[0, 0]
    reached = {int(k) - 4 for k in found.nonzero()[:, 0]}
    assert reached == {apart * k for k in range(-(count // 2), count // 2 + 1)}
    assert int(found.sum()) == count**2


@pytest.mark.parametrize("stride", [1, 2])
def test_pools_do_not_count_the_padding(stride: int) -> None:
    x = -torch.ones(1, 2, 9, 9)
    for option in ("avg_pool_3x3", "max_pool_3x3"):
        torch.testing.assert_close(built(option, stride=stride)(x), x[..., ::stride, ::stride])
    assert int((built("max_pool_3x3")(alone()) > 0).sum()) == 2 * 9
    torch.testing.assert_close(built("avg_pool_3x3")(alone()).max(), torch.tensor(1 / 9))


def test_skips_are_nothing_and_none_is_zero() -> None:
    x = torch.randn(2, 2, 9, 9)
    assert torch.equal(built("skip_connect")(x), x)
    for stride in (1, 2):
        assert torch.equal(built("none", stride=stride)(x), torch.zeros_like(x[..., ::stride, ::stride]))


def test_noise_is_standard_and_does_not_see_the_image() -> None:
    noise, x = built("noise").train(), torch.full((100, 2, 9, 9), 7.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = noise(x)
    # Five deviations of the mean, and of the variance, of 16,200 draws.
    assert abs(float(found.mean())) < 5 / found.numel() ** 0.5
    assert abs(float(found.var()) - 1) < 5 * (2 / found.numel()) ** 0.5


def test_searched_pools_are_normalised_in_cells() -> None:
    supernet = Supernet(create_space("darts-cell", **SMALL))
    for layer in ("cell0_edge02", "cell1_edge02", "cell1_edge25"):  # the second reduces
        for option, kind in ((1, nn.MaxPool2d), (2, nn.AvgPool2d)):
            pool, norm = supernet.get_submodule(f"layers.{layer}.options.{option}").children()
            assert isinstance(pool, kind)
            assert isinstance(norm, nn.BatchNorm2d)
            assert not norm.affine


def test_edges_from_outside_stride_in_reducing_cells_only() -> None:
    space = create_space("darts-cell", **SMALL)
    strides = {layer.name: layer.signatures[0].stride for layer in space.layers if layer.is_edge}
    reducing = {name for name, stride in strides.items() if stride == 2}
    assert reducing == {f"cell{cell}_edge{a}{b}" for cell in (1, 2) for a in (0, 1) for b in (2, 3, 4, 5)}


def test_the_stem_for_imagenet() -> None:
    space = create_space("darts-cell", channels=48, num_cells=14, stem_stride=8, resolution=224, num_classes=1000)
    layers = {layer.name: layer for layer in space.layers}
    signatures = [layers[f"stem{k}"].signatures[0] for k in (1, 2, 3)]
    assert [s.out_shape for s in signatures] == [(24, 112, 112), (48, 56, 56), (48, 28, 28)]
    kinds = [[type(m) for m in build_op(s).modules() if not [*m.children()]] for s in signatures]
    convolution = [nn.Conv2d, nn.BatchNorm2d]
    assert kinds == [[*convolution, nn.ReLU], convolution, [nn.ReLU, *convolution]]  # conv, relu, conv; relu, conv
    # The first cell reads what is twice as large, as if a cell before it had reduced.
    assert layers["cell0_pre0"].inputs == ("stem2",)
    assert layers["cell0_pre0"].signatures[0].op == "factorized_reduce"
    assert layers["cell0_pre1"].inputs == ("stem3",)
    assert layers["cell0_pre1"].signatures[0].op == "relu_conv"


@pytest.mark.parametrize(
    ("num_cells", "reducing"), [(8, {2, 5}), (20, {6, 13}), (14, {4, 9}), (5, {1, 3}), (17, {5, 11})]
)
def test_cells_that_reduce_are_a_third_and_two_thirds_of_the_way(num_cells: int, reducing: set[int]) -> None:
    space = create_space("darts-cell", num_cells=num_cells, channels=4)
    found = {int(layer.name[4:].split("_")[0]) for layer in space.layers if {*layer.choices} & {"reduce_edge02"}}
    assert found == reducing
    halved = {layer.name for layer in space.layers if layer.name.endswith("_pre0") and layer.signatures[0].stride == 2}
    assert halved == {f"cell{number + 1}_pre0" for number in reducing}
    assert space.auxiliary == f"cell{max(reducing)}"


def test_the_benchmarks_reduction_is_a_residual_block_beside_a_pooled_shortcut() -> None:
    block = build_op(OpSignature.create("resblock", (4, 8, 8), 8, stride=2)).eval()
    x = torch.zeros(1, 4, 8, 8)
    x[0, 0, 0, 0] = 4
    shortcut = block.get_submodule("shortcut")
    pool, convolution = shortcut.children()
    assert torch.equal(pool(x)[0, 0], pad(torch.ones(1, 1), (0, 3, 0, 3)))
    assert isinstance(convolution, nn.Conv2d)
    assert convolution.kernel_size == (1, 1)


def test_edges_and_candidates_of_the_benchmark() -> None:
    space = create_space("nas-bench-201")
    assert space.choice_names == ("edge01", "edge02", "edge12", "edge03", "edge13", "edge23")
    assert {choice.options for choice in space.choices} == {
        ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
    }
    assert space.size == 5**6
    shapes = [layer.signatures[0].out_shape for layer in space.layers if layer.choices]
    assert shapes == [(c, s, s) for c, s in ((16, 32), (32, 16), (64, 8)) for _ in range(5 * 6)]


def test_a_factorized_reduction_does_not_see_what_is_negative() -> None:
    reduce = built("skip_connect", stride=2)
    x = torch.randn(1, 2, 9, 9)
    assert torch.equal(reduce(x), reduce(x.clamp_min(0)))
    assert not torch.equal(reduce(x), reduce(torch.zeros_like(x)))


@pytest.mark.parametrize("name", ["darts-cell", "nas-bench-201"])
def test_the_stem_has_no_activation(name: str) -> None:
    space = create_space(name, num_cells=3)
    assert [type(m) for m in build_op(space.layers[0].signatures[0]).modules() if not [*m.children()]] in (
        [nn.Conv2d, nn.BatchNorm2d],
        [nn.Conv2d, nn.BatchNorm2d, nn.Identity],
    )


def test_the_head_of_nas_bench_201_has_a_norm_and_an_activation() -> None:
    head = build_op(create_space("nas-bench-201", num_cells=1).layers[-1].signatures[0]).eval()
    x = torch.randn(2, 64, 8, 8)
    assert torch.equal(head(x), head(x.clamp_min(0)))
    assert any(isinstance(module, nn.BatchNorm2d) for module in head.modules())
