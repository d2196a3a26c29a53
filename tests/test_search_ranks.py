"""Several processes search together, as ``torchrun`` starts them."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hwnas.checkpoint import load_checkpoint
from hwnas.compute import Compute
from hwnas.distributed import _buckets, average_gradients, averaged, require_same
from hwnas.errors import UsageError
from hwnas.files import read_json
from hwnas.metrics import read_log
from hwnas.recipes import create_recipe
from hwnas.testing.parts import toy_step

Start = Callable[..., list[Any]]


RECIPES = """
from dataclasses import replace
from hwnas import create_recipe
from hwnas.compute import Compute
from hwnas.distributed import rank, world_size
from hwnas.search.hessian import dominant_eigenvalue
from hwnas.search.products import hessian_product, mixed_product
from hwnas.search.protocols import Stopper
from hwnas.search.relaxations import StraightThroughGumbel
from hwnas.search.schemes import Reinforce
from hwnas.testing.parts import toy_step

SHORT = {"num_epochs": 2, "batch_size": 16}  # two steps each; with one level, four

def two_paths():
    recipe = create_recipe("proxylessnas", weight_share=0.5, **SHORT)
    return replace(recipe, scheme=replace(recipe.scheme, warm_up=0.0, every=1))

def reinforce():
    recipe = create_recipe("proxylessnas", weight_share=0.5, mode="reinforce", **SHORT)
    return replace(recipe, scheme=Reinforce(num_samples=3))

def one_level():
    return create_recipe("snas", **SHORT)

class Products(Stopper):  # on a small network: two ranks need no large one
    def measure(self, step):
        toy = toy_step(create_recipe("darts"), num_layers=2)
        batch = tuple(part.chunk(world_size())[rank()] for part in toy.weight_batch)
        toy = replace(toy, weight_batch=batch, compute=Compute("cpu", accumulate=step.compute.accumulate))
        gates, weights = toy.draw(toy.recipe.relaxation), [p.detach() for p in toy.state.supernet.parameters()]
        curved = hessian_product(toy, gates, weights, length=0.01, exact=True)
        mixed = mixed_product(toy, gates, weights, length=0.01, exact=True)
        return {
            "hessian": float(sum(x.norm() for x in curved if x is not None)),
            "mixed": float(sum(x.norm() for x in mixed.values())),
            "eigenvalue": dominant_eigenvalue(toy, batch),
        }

    def __call__(self, history):
        return None

def unrolled():
    return replace(create_recipe("darts", order=2, **SHORT), stopper=Products())

class Astray(StraightThroughGumbel):
    def _gate(self, logit, progress, generator):
        generator.manual_seed(generator.initial_seed() + rank())
        return super()._gate(logit, progress, generator)

def astray():
    return replace(create_recipe("gdas", **SHORT), relaxation=Astray(1.0))
"""


@pytest.fixture
def command(small: list[str], table: Path, noise: str) -> list[Any]:
    return ["search", *small, "--table", table, "--data", noise, "--device", "cpu"]


@pytest.mark.distributed
@pytest.mark.parametrize("recipe", ["two_paths", "reinforce", "one_level", "unrolled"])
def test_two_ranks_equal_one_process_with_the_joint_batch(
    command: list[Any], recipe: str, start_ranks: Start, hwnas: Any, tmp_path: Path
) -> None:
    together, alone, file = tmp_path / "together", tmp_path / "alone", tmp_path / "mine.py"
    file.write_text(RECIPES)
    command += ["--recipe", f"{file}:{recipe}"]
    ranks = start_ranks(*command, "--output", together)
    # Each rank's batch-norm normalises its own half of the batch, as a micro-batch does.
    hwnas(*command, "--accumulate", 2, "--output", alone).done()
    (code, words), other = (rank.end() for rank in ranks)
    assert code == 0, words
    assert "target met" in words
    assert other == (0, ""), "rank 0 speaks for all"
    found, expected = (load_checkpoint(run / "search.pt") for run in (together, alone))
    # Not bit for bit: the clipping norm sums gradients that were rounded in another order.
    assert found["arch_batches"] == expected["arch_batches"]
    assert found["scalars"] == pytest.approx(expected["scalars"], rel=1e-4)
    for (_, mine, _), (_, its, _) in zip(found["history"], expected["history"], strict=True):
        assert mine == pytest.approx(its, rel=1e-4)  # exact products, and an eigenvalue
    assert len(found["history"]) == (2 if recipe == "unrolled" else 0)
    for name, value in expected["logits"].items():
        torch.testing.assert_close(found["logits"][name], value, rtol=1e-4, atol=1e-5)
    for name, value in expected["supernet"].items():
        if "running" not in name and "num_batches" not in name:  # statistics are each rank's own
            torch.testing.assert_close(found["supernet"][name], value, rtol=1e-3, atol=1e-4)
    logs = [read_log(run / "search.jsonl") for run in (together, alone)]
    assert [entry["step"] for entry in logs[0]] == [entry["step"] for entry in logs[1]]
    assert logs[0][0]["weight_loss"] == pytest.approx(logs[1][0]["weight_loss"], rel=1e-5)
    derived = [read_json(run / "architecture.json") for run in (together, alone)]
    assert derived[0] == derived[1]


@pytest.mark.distributed
def test_a_lost_rank_stops_the_job_and_the_run_goes_on(
    command: list[Any], start_ranks: Start, hwnas: Any, wait_for: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = [*command, "--batch-size", 16, "--output", run]
    first, second = start_ranks(*command, "--epochs", 1000, "--checkpoint-seconds", 0)
    wait_for(lambda: (run / "search.pt").exists() or first.over)
    second.kill(signal.SIGKILL)
    code, messages = first.end()
    assert code == 1, messages
    assert "error: rank 0 of 2 lost another process" in messages
    assert "--resume" in messages
    step = load_checkpoint(run / "search.pt")["step"]
    assert step > 0
    shutil.copy(run / "search.pt", tmp_path)
    for rank in ("rank0", "rank1"):
        shutil.rmtree(tmp_path / rank)
    again = start_ranks(*command, "--epochs", 1000, "--resume", "--checkpoint-seconds", 0)
    wait_for(lambda: load_checkpoint(run / "search.pt")["step"] > step or again[0].over)
    assert again[0].kill(signal.SIGTERM)[0] == 1  # both stop at the same step, with a checkpoint
    assert again[1].end()[0] == 1


@pytest.mark.distributed
def test_ranks_that_drew_other_paths_are_stopped(command: list[Any], start_ranks: Start, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(RECIPES)
    for rank in start_ranks(*command, "--recipe", f"{file}:astray", "--output", tmp_path / "run"):
        code, words = rank.end()
        assert code == 1, words
        if "lost another process" not in words:  # the one that was quicker to say so
            assert "error: the ranks drew different paths" in words


def test_what_is_off_the_path_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    step, sent = toy_step(create_recipe("gdas"), num_layers=2), list[int]()
    monkeypatch.setattr("hwnas.distributed.world_size", lambda: 2)
    monkeypatch.setattr("hwnas.distributed.dist.all_reduce", lambda flat: sent.append(flat.numel()))
    monkeypatch.setattr("hwnas.search.step.require_same", lambda what, number: None)
    step.run(step.weight_batch, step.draw(step.recipe.relaxation), weights=True)
    parameters = [*step.state.supernet.parameters()]
    on_path = sum(p.numel() for p in parameters if p.grad is not None)
    assert sent == [on_path, 2], "gradients; loss and accuracy"
    assert 0 < on_path < sum(p.numel() for p in parameters)


def test_alone_nothing_is_sent() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.full((3,), 2.0)
    average_gradients([parameter, torch.nn.Parameter(torch.ones(1))])
    assert parameter.grad.tolist() == [2.0] * 3
    values = [torch.ones(2), None]
    assert averaged(values) == values
    require_same("paths", 3)


def test_gradients_travel_in_buckets_of_one_kind() -> None:
    large = torch.zeros(4 * 2**20)  # 16 MiB
    kinds = [large, large, large, torch.zeros(3, dtype=torch.float64), torch.zeros(2)]
    assert [[g.numel() for g in bucket] for bucket in _buckets(kinds)] == [[4 * 2**20] * 2, [4 * 2**20], [3], [2]]


def test_what_a_device_cannot_do_is_refused() -> None:
    with pytest.raises(UsageError, match="precision 'fp8' is unknown; expected fp32 or bf16"):
        Compute(device="cpu", precision="fp8")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="at least 1 part"):
        Compute(device="cpu", accumulate=0)
    with pytest.raises(UsageError, match="device 'tpu' is unknown"):
        Compute(device="tpu")
