"""The commands of a report: a reader who copies them gets the same run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from hwnas.deploy.report.commands import commands

from hwnas.cli import app
from hwnas.cli_options import built_space, numbers
from hwnas.files import read_json
from hwnas.latency.table import LatencyTable
from hwnas.run import RunFolder, origin
from hwnas.space import create_space

Run = Callable[..., Any]

MINE = """
import hwnas

def mine(*, num_epochs=1, batch_size=64, label="", arch_lr=0.05):
    return hwnas.create_recipe("gates", num_epochs=num_epochs, batch_size=batch_size, arch_lr=arch_lr)
"""

MODED = """
from dataclasses import replace
from hwnas.testing.toys import AnalyticProfiler

class Moded(AnalyticProfiler):
    def __init__(self, *, device="right", mode="slow", precision="fp32", batch=1, threads=1):
        super().__init__(precision=precision, batch=batch, threads=threads)
        self._arguments = {"device": device, "mode": mode}

    def environment(self):
        return replace(super().environment(), runtime="moded", arguments=self._arguments)
"""


def told(run: Path, training: dict[str, Any] | None = None) -> dict[str, str]:
    """The commands of a run."""
    folder = RunFolder.open(run)
    return commands(folder, LatencyTable.load(folder.config["table"]["path"]), training)


def parsed(line: str) -> dict[str, Any]:
    """What the command line understands."""
    program, command, *arguments = shlex.split(line)
    assert program == "hwnas"
    group = typer.main.get_command(app)
    return dict(group.commands[command].make_context(command, arguments).params)  # type: ignore[attr-defined]


def again(line: str, output: Path) -> list[str]:
    """The words of a command, with another output."""
    words = shlex.split(line)[1:]
    words[words.index("--output") + 1] = str(output)
    return words


def asked(run: Path) -> Any:
    document = read_json(run / "run.json")
    return document["config"], document["how"]


def test_the_search_is_repeated_with_everything_that_was_chosen(
    hwnas: Run, small: list[str], table: Path, searched: Path, noise: str, tmp_path: Path
) -> None:
    (tmp_path / "my.py").write_text(MINE)
    first, second = tmp_path / "a run", tmp_path / "second"
    hwnas(
        "search", *small, "--table", table, "--output", first, "--recipe", f"{tmp_path / 'my.py'}:mine",
        "--epochs", 2, "--set", "label='1'", "--set", "arch_lr=1e-2", "--weights-from", searched, "--device", "cpu",
        "--precision", "bf16", "--accumulate", 2, "--checkpoint-activations", "--num-classes", 10, "--seed", 7,
        "--data", noise, "--batch-size", 16,
    ).done()  # fmt: skip
    hwnas(*again(told(first)["search"], second)).done()
    assert asked(first) == asked(second)
    (config, how), (first_result, second_result) = asked(first), (run / "architecture.json" for run in (first, second))
    assert config["recipe"]["arguments"] == {"num_epochs": 2, "batch_size": 16, "label": "1", "arch_lr": 0.01}
    assert (config["classes"], config["compute"]) == (10, {"precision": "bf16", "parts": 2})
    assert (how["ranks"], how["compute"]["device"], how["compute"]["checkpoint_activations"]) == (1, "cpu", True)
    assert first_result.read_text() == second_result.read_text()


def test_defaults_are_left_out(searched: Path) -> None:
    said = parsed(told(searched)["search"])
    config = RunFolder.open(searched).config
    assert (said["classes"], said["weights_from"], said["settings"], said["device"]) == (None, None, (), "auto")
    assert (said["max_ms"], Path(said["output"])) == (config["max_ms"], searched)
    assert "--head" not in told(searched)["search"]


def test_the_profile_is_repeated_with_the_device_and_the_plan(
    hwnas: Run, packages: Any, small: list[str], searched: Path, tmp_path: Path
) -> None:
    packages.add("moded", {"moded": "moded:Moded"}, source=MODED)
    first, second, run = tmp_path / "first.csv", tmp_path / "second.csv", tmp_path / "run"
    device = ["--profiler", "moded", "--device", "left", "--mode", "fast", "--precision", "bf16", "--batch", 2]
    plan = ["--networks", 3, "--rounds", 2, "--seed", 5, "--minutes", 3]
    hwnas("profile", *small, *device, *plan, "--output", first).done()
    hwnas("profile", "--space", "tiny-mbconv", "--resolution", 24, *small[4:], *device, "--networks", 4, "--rounds", 2,
          "--output", first).done()  # fmt: skip
    config = RunFolder.open(searched).config
    RunFolder.create(run, config | {"table": {"path": str(first), "sha256": ""}}, resume=False)
    hwnas(*again(told(run)["profile"], second)).done()
    tables = LatencyTable.load(first), LatencyTable.load(second)
    assert tables[0].environment == tables[1].environment
    assert tables[1].environment.arguments == {"device": "left", "mode": "fast"}
    (earlier,), repeated = tables[0].provenance["earlier"], tables[1].provenance
    assert earlier["plan"] == repeated["plan"]
    assert repeated["plan"] | {"networks": 3, "rounds": 2, "seed": 5, "minutes": 3.0} == repeated["plan"]


def test_several_ranks_are_started_by_torchrun(run: Path) -> None:
    document = read_json(run / "run.json")
    document["how"]["ranks"] = 4
    (run / "run.json").write_text(json.dumps(document))
    lines = told(run, {"data": "digits", "epochs": 2, "ranks": 8})
    launcher, search = lines["search"].split(" -m ")
    assert launcher == "torchrun --nproc-per-node 4"
    assert parsed(search)["epochs"] == 1
    launcher, train = lines["train"].split(" -m ")
    assert launcher == "torchrun --nproc-per-node 8"
    assert parsed(train)["epochs"] == 2
    assert lines["export"].startswith("hwnas ")


def test_the_training_is_repeated_with_everything_that_was_chosen(hwnas: Run, run: Path, noise: str) -> None:
    chosen = ["--epochs", 1, "--batch-size", 16, "--lr", 1e-3, "--optimizer", "adamw", "--weight-decay", 0.1]
    chosen += ["--label-smoothing", 0, "--ema", 0.5, "--mixup", 0.2, "--randaugment", 5, "--device", "cpu"]
    line = ["train", run, "--data", noise, *chosen, "--precision", "bf16", "--accumulate", 2]
    hwnas(*line).done()
    repeated = parsed(told(run, read_json(run / "training.json"))["train"])
    assert repeated == parsed(shlex.join(["hwnas", *map(str, line)]))


def test_a_table_that_no_sweep_made_says_how_it_came(hwnas: Run, table: Path, searched: Path, tmp_path: Path) -> None:
    merged, run = tmp_path / "merged.csv", tmp_path / "run"
    hwnas("table", "merge", table, table, "--output", merged).done()
    config = RunFolder.open(searched).config
    RunFolder.create(run, config | {"table": {"path": str(merged), "sha256": ""}}, resume=False)
    assert told(run)["profile"] == f"hwnas table merge {table} {table} --output {merged}"


def test_what_made_something_names_the_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        assert origin()["gpu"] == torch.cuda.get_device_name()
        return
    assert not {"gpu", "driver", "cuda"} & set(origin())
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n[ $1 = --id=GPU-uuid ] && echo 550.1\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    properties = type("Properties", (), {"name": "Test GPU", "uuid": "uuid"})
    for name, answer in (("is_available", True), ("current_device", 0), ("get_device_properties", properties)):
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for path, driver in (("/bin", "not readable"), (f"{tmp_path}:/bin", "550.1")):
        monkeypatch.setenv("PATH", path)
        found = origin()
        assert (found["gpu"], found["driver"], found["cuda"]) == ("Test GPU", driver, "13.0")


@pytest.mark.parametrize("classes", [None, 100])
def test_options_of_a_space_without_a_flag_stand_behind_its_name(
    searched: Path, tmp_path: Path, classes: int | None
) -> None:
    space = create_space("darts-cell", channels=4, num_cells=3, num_classes=100)
    config = {**RunFolder.open(searched).config, "space": space.describe(), "proxy": {"channels": 2, "num_cells": 5}}
    RunFolder.create(tmp_path / "run", config | {"classes": classes}, resume=False)
    lines = told(tmp_path / "run")
    said = parsed(lines["search"])
    found = built_space(said["space"], said["resolution"], said["classes"], said["width"])
    assert found.fingerprint == space.fingerprint
    assert (said["classes"], numbers(said["proxy"])) == (classes, config["proxy"])
    said = parsed(lines["profile"])
    found = built_space(said["space"], said["resolution"], said["num_classes"], said["width"])
    assert found.fingerprint == space.fingerprint
