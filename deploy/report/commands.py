"""The commands that made a run, and those that are still to come."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from hwnas.latency.table import LatencyTable
from hwnas.run import RunFolder

_RENAMED = {"num_epochs": "epochs"}
"""Arguments of a recipe whose flag has another name."""


def commands(run: RunFolder, table: LatencyTable | None, training: Mapping[str, Any] | None) -> dict[str, str]:
    """Step -> the command that repeats it with this run's arguments."""
    config = run.config
    space = ["--space", config["space"]["name"], *_flags(config["space"]["options"])]
    search = {
        "table": config["table"]["path"],
        "max_ms": config["max_ms"],
        "recipe": config["recipe"]["name"],
        **{_RENAMED.get(name, name): value for name, value in config["recipe"]["arguments"].items()},
        "data": config["data"],
        "seed": config["seed"],
        "output": run.path,
    }
    other = ["--other-device"] if config["other_device"] else []
    data = (training or config)["data"]
    return {
        **({"profile": _line("profile", *space, *_profile_flags(table, config))} if table else {}),
        "search": _line("search", *space, *_flags(search), *other),
        "train": _line("train", run.path, *_flags({"data": data, "epochs": (training or {}).get("epochs")})),
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
    given = ((name, value) for name, value in arguments.items() if value is not None)
    return [word for name, value in given for word in (f"--{name.replace('_', '-')}", str(value))]


def _line(*words: Any) -> str:
    return shlex.join(["hwnas", *map(str, words)])
