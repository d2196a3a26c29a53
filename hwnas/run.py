"""The folder of one run: what was asked for, and every result."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from hwnas.documents import Config, How, RunDocument, fitting
from hwnas.errors import OutputError, RunError
from hwnas.files import read_json, write_atomic, write_json
from hwnas.latency.budget import Budget
from hwnas.latency.environment import produced_by
from hwnas.latency.model import LatencyModel
from hwnas.latency.table import LatencyTable
from hwnas.space import Architecture, SearchSpace, create_space
from hwnas.space.genotype import printable

FORMAT_VERSION = 2

ADOPTED = "adopt"
"""Stands for a recipe where the network was given."""


@dataclass(frozen=True)
class RunFolder:
    """Paths and documents of one run.

    ===================== ==========================================================
    run.json              what was asked for: space, table, limit, recipe, data, seed; and how it was computed
    search.jsonl          the search, step by step
    search.pt             its checkpoint
    scores.jsonl          accuracies of its paths, where the derivation asks for some
    survivors.jsonl       networks that a search went through, where it prunes
    derivation.json       architectures tried against the limit, and what they measured
    architecture.json     the result
    genotype.json         the same as the literature has it, where that can tell its cells
    training.jsonl, .pt   training of the result
    weights.safetensors   its weights
    model.*, model-*.*    the exported network, one file a format and precision
    verification.json     numerics and measured latency of the exported files
    report.html, .json    everything, to read
    ===================== ==========================================================
    """

    path: Path

    def file(self, name: str) -> Path:
        """A file of the run."""
        return self.path / name

    def stage(self, number: int) -> RunFolder:
        """The folder of a search that comes before this one; made if it is not there."""
        found = RunFolder(self.file(f"stage{number}"))
        found.path.mkdir(parents=True, exist_ok=True)
        return found

    @classmethod
    def create(
        cls, path: Path | str, config: Mapping[str, Any], *, resume: bool, how: Mapping[str, Any] | None = None
    ) -> RunFolder:
        """Starts a run, or goes on with one that was asked for in the same words; its images may have moved.

        Args:
            path: The folder.
            config: What was asked for; a run that goes on must agree with it.
            resume: Whether to go on.
            how: How it is computed; only recorded.

        Raises:
            RunError: The folder holds a run and ``resume`` is not set, or that run was asked something else.
            OutputError: The folder cannot be created.
        """
        run = cls(Path(path))
        if run.file("run.json").exists() and run.begun:
            run._check_resumable(config, resume)
            if run.config != config:
                write_json(run.file("run.json"), {**run.document, "config": config})
            return run
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot create {run.path}: {error.strerror}. Choose an output in a folder you can write to."
            ) from error
        document = {"format_version": FORMAT_VERSION, "config": config, "how": dict(how or {}), "origin": origin()}
        write_json(run.file("run.json"), document)
        return run

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """An existing run.

        Raises:
            RunError: It is no run folder, or one of another format.
        """
        run = cls(Path(path))
        if not run.file("run.json").exists():
            raise RunError(
                f"{path} is not a run folder (no run.json). 'hwnas search --output {path}' makes one, or 'hwnas adopt'."
            )
        run.document  # noqa: B018
        return run

    @property
    def begun(self) -> bool:
        """Whether there is anything to go on with, or to lose."""
        return any(self.file(name).exists() for name in ("search.pt", "search.jsonl", "derivation.json"))

    @property
    def config(self) -> Config:
        """What was asked for."""
        return self.document["config"]

    @property
    def how(self) -> How:
        """How the search was computed when it began: ``compute`` and ``ranks``; nothing where that is not recorded."""
        return self.document.get("how", {})

    @property
    def adopted(self) -> bool:
        """Whether its network was given instead of searched."""
        return self.config["recipe"]["name"] == ADOPTED

    def space(self) -> SearchSpace:
        """The space of this run.

        Raises:
            RunError: This version of hwnas builds another space under that name.
        """
        described = self.config["space"]
        space = create_space(described["name"], **described["options"])
        if space.fingerprint != described["fingerprint"]:
            raise RunError(
                f"{self.path} was made with another definition of space '{space.name}' "
                f"({described['fingerprint']}, here {space.fingerprint}). Use the hwnas that made it, or search again."
            )
        return space

    def table(self) -> LatencyTable:
        """The latency table of this run.

        Raises:
            RunError: The table has changed since.
        """
        table = LatencyTable.load(self.config["table"]["path"])
        if table_hash(table) != self.config["table"]["sha256"]:
            raise RunError(
                f"latency table {table.path} has changed since {self.path} was started. Restore it, or search again."
            )
        return table

    def budget(self) -> Budget:
        """Latency model and limit of this run."""
        return Budget(LatencyModel.from_table(self.space(), self.table()), self.config["max_ms"])

    def architecture(self) -> Architecture:
        """The result of the search.

        Raises:
            RunError: The search has not finished.
        """
        path = self.file("architecture.json")
        if not path.exists():
            raise RunError(f"{self.path} has no architecture yet. Run 'hwnas search --resume' to the end first.")
        return Architecture.load(path)

    def save_architecture(self, architecture: Architecture) -> None:
        """Stores the result of the search; of cells that the literature can print, ``genotype.json``, too."""
        printed, path = printable(architecture), self.file("genotype.json")
        if printed:
            write_atomic(path, printed.to_json() + "\n")
        else:
            path.unlink(missing_ok=True)
        write_atomic(self.file("architecture.json"), architecture.to_json() + "\n")

    @property
    def document(self) -> RunDocument:
        """All of ``run.json``.

        Raises:
            RunError: It is of another format, or damaged.
        """
        path = self.file("run.json")
        document = read_json(path)
        if not isinstance(document, dict) or document.get("format_version") != FORMAT_VERSION:
            raise RunError(
                f"{self.path} was made by another version of hwnas; this one reads format {FORMAT_VERSION}. "
                "Use the hwnas that made it, or search again."
            )
        try:
            return fitting(document, RunDocument)
        except ValueError as error:
            raise RunError(f"{path}: {error}. Restore it, or search again.") from error

    def _check_resumable(self, config: Mapping[str, Any], resume: bool) -> None:
        stored = self.config
        if ADOPTED in (stored["recipe"]["name"], config["recipe"]["name"]):
            how = "was given" if self.adopted else "was searched"
            raise RunError(f"{self.path} holds a run whose network {how}. Choose another output.")
        different = [key for key in sorted({*stored, *config}) if stored.get(key) != config.get(key)]
        if different == ["data"] and "images" in config:  # the same images elsewhere
            different = []
        if different == ["images"]:
            raise RunError(
                f"{self.path} was started with other images ({stored.get('images')}) than {config['data']} holds now "
                f"({config.get('images')}). Restore the files and their names as they were, or choose another output."
            )
        if different:
            key = different[0]
            raise RunError(
                f"{self.path} holds a run with another {key} ({stored.get(key)!r}, asked now: {config.get(key)!r}). "
                "Choose another output."
            )
        if not resume:
            raise RunError(f"{self.path} already holds this run. Pass --resume to go on, or choose another output.")


def table_hash(table: LatencyTable) -> str:
    """Hash of a saved table with its sidecar."""
    if table.path is None:
        raise RunError("the latency table is not saved. Call table.save(PATH) first.")
    content = table.path.read_bytes() + table.path.with_suffix(".json").read_bytes()
    return hashlib.sha256(content).hexdigest()


def origin() -> dict[str, Any]:
    """When, by what command, on what and with which versions something was made."""
    packages = ("torch", "torchvision", "onnx", "onnxruntime", "numpy", "scipy")
    return {
        **produced_by(),
        "python": platform.python_version(),
        "system": platform.platform(),
        **_gpu(),
        "packages": {name: _version(name) for name in packages},
    }


def _gpu() -> dict[str, str]:
    """The GPU that torch would use, with versions of CUDA and of the driver; nothing where it sees none."""
    import torch

    if not torch.cuda.is_available():
        return {}
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    query = ["nvidia-smi", f"--id=GPU-{properties.uuid}", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        driver = "not readable"
    return {"gpu": properties.name, "driver": driver, "cuda": str(torch.version.cuda)}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
