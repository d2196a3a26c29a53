"""Accuracies of NAS-Bench-201's networks, from a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from hwnas.space.genotype import nas_bench_201_name

COLUMNS = "arch", "accuracy"


def accuracies(path: Path | None) -> pd.Series:
    """Name of a cell -> accuracy; the mean where a cell has several.

    Args:
        path: CSV with columns arch, such as ``|skip_connect~0|+|none~0|none~1|+|none~0|none~1|none~2|``, and accuracy.
    """
    wanted = f"CSV with columns {', '.join(COLUMNS)}"
    if path is None:
        raise SystemExit(f"give the accuracies of NAS-Bench-201 by --nb201 FILE: {wanted}")
    try:
        table = pd.read_csv(path)
        values = pd.to_numeric(table["accuracy"])
        return values.groupby(table["arch"].str.strip()).mean()
    except KeyError as error:
        raise SystemExit(f"{path} has no column {error}, but {', '.join(map(str, table.columns))}: {wanted}") from error
    except (OSError, ValueError, AttributeError) as error:
        raise SystemExit(f"{path} cannot be read ({error}); expected {wanted}") from error


def regret_of(options: Mapping[str, str], truth: pd.Series) -> str:
    """How far a cell is from the best of the file."""
    name = nas_bench_201_name(options)
    if name not in truth.index:
        return f"{name} is not in the file"
    return f"{truth[name]:.2f}, regret {truth.max() - truth[name]:.2f}"
