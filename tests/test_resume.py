"""Killed and interrupted work goes on where it stopped, and ends as if nothing had happened."""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hwnas.data import load_data
from hwnas.latency.budget import Budget, feasible_range_ms
from hwnas.latency.journal import Journal
from hwnas.latency.model import LatencyModel
from hwnas.latency.table import LatencyTable
from hwnas.recipes import create_recipe
from hwnas.run import RunFolder
from hwnas.search.derivations import StrongestEdges
from hwnas.search.loop import search
from hwnas.search.recipe import Recipe, Stage
from hwnas.space import create_space
from hwnas.steps import search_run, train_run
from hwnas.testing.toys import AnalyticProfiler, toy_space, toy_table
from hwnas.training import TrainingOptions

Run = Callable[..., Any]
Start = Callable[..., Any]
WaitFor = Callable[[Callable[[], bool]], None]
KILLS = pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT], ids=["kill", "ctrl-c"])

SLOW = """
import time
from pathlib import Path
from hwnas.testing.toys import AnalyticProfiler

class Slow(AnalyticProfiler):
    def prepare(self, model, input_shape):
        session = super().prepare(model, input_shape)
        time_ms = session.time_ms

        def slowly(*, budget_ms):
            time.sleep(0.005)
            with Path(LOG).open("a") as file:
                file.write("visit\\n")
            return time_ms(budget_ms=budget_ms)

        session.time_ms = slowly
        return session
"""
ROUNDS, ITEMS = 6, 26 + 3  # operators and networks
VISITS = ROUNDS * ITEMS + -(-ROUNDS * ITEMS // 8)  # the reference operator before every eighth
EPOCHS = 3
SEARCH_STEPS, TRAIN_STEPS = EPOCHS * 11, EPOCHS * 22  # 718 // 64 an epoch, 1437 // 64
SEARCH, TRAIN = ["--epochs", EPOCHS, "--batch-size", 64], ["--epochs", EPOCHS]
OFTEN = ["--checkpoint-seconds", 0.2]


def lines_of(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def end(process: Any, kill: signal.Signals, advice: str) -> None:
    """Kills a process in the middle of its work, and checks how it ended."""
    assert not process.over
    code, messages = process.kill(kill)
    if kill == signal.SIGKILL:
        assert code == -signal.SIGKILL
    else:
        assert code == 1, messages
        assert "\ninterrupted; what is done is kept. Run the same command again" in "\n" + messages
        assert advice in messages


def assert_equal(a: Any, b: Any) -> None:
    """Bit for bit, tensors inside included."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_equal(one, other)
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


# --- profile


@KILLS
def test_profile(
    kill: signal.Signals, small: list[str], packages: Any, hwnas: Run, start: Start, wait_for: WaitFor, tmp_path: Path
) -> None:
    table, journal, visits = (tmp_path / name for name in ("t.csv", "t.partial.jsonl", "visits"))
    packages.add("slowprof", {"slow": "slowprof:Slow"}, source=SLOW.replace("LOG", repr(str(visits))))
    sweep = ["profile", *small, "--profiler", "slow", "--networks", 3, "--rounds", ROUNDS, "--output", table]
    process = start(*sweep)
    wait_for(lambda: lines_of(journal) > VISITS // 4 or process.over)
    end(process, kill, "Run the same command again")
    assert not table.exists()

    num_kept = lines_of(journal) - 1  # without the header
    assert VISITS // 4 <= num_kept < VISITS
    with journal.open("a") as file:
        file.write('{"key": "mbconv k3 e3 s1')  # as if killed in the middle of a line
    visits.unlink()
    hwnas(*sweep).done()
    again = lines_of(visits) - (VISITS - num_kept)
    assert again in (0, 1), "what was measured is not measured again, but for the reference at the start"
    assert not journal.exists()

    whole = tmp_path / "whole.csv"
    hwnas(*sweep, "--profiler", "analytic", "--output", whole).done()
    assert table.read_bytes() == whole.read_bytes()
    resumed, uninterrupted = LatencyTable.load(table), LatencyTable.load(whole)
    assert resumed.calibrations == uninterrupted.calibrations
    assert {entry.num_samples for entry in resumed.entries.values()} == {5 * ROUNDS}  # five runs a visit


def test_torn_last_line_is_cut_off(tmp_path: Path) -> None:
    path, environment = tmp_path / "t.partial.jsonl", AnalyticProfiler().environment()
    for visit in range(3):
        with Journal(path, environment, {}) as journal:
            assert journal.samples == ({"conv": {number: [1.0] for number in range(visit)}} if visit else {})
            journal.add("conv", visit, [1.0])
        with path.open("a") as file:
            file.write('{"key": "mbconv k3')


# --- search and train


def assert_same_search(a: Path, b: Path) -> None:
    for name in ("search.jsonl", "architecture.json", "derivation.json"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    assert lines_of(a / "search.jsonl") == SEARCH_STEPS
    assert_equal(*(torch.load(run / "search.pt", weights_only=True) for run in (a, b)))


def assert_same_training(a: Path, b: Path) -> None:
    for name in ("training.jsonl", "weights.safetensors"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    assert lines_of(a / "training.jsonl") == EPOCHS
    accuracies = [json.loads((run / "training.json").read_text())["accuracy"] for run in (a, b)]
    assert accuracies[0] == accuracies[1]


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory, hwnas_once: Run, small: list[str], profiled: Path) -> Path:
    """A run that nothing interrupted: searched, then trained."""
    path = tmp_path_factory.mktemp("steady") / "run"
    hwnas_once("search", *small, "--table", profiled, *SEARCH, "--output", path).done()
    hwnas_once("train", path, *TRAIN).done()
    return path


@pytest.fixture
def untrained(steady: Path, tmp_path: Path) -> Path:
    """The same run before it was trained."""
    ignored = shutil.ignore_patterns("training.*", "weights.*", "tensorboard")
    return Path(shutil.copytree(steady, tmp_path / "run", ignore=ignored))


@KILLS
def test_search(
    kill: signal.Signals, small: list[str], profiled: Path, steady: Path,
    hwnas: Run, start: Start, wait_for: WaitFor, tmp_path: Path,
) -> None:  # fmt: skip
    run = tmp_path / "run"
    command = ["search", *small, "--table", profiled, *SEARCH, *OFTEN, "--output", run]
    process = start(*command)
    log, checkpoint = run / "search.jsonl", run / "search.pt"
    wait_for(lambda: (checkpoint.exists() and lines_of(log) > SEARCH_STEPS // 4) or process.over)
    end(process, kill, "(search: with --resume)")
    assert not (run / "architecture.json").exists()
    step = torch.load(checkpoint, weights_only=True)["step"]
    assert 0 < step <= lines_of(log) < SEARCH_STEPS
    if kill == signal.SIGINT:
        assert step == lines_of(log), "everything is kept"

    hwnas(*command).failed(1, "Pass --resume")
    out = hwnas(*command, "--resume").done()
    assert f"searching {SEARCH_STEPS}/{SEARCH_STEPS}" in out
    assert_same_search(run, steady)


@KILLS
def test_train(
    kill: signal.Signals, untrained: Path, steady: Path, hwnas: Run, start: Start, wait_for: WaitFor
) -> None:
    command = ["train", untrained, *TRAIN, *OFTEN]
    process = start(*command)
    log, checkpoint = untrained / "training.jsonl", untrained / "training.pt"
    wait_for(lambda: (checkpoint.exists() and lines_of(log) > 0) or process.over)
    end(process, kill, "Run the same command again")
    assert not (untrained / "weights.safetensors").exists()
    assert 0 < torch.load(checkpoint, weights_only=True)["step"] < TRAIN_STEPS

    hwnas(*command).done()
    assert_same_training(untrained, steady)


class Interruption(Exception):
    """Raised in the middle of work."""


def interrupted(work: Callable[..., Any], seed: int, num_steps: int) -> None:
    """Does the work, interrupted after two random steps and after the last."""
    for stop in [*sorted(random.Random(seed).sample(range(1, num_steps), 2)), num_steps]:

        def progress(what: str, done: int, total: int, stop: int = stop) -> None:
            if done == stop:
                raise Interruption

        with pytest.raises(Interruption):
            work(progress=progress)
    work()


def test_search_interrupted_again_and_again(
    profiled: Path, steady: Path, toyprof: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(toyprof)
    space, table = create_space("tiny-mbconv", resolution=16, width=0.25), LatencyTable.load(profiled)

    def work(**options: Any) -> None:
        arguments = {"num_epochs": EPOCHS, "batch_size": 64}
        search_run(
            space, table, tmp_path / "run", recipe_arguments=arguments, resume=True, checkpoint_seconds=0.1, **options
        )

    interrupted(work, seed=0, num_steps=SEARCH_STEPS)
    assert_same_search(tmp_path / "run", steady)


def in_a_chain(recipe: Recipe) -> Recipe:
    """The same for a space without cells, which no deeper proxy is made of: three options, then two, then one."""
    stages = tuple(Stage(in_a_chain(stage.recipe), keep) for stage, keep in zip(recipe.stages, (2, 1), strict=False))
    return replace(recipe, proxy={}, derivation=StrongestEdges(), stages=stages)


def test_p_darts_interrupted_in_and_between_its_searches(tmp_path: Path) -> None:
    space, data, seen = toy_space(num_layers=1), load_data("digits", resolution=8), list[int]()
    few = replace(data, train=data.train.subset(np.arange(80)))  # so that every epoch is a step
    recipe = in_a_chain(create_recipe("p_darts", num_epochs=4, batch_size=32))  # logits move in the last two of four
    model = LatencyModel.from_table(space, toy_table(space))
    work = partial(search, Budget(model, feasible_range_ms(model)[1]), few, recipe)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()

    def progress(what: str, done: int, *more: Any) -> None:
        seen.append(done)
        if len(seen) in (4, 6, 10):  # the first search, at its last step; the second, at its first, and at its last
            raise Interruption

    for _ in range(3):
        with pytest.raises(Interruption):
            work(RunFolder(cut), checkpoint_seconds=0.0, progress=progress)
    found, expected = work(RunFolder(cut), progress=progress), work(RunFolder(whole))
    assert seen == [1, 2, 3, 4, *(4, 1), *(1, 2, 3, 4), *(4, 1, 2, 3, 4)]
    assert_equal(dict(found.candidates), dict(expected.candidates))
    for name in ("stage1", "stage2", "."):
        assert (cut / name / "search.jsonl").read_bytes() == (whole / name / "search.jsonl").read_bytes()
        assert_equal(*(torch.load(run / name / "search.pt", weights_only=True) for run in (cut, whole)))


def test_training_interrupted_again_and_again(untrained: Path, steady: Path) -> None:
    run, options = RunFolder.open(untrained), TrainingOptions(num_epochs=EPOCHS)
    work = partial(train_run, run, options=options, checkpoint_seconds=0.1)
    interrupted(work, seed=1, num_steps=TRAIN_STEPS)
    assert_same_training(untrained, steady)
