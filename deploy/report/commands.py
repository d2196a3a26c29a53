"""The commands that made a run, and those that are still to come."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from hwnas.compute import Compute
from hwnas.latency.table import LatencyTable
from hwnas.run import RunFolder
from hwnas.training import TrainingOptions

_RENAMED = {"num_epochs": "epochs", "num_workers": "workers"}
"""Arguments of a recipe or a training whose flag has another name."""

_PYTHON_ONLY = ("channels_last", "momentum", "warm_up", "distillation_weight", "temperature")
"""Arguments of a training that the command line does not have."""


def commands(run: RunFolder, table: LatencyTable | None, training: Mapping[str, Any] | None) -> dict[str, str]:
    """Step -> the command that repeats it with this run's arguments."""
    config = run.config
    space = ["--space", config["space"]["name"], *_flags(config["space"]["options"])]
    search = {
        "table": config["table"]["path"],
        "max_ms": config["max_ms"],
        "weights_from": config.get("weights_from"),
        "recipe": config["recipe"]["name"],
        **_recipe_arguments(config["recipe"]["arguments"]),
        "data": config["data"],
        "seed": config["seed"],
        "output": run.path,
        "other_device": config["other_device"],
    }
    return {
        **({"profile": _line("profile", *space, *_profile_flags(table, config))} if table else {}),
        "search": _line("search", *space, *_flags(search)),
        "train": _line("train", run.path, *_flags(_train_arguments(training, config))),
        "export": _line("export", run.path, "--exporter", "onnx"),
        "verify": _line("verify", run.path),
        "report": _line("report", run.path),
    }


def missing_sections(
    run: RunFolder, training: Mapping[str, Any] | None, verification: Mapping[str, Any] | None
) -> dict[str, list[str]]:
    """Section -> the commands that make it, for steps not done yet."""
    steps = commands(run, None, training)
    missing = {} if training else {"training": [steps["train"]]}
    if not verification:
        exported = training is not None and run.file("model.onnx").exists()
        todo = ("verify",) if exported else ("export", "verify") if training else ("train", "export", "verify")
        missing["verification"] = [steps[step] for step in todo]
    return missing


def _recipe_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those that have a flag, and the others to be set by name."""
    flags = {name: arguments[name] for name in arguments if name in ("num_epochs", "batch_size")}
    return {**flags, "set": [f"{name}={value}" for name, value in arguments.items() if name not in flags]}


def _train_arguments(training: Mapping[str, Any] | None, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the training was asked for, apart from defaults."""
    if training is None:
        return {"data": config["data"]}
    defaults = {**asdict(TrainingOptions()), **asdict(Compute())}
    given = {**training.get("options", {}), **training.get("compute", {})}
    chosen = {name: given[name] for name in given if name not in _PYTHON_ONLY and given[name] != defaults.get(name)}
    return {"data": training["data"], "num_epochs": training["epochs"], **chosen}


def _profile_flags(table: LatencyTable, config: Mapping[str, Any]) -> list[str]:
    environment = table.environment
    record = table.calibrations.get(config["space"]["fingerprint"], {})
    return _flags(
        {
            "profiler": environment.runtime,
            "precision": environment.precision,
            "batch": environment.batch,
            "threads": environment.threads or None,
            "networks": len(record.get("networks", ())) or None,
            "output": config["table"]["path"],
        }
    )


def _flags(arguments: Mapping[str, Any]) -> list[str]:
    """Words of a command line; what is None or False is left out, True is a flag alone, and a list repeats it."""
    words = []
    for name, given in arguments.items():
        flag = f"--{_RENAMED.get(name, name).replace('_', '-')}"
        for value in given if isinstance(given, list) else [given]:
            if value is not None and value is not False:
                words += [flag] if value is True else [flag, str(value)]
    return words


def _line(*words: Any) -> str:
    return shlex.join(["hwnas", *map(str, words)])
