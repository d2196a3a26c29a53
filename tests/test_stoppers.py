"""Stoppers on trajectories made by hand, and the eigenvalue that one of them measures."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hwnas.compute import Compute
from hwnas.errors import UsageError
from hwnas.recipes import create_recipe
from hwnas.search.epochs import end_epoch
from hwnas.search.hessian import dominant_eigenvalue, largest_eigenvalue
from hwnas.search.protocols import Batch, Epoch, Stopper
from hwnas.search.relaxations import BinaryGates, Softmax
from hwnas.search.schemes import OneLevel
from hwnas.search.step import Part, SearchStep
from hwnas.search.stoppers import EigenvalueRise, RollBack, SkipCount, StableRanking
from hwnas.space import create_space
from hwnas.supernet.gates import Gates
from hwnas.testing.parts import toy_step
from hwnas.testing.toys import toy_space

CELL = create_space("darts-cell", channels=4, num_cells=3, resolution=16)
OPTIONS = CELL.choices[0].options
SKIP, SEP, SEP5, MAX = (OPTIONS.index(n) for n in ("skip_connect", "sep_conv_3x3", "sep_conv_5x5", "max_pool_3x3"))
DARTS = create_recipe("darts")


def watched(stopper: Stopper) -> SearchStep:
    """A step whose logits favour one convolution everywhere."""
    step = toy_step(replace(DARTS, stopper=stopper), space=CELL)
    for logit in step.state.logits.values():
        logit.data = torch.arange(len(logit), 0, -1.0).index_fill_(0, torch.tensor(SEP), 20.0)
    return step


def stop(step: SearchStep) -> int | None:
    """After one more epoch."""
    end_epoch(step)
    assert step.recipe.stopper is not None
    return step.recipe.stopper(step.state.history)


@pytest.mark.parametrize("back", [0, 1])
def test_two_skips_among_the_kept_edges_of_a_normal_cell_stop_a_search(back: int) -> None:
    step = watched(SkipCount(back=back))
    logits = step.state.logits
    assert stop(step) is None
    for name in ("reduce_edge02", "reduce_edge12", "reduce_edge25"):  # of the other cell
        logits[name].data[SKIP] = 25.0
    assert stop(step) is None
    logits["normal_edge02"].data[SKIP] = 25.0  # one, that is kept
    logits["normal_edge45"].data[SKIP] = 19.0  # and one that is not the best of its edge
    assert stop(step) is None
    logits["normal_edge45"].data[:] = 0.0
    logits["normal_edge45"].data[SKIP] = 0.1  # the best of an edge that loses its place
    assert stop(step) is None
    assert [epoch.figures["skips"] for epoch in step.state.history] == [0, 0, 1, 1]
    logits["normal_edge12"].data[SKIP] = 25.0
    assert stop(step) == 5 - back
    logits["normal_edge12"].data[SKIP] = 0.0
    assert stop(step) == 5 - back  # the first such epoch, whatever comes later


def stable_epochs(change: Any, *, scale: float = 1.0) -> int:
    """Epochs until the ranking counts as stable, with a change of the logits before the fourth."""
    step = watched(StableRanking(3))
    for number in itertools.count(1):
        if number == 4:
            change(step.state.logits["normal_edge02"].data)
        if stop(step) is not None:
            return number
        for logit in step.state.logits.values():
            logit.data *= scale
    raise AssertionError


def swap(a: int, b: int) -> Any:
    def swapped(logit: Tensor) -> None:
        logit[[a, b]] = logit[[b, a]]

    return swapped


def test_a_ranking_is_stable_after_some_epochs_without_a_swap_of_convolutions() -> None:
    # Epoch 1 has none before it, so that 2, 3 and 4 count; a swap before epoch 4 has 5, 6 and 7 count.
    assert stable_epochs(lambda logit: None) == 4
    assert stable_epochs(swap(SEP, SEP5)) == 7
    assert stable_epochs(swap(MAX, SKIP)) == 4
    assert stable_epochs(swap(0, SKIP)) == 4
    assert StableRanking().epochs == 10


@pytest.mark.parametrize("scale", [3.0, 0.3, 100.0])
def test_scaling_neither_triggers_nor_delays(scale: float) -> None:
    # By a hundred an epoch: the probabilities of all but the first become equal, at zero, and the order stays.
    assert stable_epochs(lambda logit: None, scale=scale) == 4
    assert stable_epochs(swap(SEP, SEP5), scale=scale) == 7


def test_equal_logits_rank_in_their_order() -> None:
    step = watched(StableRanking(2, back=1))
    for logit in step.state.logits.values():
        logit.data.zero_()
    assert [stop(step) for _ in range(3)] == [None, None, 2]


# --- eigenvalues


def history(values: Sequence[float], every: int = 2) -> list[Epoch]:
    """Epochs of which every second one was measured, from the first."""
    return [
        Epoch({}, {} if number % every else {"eigenvalue": values[number // every]})
        for number in range(every * (len(values) - 1) + 1)
    ]


def stops(stopper: EigenvalueRise, values: Sequence[float]) -> list[tuple[int, int]]:
    """Epochs, from 1, at which the stopper speaks, and what it says."""
    epochs = history(values)
    answers = ((len(epochs[:n]), stopper(epochs[:n])) for n in range(1, len(epochs) + 1))
    return [(n, answer) for n, answer in answers if answer is not None]


def test_a_doubled_eigenvalue_stops_at_the_published_epochs() -> None:
    # Values 1, from evaluation 12 on (epoch 24 of 0, 1, ...) doubling: 2, 4, 8. Means of five: 1.2 at evaluation 12,
    # (3 + 2 + 4) / 5 = 1.8 at 13, against 1 at evaluation 9, which stands for evaluation 7: epoch 14.
    values = [1.0] * 12 + [2.0**k for k in range(1, 5)]
    found = stops(EigenvalueRise(), values)
    assert found[0] == (26 + 1, 14 + 1)  # 12 epochs back
    assert {answer for _, answer in found} == {15}


def test_no_result_is_earlier_than_epoch_ten() -> None:
    rising = [2.0**k for k in range(16)]
    assert stops(EigenvalueRise(), rising)[0] == (22 + 1, 10 + 1)
    assert stops(EigenvalueRise(first=2), rising)[0] == (14 + 1, 2 + 1)
    assert stops(EigenvalueRise(first=3), rising)[0] == (16 + 1, 4 + 1)  # epoch 3 is not measured
    # With shorter windows at the start, the first mean is that of three values and stands for the first.
    assert stops(EigenvalueRise(first=0), rising)[0] == (12 + 1, 0 + 1)
    assert stops(EigenvalueRise(first=0, ratio=17.9), [1.0, 1.0, 1.0, 16.0, 16.0, 16.0, 41.0])[0] == (13, 1)
    assert stops(EigenvalueRise(first=0, ratio=18.0), [1.0, 1.0, 1.0, 16.0, 16.0, 16.0, 41.0]) == []


def test_a_rise_by_the_ratio_is_not_more_than_it() -> None:
    # The largest ratio is (1 + 4 x) / 5 to 1: four values after the rise, against the five before it.
    steady, stopper = [1.0] * 11, EigenvalueRise(ratio=1.5)
    assert stops(stopper, [*steady, *[1.625] * 6]) == []
    assert stops(stopper, [*steady, *[1.6875] * 6])[0] == (28 + 1, 16 + 1)


@pytest.mark.parametrize("later", [-2.0, -1.0, -0.5, 0.0, 5.0])
@pytest.mark.parametrize("earlier", [-1.0, 0.0])
def test_what_is_not_above_zero_has_no_ratio(earlier: float, later: float) -> None:
    assert stops(EigenvalueRise(first=0), [*[earlier] * 5, *[later] * 4]) == []


@dataclass(frozen=True)
class Quadratic(SearchStep):
    """``L_val = alpha' Q alpha / 2`` for the weights of all gates, which are the logits."""

    matrix: Tensor = field(default_factory=lambda: torch.zeros(0))

    def losses(self, batch: Batch, gates: Gates, *, label_smoothing: float = 0.0) -> Iterator[Part]:
        alpha = torch.cat([gate.weights for gate in gates.values()])
        for share in (0.25, 0.75):
            yield Part(share * alpha @ self.matrix @ alpha / 2, torch.zeros(()))


@dataclass(frozen=True)
class Itself(Softmax):
    """Weights that are the logits."""

    def probabilities(self, logit: Tensor, *, progress: float) -> Tensor:
        return logit


@pytest.mark.parametrize("sense", [1, -1])
def test_the_eigenvalue_of_a_known_quadratic(sense: int) -> None:
    generator = torch.Generator().manual_seed(sense + 1)
    root = torch.randn(9, 9, generator=generator, dtype=torch.float64)
    matrix = sense * (root + root.T)
    toy = toy_step(replace(DARTS, relaxation=Itself(), regularizers=()), num_layers=3)
    for logit in toy.state.logits.values():
        logit.data = logit.data.double()
    step = Quadratic(**vars(toy), matrix=matrix)
    expected = float(torch.linalg.eigvalsh(matrix)[-1])
    before = {name: value.clone() for name, value in step.state.supernet.state_dict().items()}
    assert dominant_eigenvalue(step, step.weight_batch) == pytest.approx(expected, abs=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in step.state.supernet.state_dict().items())
    # By power iteration, shifted so that the largest is the largest in size:
    vector, shift = torch.ones(9, dtype=torch.float64), float(torch.linalg.matrix_norm(matrix))
    for _ in range(20_000):
        vector = matrix @ vector + shift * vector
        vector /= vector.norm()
    assert float(vector @ matrix @ vector) == pytest.approx(expected, abs=1e-6)


def test_few_products_find_the_largest_of_many_eigenvalues() -> None:
    values, calls = torch.linspace(0, 1, 200, dtype=torch.float64) ** 4, list[None]()

    def product(vector: Tensor) -> Tensor:
        calls.append(None)
        return values * vector

    start = torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert largest_eigenvalue(product, start) == pytest.approx(1, abs=1e-6)
    assert len(calls) < 100
    assert largest_eigenvalue(lambda v: 0 * v, start) == 0.0
    assert largest_eigenvalue(lambda v: -3 * v, start) == pytest.approx(-3)


def test_the_eigenvalue_of_a_network_is_that_of_its_whole_hessian() -> None:
    step = toy_step(DARTS, num_layers=2)
    step.state.supernet.double()
    for logit in step.state.logits.values():
        logit.data = logit.data.double()
    images, labels = step.weight_batch[0].double(), step.weight_batch[1]
    flat = torch.cat([logit.detach() for logit in step.state.logits.values()])

    def loss(alpha: Tensor) -> Tensor:
        logits = dict(zip(step.state.logits, torch.split(alpha, 3), strict=True))
        gates = Softmax()(logits, progress=0.0, generator=step.state.generator)
        return nn.functional.cross_entropy(step.state.supernet(images, gates), labels)

    whole: Any = torch.autograd.functional.hessian(loss, flat)  # type: ignore[no-untyped-call]
    expected = float(torch.linalg.eigvalsh((whole + whole.T) / 2)[-1])
    assert dominant_eigenvalue(step, (images, labels)) == pytest.approx(expected, rel=1e-6)
    in_parts = replace(step, compute=Compute(device="cpu", accumulate=2))
    assert dominant_eigenvalue(in_parts, (images, labels)) != pytest.approx(expected)  # other batch statistics
    step.state.supernet.eval()
    found = [dominant_eigenvalue(each, (images, labels)) for each in (step, in_parts)]
    assert found[0] == pytest.approx(found[1])


def test_every_second_epoch_is_measured_on_architecture_images() -> None:
    step = toy_step(replace(DARTS, stopper=EigenvalueRise()), num_layers=2)
    decay = replace(step, state=replace(step.state, history=[]))
    decay.state.arch_optimizer = torch.optim.Adam(step.state.logits.values(), weight_decay=0.5)
    for _ in range(3):
        end_epoch(step)
    assert [sorted(epoch.figures) for epoch in step.state.history] == [["eigenvalue"], [], ["eigenvalue"]]
    assert step.state.arch_batches == 2
    end_epoch(decay)
    plain, more = (each.state.history[0].figures["eigenvalue"] for each in (step, decay))
    assert more == pytest.approx(plain + 0.5, abs=1e-4)


def test_the_eigenvalue_is_that_of_the_loss_on_architecture_images() -> None:
    step = toy_step(replace(DARTS, stopper=EigenvalueRise()), num_layers=2)
    decay = step.state.arch_optimizer.param_groups[0]["weight_decay"]
    held = [*step.state.supernet.parameters(), *step.state.logits.values()]
    for parameter in held:
        parameter.grad = torch.randn_like(parameter)
    before = [value.clone() for value in (*step.state.supernet.buffers(), *held, *(p.grad for p in held))]
    found = EigenvalueRise().measure(step)["eigenvalue"]
    after = *step.state.supernet.buffers(), *held, *(p.grad for p in held)
    assert all(map(torch.equal, before, after)), "statistics, weights, logits or their gradients are not as they were"
    train, val = (dominant_eigenvalue(step, batch) for batch in (step.weight_batch, step.next_arch_batch()))
    assert found == pytest.approx(val + decay, rel=1e-5)
    assert abs(train - val) > 1e-3 * abs(val)


# --- refusals


def test_stoppers_refuse_what_they_cannot_judge() -> None:
    chain = toy_space()
    with pytest.raises(UsageError, match="counts the skips of normal cells, of which space 'toy' has none"):
        SkipCount().check(DARTS, chain)
    with pytest.raises(UsageError, match="of which no choice of space 'gold-nas'"):
        StableRanking().check(DARTS, create_space("gold-nas", channels=4, num_cells=3))
    with pytest.raises(UsageError, match="which OneLevel leaves none"):
        EigenvalueRise().check(replace(DARTS, scheme=OneLevel(), weight_share=1.0), CELL)
    with pytest.raises(UsageError, match="no Hessian in the logits of BinaryGates"):
        EigenvalueRise().check(replace(DARTS, relaxation=BinaryGates("all")), CELL)
    for stopper in (SkipCount(), StableRanking(), EigenvalueRise()):
        stopper.check(DARTS, CELL)
    EigenvalueRise().check(DARTS, chain)


def test_searches_too_short_to_be_stopped_are_refused() -> None:
    for stopper, least in (
        (EigenvalueRise(), 23),
        (EigenvalueRise(first=9), 23),  # epoch 9 is not measured
        (EigenvalueRise(first=0, every=1, lag=1, window=1), 2),
        (StableRanking(), 11),
    ):
        stopper.check(replace(DARTS, num_epochs=least), CELL)
        with pytest.raises(UsageError, match=f"would never stop.*needs {least} epochs.*Use --epochs {least}"):
            stopper.check(replace(DARTS, num_epochs=least - 0.5), CELL)
    flat = [1.0, 1.0, 1.0, 16.0, 16.0, 16.0, 41.0]  # the least is one at which it speaks
    assert stops(EigenvalueRise(first=0), flat)[0][0] == 13
    EigenvalueRise(first=0).check(replace(DARTS, num_epochs=13), CELL)
    with pytest.raises(UsageError, match="needs 13"):
        EigenvalueRise(first=0).check(replace(DARTS, num_epochs=12), CELL)


def test_noise_is_no_operator_with_weights() -> None:
    noisy = create_space("robust-darts", subspace=4, channels=4, num_cells=3, resolution=16)
    with pytest.raises(UsageError, match="of which no choice of space 'robust-darts' has two"):
        StableRanking().check(DARTS, noisy)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SkipCount(0), "0 skips"),
        (lambda: StableRanking(back=-1), "-1 epochs back"),
        (lambda: EigenvalueRise(window=4), "an odd window"),
        (lambda: RollBack(1.0), "by more than 1"),
        (lambda: replace(DARTS, roll_back=RollBack()), "Give it a stopper"),
        (lambda: replace(DARTS, stopper=SkipCount(back=1), roll_back=RollBack()), "SkipCount names no earlier epoch"),
        (lambda: replace(DARTS, stopper=StableRanking(), roll_back=RollBack()), "Use EigenvalueRise"),
        (lambda: replace(DARTS, stopper=EigenvalueRise(), roll_back=RollBack(most=1e-4)), "or with as much"),
    ],
)
def test_numbers_without_sense_are_refused(make: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make()


def test_weight_decay_is_multiplied_up_to_a_limit() -> None:
    decays, decay = list[float](), RollBack().next(3e-4)
    while decay is not None:
        decays.append(decay)
        decay = RollBack().next(decay)
    assert decays == pytest.approx([3e-3, 0.03])
    assert RollBack(3.0, 0.01).next(9e-3) == 0.01
