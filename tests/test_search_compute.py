"""How a search is computed changes its cost, not what it finds; on the processor and, where there is one, on a GPU."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hwnas.accuracy import PathAccuracy
from hwnas.compute import Compute
from hwnas.data import ImageData, load_data
from hwnas.errors import MemoryExhaustedError, UsageError
from hwnas.latency.budget import Budget, feasible_range_ms
from hwnas.recipes import create_recipe
from hwnas.run import RunFolder
from hwnas.search.loop import SearchResult, search
from hwnas.search.protocols import Relaxation, UpdateScheme
from hwnas.search.recipe import Recipe
from hwnas.search.relaxations import BinaryGates, Softmax, StraightThroughGumbel
from hwnas.search.schemes import Alternating, OneLevel
from hwnas.supernet.gates import Gate
from hwnas.supernet.supernet import Supernet
from hwnas.testing.toys import toy_latency_model

KINDS: list[Relaxation] = [Softmax(), StraightThroughGumbel(1.0), BinaryGates("two"), BinaryGates("all")]


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data("digits", resolution=8)


def recipe_of(relaxation: Relaxation) -> Recipe:
    recipe = create_recipe("gdas", num_epochs=1, batch_size=128)
    return replace(recipe, relaxation=relaxation, scheme=Alternating())


def searched(folder: Path, data: ImageData, recipe: Recipe, **options: Any) -> SearchResult:
    _, model = toy_latency_model()
    low, high = feasible_range_ms(model)
    folder.mkdir()
    compute = Compute(**{"device": "cpu", **options})
    return search(Budget(model, (low + high) / 2), data, recipe, RunFolder(folder), compute=compute)


def differences(one: SearchResult, other: SearchResult) -> float:
    """The largest difference of a probability."""
    return max(float((p - other.probabilities[name]).abs().max()) for name, p in one.probabilities.items())


@pytest.mark.parametrize("relaxation", KINDS, ids=lambda r: type(r).__name__)
def test_checkpointed_activations_change_no_bit(tmp_path: Path, digits: ImageData, relaxation: Relaxation) -> None:
    recipe = recipe_of(relaxation)
    plain = searched(tmp_path / "plain", digits, recipe)
    checkpointed = searched(tmp_path / "checkpointed", digits, recipe, checkpoint_activations=True)
    assert differences(plain, checkpointed) == 0
    for name, value in plain.supernet.state_dict().items():
        assert torch.equal(value, checkpointed.supernet.state_dict()[name]), name


def test_checkpointing_keeps_less() -> None:
    space, _ = toy_latency_model()
    supernet = Supernet(space).train()
    gates = {c.name: Gate(torch.ones(3), (0, 1, 2)) for c in space.choices}
    kept = []
    for checkpointed in (False, True):
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            supernet(torch.randn(64, 3, 8, 8), gates, checkpointed=checkpointed)
        kept.append(sum(sizes.values()))
    assert kept[1] < 0.6 * kept[0]


def test_mixed_precision_stays_close_and_differs(tmp_path: Path, digits: ImageData) -> None:
    recipe = recipe_of(StraightThroughGumbel(1.0))
    plain, mixed = (searched(tmp_path / p, digits, recipe, precision=p) for p in ("fp32", "bf16"))
    weights = zip(plain.supernet.parameters(), mixed.supernet.parameters(), strict=True)
    assert max(float((a - b).abs().max().detach()) for a, b in weights) > 0
    assert all(p.dtype == torch.float32 for p in mixed.supernet.parameters())
    # Five steps of a rate of 0.01 each move a logit by at most 0.05, a probability by less than 0.02.
    assert differences(plain, mixed) < 0.02


def test_the_memory_format_changes_rounding_only(tmp_path: Path, digits: ImageData) -> None:
    recipe = recipe_of(StraightThroughGumbel(1.0))
    last, first = (searched(tmp_path / str(c), digits, recipe, channels_last=c) for c in (True, False))
    assert next(last.supernet.parameters()).is_contiguous(memory_format=torch.channels_last)
    assert next(first.supernet.parameters()).is_contiguous()
    assert differences(last, first) < 1e-3


def test_workers_bring_the_same_batches(tmp_path: Path, digits: ImageData) -> None:
    recipe = recipe_of(StraightThroughGumbel(1.0))
    alone, helped = (searched(tmp_path / str(n), digits, recipe, num_workers=n) for n in (0, 1))
    assert differences(alone, helped) == 0


def test_compilation_is_refused_with_the_reason(tmp_path: Path, digits: ImageData) -> None:
    with pytest.raises(UsageError, match="does not pay in a search"):
        searched(tmp_path / "run", digits, recipe_of(Softmax()), compile=True)


def exhausted(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("where", ["search.measuring.measured_peak", "search.loop.initial_state"])
def test_exhausted_memory_names_batch_and_predicted_need(
    where: str, tmp_path: Path, digits: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first step, and where the supernet is moved to the device."""
    monkeypatch.setattr(f"hwnas.{where}", exhausted)
    recipe = recipe_of(Softmax())
    message = r"out of memory at batch size 128 in 1 part\(s\), predicted need [\d,.]+ MiB\. Use a smaller --batch-size"
    with pytest.raises(MemoryExhaustedError, match=message):
        searched(tmp_path / "run", digits, recipe)


def test_exhausted_memory_where_paths_are_scored(digits: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    space, _ = toy_latency_model()
    accuracy = PathAccuracy(Supernet(space), digits.train, digits.val, Compute(device="cpu"), num_batches=1)
    monkeypatch.setattr("hwnas.supernet.supernet.Network.forward", exhausted)
    for evaluate in (accuracy, accuracy.as_trained):
        with pytest.raises(MemoryExhaustedError, match=r"cpu is out of memory while \d+ images at a time are"):
            evaluate(space.architecture([0, 0, 0]))


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        (Alternating(warm_up=0.5), [(0, "weight step"), (3, "architecture step")]),  # steps 0, 1 and 2 of 5 warm up
        (Alternating(every=3, arch_first=True), [(0, "architecture step"), (0, "weight step")]),
        (OneLevel(), [(0, "weight step")]),
    ],
    ids=["warm-up", "architecture first", "one pass"],
)
def test_each_kind_of_step_is_measured_when_it_first_occurs(
    scheme: UpdateScheme, expected: list[tuple[int, str]], tmp_path: Path, digits: ImageData
) -> None:
    recipe = replace(recipe_of(Softmax()), scheme=scheme, weight_share=0.5 if scheme.needs_arch_split else 1.0)
    recipe = replace(recipe, batch_size=128 if scheme.needs_arch_split else 256)
    steps, said = list[int](), list[tuple[int, str]]()
    _, model = toy_latency_model()
    budget = Budget(model, feasible_range_ms(model)[1])
    search(
        budget, digits, recipe, RunFolder(tmp_path),
        progress=lambda what, done, total: steps.append(done), say=lambda line: said.append((len(steps), line)),
    )  # fmt: skip
    (_, predicted), *measured = said
    assert predicted.startswith("predicted peak")
    assert [(step, line.split(":")[0]) for step, line in measured] == [
        (step, f"measured in the first {kind}") for step, kind in expected
    ]
    for _, line in measured:
        found, need = (float(number) for number in re.findall(r"[\d.]+", line))
        assert 0.9 * need < found <= 1.05 * need, line  # every option runs: no path needs more


def test_one_gpu_for_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(UsageError, match=r"'cuda:1' would be shared by all 2 processes.*Use --device cuda, with which"):
        Compute(device="cuda:1")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert Compute(device="cuda").place == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert Compute(device="cuda:1").place == torch.device("cuda", 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnGpu:
    @pytest.mark.parametrize("relaxation", KINDS, ids=lambda r: type(r).__name__)
    def test_finds_what_the_processor_finds(self, tmp_path: Path, digits: ImageData, relaxation: Relaxation) -> None:
        recipe = recipe_of(relaxation)
        here, there = (searched(tmp_path / device, digits, recipe, device=device) for device in ("cpu", "cuda"))
        assert next(there.supernet.parameters()).is_cuda
        assert differences(here, there) < 5e-3  # TF32 convolutions have ten bits

    @pytest.mark.parametrize("options", [{"precision": "bf16"}, {"checkpoint_activations": True}, {"accumulate": 2}])
    def test_options(self, tmp_path: Path, digits: ImageData, options: dict[str, Any]) -> None:
        recipe = recipe_of(BinaryGates("two"))
        plain = searched(tmp_path / "plain", digits, recipe, device="cuda")
        changed = searched(tmp_path / "changed", digits, recipe, device="cuda", **options)
        assert differences(plain, changed) < 0.03

    def test_resumes(self, tmp_path: Path, digits: ImageData) -> None:
        recipe = recipe_of(StraightThroughGumbel(1.0))
        searched(tmp_path / "run", digits, recipe, device="cuda")
        _, model = toy_latency_model()
        budget = Budget(model, feasible_range_ms(model)[1])
        longer = replace(recipe, num_epochs=2)
        result = search(budget, digits, longer, RunFolder(tmp_path / "run"), compute=Compute(device="cuda"))
        assert next(result.supernet.parameters()).is_cuda

    def test_exhausted_memory(self, tmp_path: Path, digits: ImageData) -> None:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(1e-3)
        try:
            with pytest.raises(MemoryExhaustedError, match="out of memory at batch size 512"):
                searched(tmp_path / "run", digits, replace(recipe_of(Softmax()), batch_size=512), device="cuda")
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
