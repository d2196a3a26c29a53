"""The files of a run, read and held against each other."""

from __future__ import annotations

from typing import Any, TypeVar

from hwnas.accuracy import scored_paths
from hwnas.documents import LARGEST, Derivation, ScoredPath, Share, Training, Verification, fitting, read_document
from hwnas.errors import RunError
from hwnas.metrics import read_log
from hwnas.run import RunFolder
from hwnas.space import SearchSpace

Log = list[dict[str, Any]]

Step = TypeVar("Step", Training, Verification)

_NO_FIGURES = ("probabilities",)
"""Entries of a log that are no number a step."""


def read_derivation(run: RunFolder, space: SearchSpace) -> Derivation:
    """What was derived.

    Raises:
        RunError: The search has not finished, or the file is damaged or of another space.
    """
    path = run.file("derivation.json")
    if not path.exists():
        raise RunError(
            f"{run.path} has no derivation.json: the search has not finished. "
            "Run its 'hwnas search' again with --resume, to the end."
        )
    document = read_document(path, Derivation)
    options = {choice.name: len(choice.options) for choice in space.choices}
    given = document["probabilities"]
    wrong = [
        words
        for words, broken in {
            "it has no rounds": not document["rounds"],
            "reachable_ms is not the smallest and the largest latency": len(document["reachable_ms"]) != 2,
            f"it has {len(document['layers'])} layers, the space {len(space.layers)}": (
                len(document["layers"]) != len(space.layers)
            ),
            "its probabilities are of other options": any(len(p) != options.get(name) for name, p in given.items()),
        }.items()
        if broken
    ]
    if wrong:
        raise RunError(f"{path}: {wrong[0]}. Restore it or search again.")
    for each in document["rounds"]:
        space.architecture(each["architecture"])
    return document


def read_step(run: RunFolder, name: str, kind: type[Step], identity: str, notes: list[str]) -> Step | None:
    """What a later step wrote, if it is about the architecture that was derived last.

    Raises:
        RunError: The file is damaged.
    """
    if not run.file(name).exists():
        return None
    document = read_document(run.file(name), kind)
    if document["architecture"] == identity:
        return document
    notes.append(f"{name} is about an architecture that was replaced since, and is left out.")
    return None


def read_probabilities(run: RunFolder, log: Log, space: SearchSpace) -> list[tuple[int, dict[str, list[float]]]]:
    """Step and probabilities of some entries of the search's log, from the first to the last.

    Raises:
        RunError: An entry is damaged.
    """
    options = {choice.name: len(choice.options) for choice in space.choices}
    logged = [entry for entry in log if entry.get("probabilities")]
    if not logged:
        return []
    count = min(MOMENTS, len(logged))
    moments = [logged[round(n * (len(logged) - 1) / max(1, count - 1))] for n in range(count)]
    for entry in moments:
        try:
            found = fitting(entry["probabilities"], dict[str, list[Share]])
        except ValueError as error:
            raise RunError(f"{run.file('search.jsonl')}, step {entry['step']}: {error}. Delete that line.") from error
        if any(len(values) != options.get(name) for name, values in found.items()):
            raise RunError(f"{run.file('search.jsonl')}, step {entry['step']}: other options than the space has.")
    return [(entry["step"], entry["probabilities"]) for entry in moments]


MOMENTS = 48
"""Columns of the picture of a search's probabilities."""


def columns(run: RunFolder, name: str, log: Log | None = None) -> dict[str, list[Any]]:
    """A log by figure; None where a step did not log it, or what it logged cannot be drawn.

    Raises:
        RunError: The log is damaged.
    """
    path = run.file(f"{name}.jsonl")
    entries = read_log(path) if log is None else log
    names = dict.fromkeys(key for entry in entries for key in entry if key not in _NO_FIGURES)
    for entry in entries:
        wrong = [key for key in names if not isinstance(entry.get(key), int | float | None)]
        if wrong:
            raise RunError(f"{path}, step {entry['step']}: '{wrong[0]:.80}' is no number. Delete that line.")
    return {name: [_drawable(entry.get(name)) for entry in entries] for name in names}


def _drawable(value: float | None) -> float | None:
    return value if value is not None and -LARGEST <= value <= LARGEST else None


def read_scores(run: RunFolder) -> list[ScoredPath]:
    """Accuracies of the paths that the derivation asked for, with the weights it used.

    Raises:
        RunError: The file is damaged.
    """
    entries = scored_paths(run.file("scores.jsonl"))
    return [entry for entry in entries if entry["identity"] == entries[-1]["identity"]]
