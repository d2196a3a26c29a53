"""What the JSON files of runs and tables hold, as types, and a check that they do.

What a type does not name may be there too: later versions add facts.
"""

from __future__ import annotations

from hwnas.documents.checking import (
    LARGEST,
    LARGEST_MS,
    Count,
    Figure,
    Milliseconds,
    Positive,
    Share,
    Within,
    fitting,
    read_document,
)
from hwnas.documents.run import (
    ArchitectureDocument,
    Config,
    Derivation,
    ExportedFile,
    How,
    Layer,
    Round,
    RunDocument,
    ScoredPath,
    Training,
    Verification,
)
from hwnas.documents.table import Begun, EnvironmentDocument, Failed, Sidecar, Visited

__all__ = [
    "LARGEST",
    "LARGEST_MS",
    "ArchitectureDocument",
    "Begun",
    "Config",
    "Count",
    "Derivation",
    "EnvironmentDocument",
    "ExportedFile",
    "Failed",
    "Figure",
    "How",
    "Layer",
    "Milliseconds",
    "Positive",
    "Round",
    "RunDocument",
    "ScoredPath",
    "Share",
    "Sidecar",
    "Training",
    "Verification",
    "Visited",
    "Within",
    "fitting",
    "read_document",
]
