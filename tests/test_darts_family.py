"""``benchmarks/darts_family.py`` searches, judges and sums up, and knows the names of NAS-Bench-201."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from hwnas.space.genotype import nas_bench_201_name

SPACE = "robust-darts:subspace=2,channels=4,num_cells=3,resolution=16"
PLAN = ("--space", SPACE, "--batch-size", "8", "--epochs", "1", "--train-epochs", "1", "--images", "40")


@pytest.fixture
def run(
    load_benchmark: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Runs a stage in a folder of its own; returns what it wrote."""
    script = load_benchmark("darts_family")
    monkeypatch.chdir(tmp_path)

    def stage(*words: str) -> str:
        output = tmp_path / "lines.txt"
        monkeypatch.setattr(sys, "argv", ["darts_family.py", *words, "--output", str(output)])
        script.main()
        return output.read_text(encoding="utf-8") if output.exists() else ""

    return stage


@pytest.fixture
def data(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    images = {f"x_{part}": rng.integers(0, 256, (count, 16, 16, 3), np.uint8) for part, count in SIZES.items()}
    labels = {f"y_{part}": np.arange(count) % 10 for part, count in SIZES.items()}
    np.savez(tmp_path / "images.npz", **images, **labels)
    return f"npz:{tmp_path / 'images.npz'}"


SIZES = {"train": 80, "test": 40}


def test_methods_are_searched_once_and_summed_up(run: Callable[..., str], data: str) -> None:
    methods = ("--methods", "p_darts,random:num_samples=2,drawn", "--data", data)
    run("search", *PLAN, *methods)
    kept = Path("runs/darts-family/results.jsonl").read_text()
    assert len(kept.splitlines()) == 3
    run("search", *PLAN, *methods)
    assert Path("runs/darts-family/results.jsonl").read_text() == kept
    table = run("summary", *PLAN, *methods)
    for column in ("supernet", "inherited", "recalibrated", "retrained", "skips", "eigenvalue"):
        assert column in table
    for method in ("p_darts", "random:num_samples=2", "drawn"):
        assert re.search(rf"^{method}\s+images\.npz\s+1\s", table, re.MULTILINE)
    assert "images.npz" in run("summary", *PLAN, "--data", "npz:elsewhere/images.npz")
    assert run("summary", *PLAN, "--data", "digits") == "nothing was kept with these settings\n"


def test_costs_are_ratios_to_darts(run: Callable[..., str]) -> None:
    table = run("costs", "--space", SPACE, "--batch-size", "4", "--rounds", "1", "--methods", "gdas,drop_nas")
    assert re.search("^drop_nas is left out: nothing can be dropped in space 'robust-darts'", table, re.MULTILINE)
    assert re.search(r"^darts\s+memory  1\.00   time  1\.00$", table, re.MULTILINE)  # without having been asked for
    found = re.search(r"^gdas\s+memory +([\d.]+)   time", table, re.MULTILINE)
    assert found is not None
    assert 0 < float(found[1]) < 1  # one operator an edge, not all


def test_what_a_method_cannot_search_is_left_out_before_the_first_search(
    load_benchmark: Callable[[str], ModuleType],
) -> None:
    script = load_benchmark("darts_family")
    shown = argparse.Namespace(space=SPACE, epochs=5, batch_size=8, limit=1.0, methods=",".join(script.METHODS))
    fit, refused = script.methods(shown)
    assert {"asap", "cp_nas", "gold_nas", "p_darts"} <= {*fit}
    assert any("robust_darts:mode=stop is left out" in line and "23 epochs" in line for line in refused)
    fit, refused = script.methods(argparse.Namespace(**{**vars(shown), "space": "nas-bench-201:num_cells=1"}))
    assert {"snas", "asap", "cp_nas", "beta_darts"} <= {*fit}
    left_out = {line.split()[0] for line in refused}
    assert {"gold_nas", "pc_darts", "darts_plus", "fair_darts"} <= left_out
    with pytest.raises(SystemExit, match="Did you mean 'darts'"):
        script.methods(argparse.Namespace(**{**vars(shown), "methods": "dart"}))


def test_every_method_has_the_candidates_of_its_paper(load_benchmark: Callable[[str], ModuleType]) -> None:
    script = load_benchmark("darts_methods")
    shown = argparse.Namespace(space="darts-cell:channels=4,num_cells=3,resolution=16,stem_stride=8")
    options = {name: script.space_of(name, shown).options for name in ("beta_darts", "asap", "darts", "gold_nas")}
    assert options["beta_darts"]["with_none"] == 0
    assert options["asap"]["inputs"] == 0
    assert (options["darts"]["with_none"], options["darts"]["inputs"]) == (1, 2)
    assert options["gold_nas"]["stem_stride"] == 8


def test_no_method_has_a_limit_unless_all_have_the_same(load_benchmark: Callable[[str], ModuleType]) -> None:
    script = load_benchmark("darts_methods")
    free = {
        name: script.budget_of(name, argparse.Namespace(space=SPACE, limit=1.0))
        for name in ("darts", "fair_darts", "asap", "gold_nas")  # the last three of their own spaces
    }
    assert [name for name, budget in free.items() if budget.binds] == ["gold_nas"]  # it prunes to a limit
    assert free["gold_nas"].max_ms == free["darts"].max_ms
    limits = {script.budget_of(name, argparse.Namespace(space=SPACE, limit=0.6)).max_ms for name in ("darts", "asap")}
    assert len(limits) == 1


def test_p_darts_takes_arguments_as_well(load_benchmark: Callable[[str], ModuleType]) -> None:
    recipe_of = load_benchmark("darts_methods").recipe_of
    shown = argparse.Namespace(space=SPACE, epochs=3, batch_size=8)
    assert recipe_of("p_darts:max_skips=5", shown, 1.0).derivation.max_skips == 5


def test_searches_need_images(run: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("search", *PLAN)
    assert "--data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "space", "message"),
    [
        ("arch,accuracy\n|a|,90\n", SPACE, "give --space nas-bench-201"),
        ("arch,accuracy\n|a|,90\n", "nas-bench-201", "run 'search' first"),
        ("name,top1\n|a|,90\n", "nas-bench-201", "no column 'accuracy', but name, top1"),
        ("arch,accuracy\n|a|,good\n", "nas-bench-201", "cannot be read"),
        ("", "nas-bench-201", "cannot be read"),
        (None, "nas-bench-201", "cannot be read"),
    ],
)
def test_a_regret_that_is_not_known_says_why(
    run: Callable[..., str], tmp_path: Path, text: str | None, space: str, message: str
) -> None:
    if text is not None:
        (tmp_path / "truth.csv").write_text(text)
    with pytest.raises(SystemExit, match=message):
        run("regret", "--space", space, "--nb201", str(tmp_path / "truth.csv"))


def test_what_is_searched_in_nas_bench_201_has_a_regret(
    run: Callable[..., str], data: str, tmp_path: Path, load_benchmark: Callable[[str], ModuleType]
) -> None:
    space = "nas-bench-201:num_cells=1,width=0.5,resolution=16"
    run("search", *PLAN, "--space", space, "--methods", "gdas", "--data", data)
    (row,) = load_benchmark("darts_family").RESULTS.all(space=space)
    name, truth = nas_bench_201_name(row["architecture"]), tmp_path / "truth.csv"
    assert re.fullmatch(r"\|\w+~0\|\+\|\w+~0\|\w+~1\|\+\|\w+~0\|\w+~1\|\w+~2\|", name)
    for rows, expected in (
        (f"{name},90.5\nother,94.0\n", r"gdas\s+seed 0: 90\.50, regret 3\.50"),
        (f"{name},90\n{name},91\n", r"seed 0: 90\.50, regret 0\.00"),  # trainings of one cell count as their mean
        ("other,94.0\n", rf"{re.escape(name)} is not in the file"),
    ):
        truth.write_text(f"arch,accuracy\n{rows}")
        assert re.search(expected, run("regret", "--space", space, "--nb201", str(truth)))
