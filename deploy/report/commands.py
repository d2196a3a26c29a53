"""The commands that made a run, and those that are still to come."""

from __future__ import annotations

import ast
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from hwnas.compute import Compute
from hwnas.latency.table import LatencyTable
from hwnas.run import RunFolder
from hwnas.space import listed, spelled
from hwnas.steps import exported_name
from hwnas.tensorrt_engine import FLAVOURS
from hwnas.training import TrainingOptions

_RENAMED = {"num_epochs": "epochs", "num_workers": "workers"}
"""Arguments of a recipe or a training whose flag has another name."""

_PYTHON_ONLY = ("channels_last", "momentum", "warm_up", "distillation_weight", "temperature")
"""Arguments of a training that the command line does not have."""


def commands(
    run: RunFolder,
    table: LatencyTable | None,
    training: Mapping[str, Any] | None,
    files: Sequence[Mapping[str, Any]] = (),
) -> dict[str, str]:
    """Step -> the command that repeats it with this run's arguments; one that nobody can repeat is left out.

    Args:
        run: What was searched.
        table: Its table, if it is at hand.
        training: What ``training.json`` holds, if there is one.
        files: What ``verification.json`` holds of the exported ones.
    """
    config = run.config
    trained = ["train", run.path, *_flags(_train_arguments(training, config))]
    return {
        **({"profile": profiled} if table and (profiled := _profile(table, config)) else {}),
        **({"adopt": _adopt(run)} if run.adopted else {"search": _search(run)}),
        "train": _line(*trained, ranks=(training or {}).get("ranks", 1)),
        "export": _line("export", run.path, "--exporter", "onnx"),
        **{
            f"export {each['file']}": _export(run, each)
            for each in files
            if each["file"] != exported_name("fp32", ".onnx")
        },
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


def _search(run: RunFolder) -> str:
    """The command that makes the run again, up to its architecture."""
    config, how = run.config, run.how
    searched = {
        **_begun(run),
        "weights_from": config.get("weights_from"),
        "recipe": config["recipe"]["name"],
        **_recipe_arguments(config["recipe"]["arguments"]),
        "proxy": listed(config.get("proxy", {})) or None,
        **_chosen(how.get("compute", {}), Compute()),
    }
    return _line("search", *_flags(searched), ranks=how.get("ranks", 1))


def _adopt(run: RunFolder) -> str:
    """The same of a run whose network was given."""
    return _line("adopt", run.architecture().to_json(), *_flags(_begun(run)))


def _begun(run: RunFolder) -> dict[str, Any]:
    """What every command that begins a run is told; its ``--num-classes`` chooses classes of the data, too."""
    config = run.config
    space, classes = config["space"], config.get("classes")
    options = {name: value for name, value in space["options"].items() if name != "num_classes" or classes is None}
    return {
        **spelled(space["name"], options, flags=("resolution", "width")),
        "num_classes": classes,
        "table": config["table"]["path"],
        "max_ms": config["max_ms"],
        "data": config["data"],
        "seed": config["seed"],
        "output": run.path,
        "other_device": config["other_device"],
    }


def _export(run: RunFolder, file: Mapping[str, Any]) -> str:
    """The command that makes a file again."""
    flavour = file["environment"]["runtime"]
    exporter = {"exporter": "tensorrt", "flavour": flavour} if flavour in FLAVOURS else {"exporter": "onnx"}
    return _line("export", run.path, *_flags({**exporter, "precision": file["precision"]}))


def _recipe_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those that have a flag, and the others to be set by name."""
    flags = {name: value for name in ("num_epochs", "batch_size") if isinstance(value := arguments.get(name), int)}
    return {**flags, "set": [f"{name}={_text(value)}" for name, value in arguments.items() if name not in flags]}


def _text(value: Any) -> str:
    """What ``--set`` reads as that value; text that looks like another value is quoted."""
    try:
        ast.literal_eval(str(value))
    except (ValueError, SyntaxError):
        return str(value)
    return repr(value)


def _train_arguments(training: Mapping[str, Any] | None, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the training was asked for, apart from defaults."""
    if training is None:
        return {"data": config["data"]}
    options = _chosen(training.get("options", {}), TrainingOptions())
    how = _chosen(training.get("compute", {}), Compute())
    return {"data": training["data"], "num_epochs": training["epochs"], **options, **how}


def _chosen(given: Mapping[str, Any], defaults: TrainingOptions | Compute) -> dict[str, Any]:
    """What has a flag and differs from the defaults."""
    usual = asdict(defaults)
    return {name: given[name] for name in given if name not in _PYTHON_ONLY and given[name] != usual.get(name)}


def _profile(table: LatencyTable, config: Mapping[str, Any]) -> str | None:
    """How the table was made; one that no sweep alone made says so itself, if at all."""
    provenance, environment = table.provenance, table.environment
    if "imported" in provenance or "merged" in provenance:
        return provenance.get("command")
    fingerprint = config["space"]["fingerprint"]
    sweeps = [provenance, *provenance.get("earlier", [])]
    plans = [sweep["plan"] for sweep in sweeps if sweep.get("plan", {}).get("space") == fingerprint]
    measured = {"networks": len(table.calibrations.get(fingerprint, {}).get("networks", ())) or None}
    target = {
        "profiler": environment.runtime,
        **environment.arguments,
        "precision": environment.precision,
        "batch": environment.batch,
        "threads": environment.threads or None,
    }
    plan = {name: (plans or [measured])[0].get(name) for name in ("networks", "rounds", "minutes", "seed")}
    space = spelled(config["space"]["name"], config["space"]["options"])
    return _line("profile", *_flags({**space, **target, **plan, "output": config["table"]["path"]}))


def _flags(arguments: Mapping[str, Any]) -> list[str]:
    """Words of a command line; what is None or False is left out, True is a flag alone, and a list repeats it."""
    words = []
    for name, given in arguments.items():
        flag = f"--{_RENAMED.get(name, name).replace('_', '-')}"
        for value in given if isinstance(given, list) else [given]:
            if value is not None and value is not False:
                words += [flag] if value is True else [flag, str(value)]
    return words


def _line(*words: Any, ranks: int = 1) -> str:
    """A command, started by ``torchrun`` where several processes worked together."""
    program = ["hwnas"] if ranks == 1 else ["torchrun", "--nproc-per-node", str(ranks), "-m", "hwnas"]
    return shlex.join([*program, *map(str, words)])
