"""Searches that go back to an earlier epoch, and CutOut that grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hwnas.checkpoint import load_checkpoint
from hwnas.data import ImageData, load_data
from hwnas.errors import UsageError
from hwnas.latency.budget import Budget, feasible_range_ms
from hwnas.latency.model import LatencyModel
from hwnas.recipes import create_recipe
from hwnas.run import RunFolder
from hwnas.search.checkpoints import Checkpoints
from hwnas.search.cutout import cut_out
from hwnas.search.epochs import end_epoch
from hwnas.search.loop import SearchResult, search
from hwnas.search.protocols import Batch, Epoch, SearchState, Stopper
from hwnas.search.schedules import Linear, value_at
from hwnas.search.schemes import Alternating
from hwnas.search.step import SearchStep
from hwnas.search.stoppers import EigenvalueRise, RollBack, SkipCount, StableRanking
from hwnas.testing.parts import toy_step
from hwnas.testing.toys import toy_latency_model, toy_space, toy_table

EPOCH_STEPS = 2


@dataclass(frozen=True)
class Third(Stopper):
    """Stops at the third epoch it has measured; one before that is the result."""

    @property
    def reach(self) -> int:
        return 1

    def measure(self, step: SearchStep) -> dict[str, float]:
        return {"measured": 1.0}

    def __call__(self, history: Sequence[Epoch]) -> int | None:
        measured = [number for number, epoch in enumerate(history, 1) if epoch.figures]
        return measured[2] - 1 if len(measured) > 2 else None


ROBUST = replace(create_recipe("darts", batch_size=16, num_epochs=6), stopper=Third(), roll_back=RollBack())


@pytest.fixture(scope="module")
def few() -> ImageData:
    data = load_data("digits", resolution=8)
    return replace(data, train=data.train.subset(np.arange(2 * 16 * EPOCH_STEPS + 16)))


def run(path: Path, data: ImageData, **options: Any) -> SearchResult:
    path.mkdir(exist_ok=True)
    _, model = toy_latency_model()
    return search(Budget(model, sum(feasible_range_ms(model)) / 2), data, ROBUST, RunFolder(path), **options)


def same(a: Any, b: Any) -> bool:
    """Whether nested values are equal, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def full(state: SearchState) -> dict[str, Any]:
    """A copy of everything that a roll-back is to restore."""
    return {
        "supernet": {name: value.clone() for name, value in state.supernet.state_dict().items()},
        "logits": {name: logit.detach().clone() for name, logit in state.logits.items()},
        "moments": [
            {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in moments.items()}
            for optimizer in (state.weight_optimizer, state.arch_optimizer)
            for moments in optimizer.state.values()
        ],
        "counts": (state.step, state.arch_batches, dict(state.scalars), dict(state.candidates)),
    }


def test_a_roll_back_restores_all_tensors_and_moments_bit_for_bit(tmp_path: Path) -> None:
    step = toy_step(ROBUST, num_layers=2)
    state, kept = step.state, Checkpoints(tmp_path / "search.pt", 1e9, "images", reach=1)

    def epoch() -> dict[str, Any]:
        for _ in range(EPOCH_STEPS):
            ROBUST.scheme(step)
            state.step += 1
        end_epoch(step)
        kept.offer(state, now=False)
        return full(state)

    epoch()
    second = epoch()
    third = epoch()
    assert not same(second, third)
    kept.roll_back(2, 0.25)
    resumed = Checkpoints(tmp_path / "search.pt", 1e9, "images", reach=1)
    resumed.restore(state)
    assert same(full(state), second)
    assert state.weight_optimizer.param_groups[0]["weight_decay"] == 0.25
    assert [dict(each.figures) for each in state.history] == [{}, {"measured": 1.0}]


def test_a_search_goes_back_and_on_with_more_decay_until_there_is_no_more(tmp_path: Path, few: ImageData) -> None:
    said, steps = list[str](), list[int]()
    result = run(tmp_path / "a", few, say=said.append, progress=lambda text, done, total, *more: steps.append(done))
    # Stops at 3 and 4 (2 counts as measured, 3 and 4 follow): back to 2, back to 3, and on to the end of all epochs.
    assert [line for line in said if line.startswith("back")] == [
        "back from epoch 3 to epoch 2, and on with a weight decay of 0.003",
        "back from epoch 4 to epoch 3, and on with a weight decay of 0.03",
    ]
    assert steps == [*range(1, 7), *range(5, 9), *range(7, 13)]
    state = load_checkpoint(tmp_path / "a" / "search.pt")
    assert len(state["history"]) == 6
    assert same(dict(result.probabilities), dict(state["history"][5][0]))
    assert state["weight_optimizer"]["param_groups"][0]["weight_decay"] == pytest.approx(0.03)
    assert not list((tmp_path / "a").glob("search-epoch*.pt"))


@pytest.mark.parametrize(
    ("kill", "seconds"), [(5, 0.0), (6, 1e9), (8, 0.0), (10, 1e9), (12, 0.0), (15, 1e9)]
)  # seconds between checkpoints
def test_killed_before_or_after_a_roll_back_it_ends_the_same(
    kill: int, seconds: float, tmp_path: Path, few: ImageData
) -> None:
    class Enough(Exception):
        pass

    seen = list[int]()

    def killed(text: str, done: int, total: int, *more: Any) -> None:
        seen.append(done)
        if len(seen) == kill:
            raise Enough

    run(tmp_path / "whole", few)
    with pytest.raises(Enough):
        run(tmp_path / "cut", few, progress=killed, checkpoint_seconds=seconds)
    run(tmp_path / "cut", few)
    whole, cut = (load_checkpoint(tmp_path / name / "search.pt") for name in ("whole", "cut"))
    assert same(whole, cut)
    assert (tmp_path / "whole" / "search.jsonl").read_bytes() == (tmp_path / "cut" / "search.jsonl").read_bytes()


def test_only_epochs_that_may_be_gone_back_to_are_kept(tmp_path: Path) -> None:
    step = toy_step(ROBUST)
    kept = Checkpoints(tmp_path / "search.pt", 1e9, "images", reach=1)
    for number in range(1, 5):
        end_epoch(step)
        kept.offer(step.state, now=number == 3)
    assert sorted(path.name for path in tmp_path.glob("*-epoch*")) == [f"search-epoch{n}.pt" for n in (2, 3, 4)]
    kept.finish()
    assert [path.name for path in tmp_path.glob("*.pt")] == ["search.pt"]


# --- CutOut and recipes


def test_cutout_takes_squares_from_a_share_of_the_images() -> None:
    images, generator = torch.ones(400, 3, 32, 32), torch.Generator()
    assert cut_out(images, 0.0, generator) is images
    cut = cut_out(images, 0.25, generator.manual_seed(1))
    assert torch.equal(cut, cut_out(images, 0.25, generator.manual_seed(1)))
    holes = (cut == 0).sum((2, 3))
    assert torch.equal(holes[:, 0], holes[:, 1])
    assert 0.15 < float((holes[:, 0] > 0).float().mean()) < 0.35
    every = (cut_out(images, 1.0, generator) == 0)[:, 0]
    sizes = every.sum((1, 2))
    assert int(sizes.min()) >= 64  # in a corner a quarter of the square is left
    assert int(sizes.max()) == 256
    rows, columns = every.any(2).sum(1), every.any(1).sum(1)
    assert torch.equal(rows * columns, sizes)


@dataclass(frozen=True)
class Seen(Alternating):
    """Keeps the images of its steps."""

    images: list[tuple[str, torch.Tensor]] = field(default_factory=list)

    def __call__(self, step: SearchStep) -> dict[str, float]:
        def fetch() -> Batch:
            batch = step.next_arch_batch()
            self.images.append(("logits", batch[0]))
            return batch

        self.images.append(("weights", step.weight_batch[0]))
        return super().__call__(replace(step, next_arch_batch=fetch))


def test_a_search_cuts_the_images_of_its_weight_steps_and_no_others(tmp_path: Path) -> None:
    space, seen, data = toy_space(num_layers=1, resolution=32), Seen(), load_data("digits", resolution=32)
    model = LatencyModel.from_table(space, toy_table(space))
    dropping = create_recipe("robust_darts", mode="drop_path", batch_size=32, num_epochs=3)  # CutOut from 0 to 1
    recipe = replace(dropping, scheme=seen, drop_path=0.0)  # there are no edges
    few = replace(data, train=data.train.subset(np.arange(80)))  # one step an epoch
    search(Budget(model, feasible_range_ms(model)[1]), few, recipe, RunFolder(tmp_path))
    kinds, batches = zip(*seen.images[2:], strict=True)  # the first of either kind is of the rehearsal
    assert kinds == ("weights", "logits") * 3
    holes = [(images == 0).all(1) for images in batches]  # zero is no grey of a digit
    rows, columns = (torch.cat([hole.any(side).sum(1) for hole in holes]) for side in (2, 1))
    assert torch.equal(rows * columns, torch.cat(holes).sum((1, 2)))
    assert max(int(rows.max()), int(columns.max())) == 16
    cut = [int(hole.any(2).any(1).sum()) for hole in holes]
    assert cut[1::2] == [0, 0, 0]
    assert 0 == cut[0] < cut[2] < cut[4] < 32  # in the mean a third and two thirds


def test_recipes_of_darts_plus_and_robust_darts() -> None:
    assert create_recipe("darts_plus", back=1).stopper == SkipCount(2, back=1)
    assert create_recipe("darts_plus", criterion="ranking").stopper == StableRanking(10)
    modes = {mode: create_recipe("robust_darts", mode=mode) for mode in ("stop", "l2", "drop_path", "adaptive")}
    assert modes["stop"].stopper == modes["adaptive"].stopper == EigenvalueRise()
    assert modes["stop"].roll_back is None
    assert modes["adaptive"].roll_back == RollBack(10.0, 0.03)
    optimizer = create_recipe("robust_darts", mode="l2", factor=81.0).weight_optimizer(
        [torch.nn.Parameter(torch.zeros(1))]
    )
    assert optimizer.param_groups[0]["weight_decay"] == pytest.approx(0.0243)
    dropping = modes["drop_path"]
    assert dropping.drop_path == Linear(0.0, 0.2)
    assert [value_at(dropping.cutout, p) for p in (0, 0.5, 1)] == [0, 0.5, 1]
    with pytest.raises(UsageError, match=r"factor=3 has no effect in mode 'stop'"):
        create_recipe("robust_darts", factor=3.0)
    with pytest.raises(UsageError, match="has a cutout of 2"):
        replace(dropping, cutout=2.0)
