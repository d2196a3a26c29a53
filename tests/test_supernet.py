"""The supernet: extraction is exact, one path moves one path's weights, gate gradients are the published ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from hwnas.errors import MissingChoiceError, UnsupportedSpaceError
from hwnas.ops.blocks import build_op
from hwnas.ops.wiring import feed
from hwnas.space import Choice, LayerSpec, OpSignature, SearchSpace, create_space
from hwnas.supernet.gates import Gate, one_hot_gates
from hwnas.supernet.mixed_op import MixedOp, frozen_batchnorm
from hwnas.supernet.supernet import Supernet, extract, recalibrate_batchnorm
from hwnas.testing.toys import toy_space


@pytest.fixture
def supernet() -> Supernet:
    torch.manual_seed(0)
    return Supernet(toy_space())


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("training", [True, False])
def test_extracted_network_equals_one_hot_supernet_bit_for_bit(
    supernet: Supernet, images: Tensor, training: bool
) -> None:
    supernet.train(training)
    for architecture in supernet.space:
        network = extract(supernet, architecture)
        assert network.training == training
        expected = supernet(images, one_hot_gates(supernet.space, architecture))
        assert torch.equal(network(images), expected)


@pytest.mark.parametrize("name", ["nas-bench-201", "nas-bench-macro", "fbnet"])
def test_extraction_is_exact_in_spaces_that_are_no_simple_chain_of_mbconv(name: str) -> None:
    torch.manual_seed(0)
    space = create_space(name, resolution=16, width=0.25, num_classes=5)
    supernet, images = Supernet(space).eval(), torch.randn(2, 3, 16, 16)
    for architecture in space.distinct(3, seed=0):
        expected = supernet(images, one_hot_gates(space, architecture))
        assert expected.shape == (2, 5)
        assert torch.equal(extract(supernet, architecture)(images), expected)


def test_a_cell_adds_up_its_edges() -> None:
    # skip on 0->1, 1->3 and none elsewhere leaves the identity; skip on all edges gives
    # node1 = x, node2 = x + node1 = 2x, node3 = x + node1 + node2 = 4x.
    space = create_space("nas-bench-201", resolution=16, num_cells=1)
    cell = [layer for layer in space.layers if layer.name.startswith("stage1_cell1")]
    wiring = ((-1,), (-1,), (0,), (-1,), (0,), (1, 2), (3, 4, 5))
    assert tuple(tuple(i - 1 for i in sources) for sources in space.wiring[1:7]) == wiring[:6]
    x = torch.randn(1, 16, 16, 16)
    for options, factor in (((1, 0, 0, 0, 1, 0), 1.0), ((1, 1, 1, 1, 1, 1), 4.0)):
        edges = [build_op(layer.signatures[option]) for layer, option in zip(cell, options, strict=True)]
        assert torch.equal(feed([*edges, nn.Identity()], x, wiring), factor * x)


def test_extracted_network_shares_no_memory(supernet: Supernet) -> None:
    network = extract(supernet, supernet.space.architecture([0, 0, 0]))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert any(p.abs().sum() > 0 for p in supernet.parameters())


def test_parameters_off_the_path_do_not_move(supernet: Supernet, images: Tensor) -> None:
    optimizer = torch.optim.SGD(supernet.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    everywhere = {name: Gate(torch.full((3,), 1 / 3), (0, 1, 2)) for name in supernet.space.choice_names}
    supernet(images, everywhere).sum().backward()
    optimizer.step()  # momentum buffers now exist for every parameter
    architecture = supernet.space.architecture([0, 1, 2])
    before = copy.deepcopy(supernet.state_dict())
    optimizer.zero_grad(set_to_none=True)
    supernet(images, one_hot_gates(supernet.space, architecture)).square().sum().backward()
    optimizer.step()
    on_path = {"layers.layer1.options.0", "layers.layer2.options.1", "layers.stem", "layers.classifier"}
    for name, parameter in supernet.named_parameters():
        moved = not torch.equal(parameter, before[name])
        assert moved == any(name.startswith(prefix + ".") for prefix in on_path), name
    for name, buffer in supernet.named_buffers():
        if not any(name.startswith(prefix + ".") for prefix in on_path):
            assert torch.equal(buffer, before[name]), name


@pytest.mark.parametrize("probed", [(), (0, 2)])
def test_gate_gradients_equal_the_dense_reference(probed: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    mixed = MixedOp([nn.Conv2d(2, 2, k, padding=k // 2).double() for k in (1, 3, 5)])
    x = torch.randn(3, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    grad_y = torch.randn(3, 2, 6, 6, dtype=torch.float64)
    weights = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64, requires_grad=True)

    def gradients(gate: Gate) -> tuple[Tensor, ...]:
        y = mixed(x, gate)
        return torch.autograd.grad((y * grad_y).sum(), [x, weights, mixed.options[1].weight])  # type: ignore[arg-type]

    dense = gradients(Gate(weights, (0, 1, 2)))
    hard = gradients(Gate(weights, (1,), probed, hard=True))
    seen = torch.zeros(3, dtype=torch.bool)
    seen[[1, *probed]] = True
    torch.testing.assert_close(hard[0], dense[0])
    torch.testing.assert_close(hard[1][seen], dense[1][seen])
    assert (hard[1][~seen] == 0).all()
    torch.testing.assert_close(hard[2], dense[2])


def test_probing_changes_no_buffer_and_no_weight_gradient() -> None:
    torch.manual_seed(0)
    options = [nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)) for _ in range(2)]
    mixed = MixedOp(options).train()
    before = copy.deepcopy(options[1].state_dict())
    weights = torch.tensor([1.0, 0.0], requires_grad=True)
    mixed(torch.randn(4, 2, 5, 5), Gate(weights, (0,), (1,), hard=True)).sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in options[1].state_dict().items())
    assert all(p.grad is None for p in options[1].parameters())
    assert weights.grad is not None
    assert weights.grad.abs().min() > 0


def test_a_hard_gate_stores_no_more_than_the_plain_network(supernet: Supernet, images: Tensor) -> None:
    architecture = supernet.space.architecture([0, 1, 0])
    plain = extract(supernet, architecture)

    def saved(run: nn.Module, *arguments: object) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = run(*arguments)
        assert output.requires_grad
        return sum(sizes.values())

    gates = {
        name: Gate(gate.weights.clone().requires_grad_(), gate.active, hard=True)
        for name, gate in one_hot_gates(supernet.space, architecture).items()
    }
    # One extra map: the last block's output, which the pooling behind it does not keep. And three gates.
    extra = 4 * 8 * 4 * 4 * 4 + 3 * 3 * 4
    assert saved(supernet.train(), images, gates) <= saved(plain.train(), images) + extra


def test_frozen_batchnorm_restores_tracking() -> None:
    norm = nn.BatchNorm2d(2).train()
    x = torch.randn(4, 2, 3, 3)
    expected = norm(x)
    state = copy.deepcopy(norm.state_dict())
    with frozen_batchnorm(norm):
        assert torch.equal(norm(x), expected)
    assert all(torch.equal(value, state[key]) for key, value in norm.state_dict().items())
    norm(x)
    assert norm.num_batches_tracked == 2


def test_recalibration_is_the_exact_average_over_batches(supernet: Supernet) -> None:
    network = extract(supernet, supernet.space.architecture([0, 1, 2])).eval()
    batches = [torch.randn(5, 3, 8, 8) * scale for scale in (1.0, 3.0, 0.2)]
    stem = network.get_submodule("stem.conv")
    outputs = [stem(batch) for batch in batches]
    recalibrate_batchnorm(network, batches)
    norm = network.get_submodule("stem.norm")
    mean = torch.stack([y.mean((0, 2, 3)) for y in outputs]).mean(0)
    variance = torch.stack([y.var((0, 2, 3)) for y in outputs]).mean(0)
    torch.testing.assert_close(norm.running_mean, mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var, variance, rtol=1e-5, atol=1e-6)
    assert norm.momentum == 0.1
    assert not network.training


def test_missing_gate_and_coupled_layers_are_errors(supernet: Supernet, images: Tensor) -> None:
    gates = one_hot_gates(supernet.space, supernet.space.architecture([0, 0, 0]))
    del gates["layer2"]
    with pytest.raises(MissingChoiceError, match="choice 'layer2' has no gate; given: layer1, layer3"):
        supernet(images, gates)
    operators = tuple(OpSignature.create("conv", (3, 8, 8), 8, k=k) for k in (1, 3, 5, 7))
    choices = (Choice("a", ("x", "y")), Choice("b", ("x", "y")))
    space = SearchSpace("coupled", (3, 8, 8), 10, choices, (LayerSpec("one", operators, ("a", "b")),))
    with pytest.raises(UnsupportedSpaceError, match="depends on 2 choices"):
        Supernet(space)
