"""GDAS: what one sampled path puts out, which gradient it leaves to the logits, and what it keeps in memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hwnas.search.protocols import Relaxation
from hwnas.search.relaxations import Softmax, StraightThroughGumbel, gumbel_softmax
from hwnas.supernet.gates import Gate
from hwnas.supernet.mixed_op import MixedOp

SMALL = 100
"""Numbers in what is not counted: gates, channels."""

LOGITS = torch.tensor([0.4, -0.3, 0.9, 0.1], dtype=torch.float64)


def drawn(relaxation: Relaxation, logit: Tensor, seed: int) -> Gate:
    return relaxation({"a": logit}, progress=0.0, generator=torch.Generator().manual_seed(seed))["a"]


def edge() -> tuple[MixedOp, Tensor, Tensor]:
    """Four convolutions, images, and what their output is weighed by in the loss."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mixed = MixedOp([nn.Conv2d(2, 2, 3, padding=1).double() for _ in LOGITS])
        x, slopes = torch.randn(2, 3, 2, 5, 5, dtype=torch.float64)
    return mixed, x, slopes


@pytest.mark.parametrize("tau", [0.5, 2.0])
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_gradient_of_a_sampled_path_is_that_of_its_variant(seed: int, added: bool, tau: float) -> None:
    mixed, x, slopes = edge()
    logit = nn.Parameter(LOGITS.clone())
    gate = drawn(StraightThroughGumbel(tau, added=added), logit, seed)
    (i,), w = gate.active, gumbel_softmax(LOGITS, tau, torch.Generator().manual_seed(seed))
    assert i == int(w.argmax())
    assert gate.weights.detach().tolist() == [float(k == i) for k in range(len(w))]
    y = mixed(x, gate)
    assert torch.equal(y, mixed.options[i](x))
    (y * slopes).sum().backward()
    # (1 / tau) <g, o_i> w_i (1[i = m] - w_m), and S sum_{j != i} w_j (1[j = m] - w_m) / tau, where those are added
    inner, whole = float((slopes * y.detach()).sum()), float(slopes.sum())
    one = torch.eye(len(w), dtype=torch.float64)
    expected = inner * w[i] * (one[i] - w) / tau
    if added:
        expected = expected + sum(whole * w[j] * (one[j] - w) / tau for j in range(len(w)) if j != i)
    torch.testing.assert_close(logit.grad, expected)
    # Of what does not run no weight has a gradient.
    assert [k for k, option in enumerate(mixed.options) if next(option.parameters()).grad is not None] == [i]


@pytest.mark.parametrize("seed", range(4))
def test_added_weights_are_added_to_every_element_of_the_output(seed: int) -> None:
    mixed, x, slopes = edge()
    gate = drawn(StraightThroughGumbel(1.0, added=True), LOGITS, seed)
    (i,) = gate.active
    found = []
    for dense in (False, True):
        weights = gate.weights.detach().requires_grad_()
        if dense:
            idle = sum(weights[k] for k in range(len(weights)) if k != i)
            y = weights[i] * mixed.options[i](x) + idle
        else:
            y = mixed(x, Gate(weights, (i,), hard=True, added=True))
        found.append(torch.autograd.grad((y * slopes).sum(), weights)[0])
    torch.testing.assert_close(*found)


def kept_bytes(relaxation: Relaxation, num_options: int) -> int:
    """What a forward pass keeps of images and weights; gates and statistics are smaller than ``SMALL``."""
    logit = nn.Parameter(torch.zeros(num_options))
    options = (nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(num_options))
    mixed, x, sizes = MixedOp([*options]), torch.randn(4, 8, 8, 8), dict[int, int]()

    def pack(tensor: Tensor) -> Tensor:
        if tensor.numel() > SMALL:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    gate = drawn(relaxation, logit, 0)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        assert mixed(x, gate).requires_grad
    return sum(sizes.values())


@pytest.mark.parametrize("added", [False, True])
def test_memory_does_not_grow_with_the_candidates(added: bool) -> None:
    sampled = StraightThroughGumbel(1.0, added=added)
    assert kept_bytes(sampled, 2) == kept_bytes(sampled, 16)
    assert kept_bytes(Softmax(), 16) > 6 * kept_bytes(Softmax(), 2)
