"""Tables that ship: whole, named after their environment, covering what they claim, with an error good enough."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hwnas.latency.model import LatencyModel
from hwnas.latency.table import LatencyTable
from hwnas.space import create_space

FOLDER = Path(__file__).parent.parent / "latency_tables"
TABLES = sorted(FOLDER.glob("*.csv"))


def test_there_are_some() -> None:
    assert TABLES


@pytest.mark.parametrize("path", TABLES, ids=lambda p: p.stem)
def test_a_shipped_table_is_what_it_says(path: Path) -> None:
    table = LatencyTable.load(path)
    environment = table.environment
    device, runtime, precision, batch = path.stem.split("__")
    assert runtime == f"{environment.runtime}-{environment.runtime_version}"
    assert (precision, batch) == (environment.precision, f"b{environment.batch}")
    words = set(re.findall(r"[a-z0-9.]+", environment.device.lower()))
    assert set(device.split("-")) <= words
    assert not [s for s, entry in table.entries.items() if not entry.usable]
    assert table.calibrations, "it states no error"
    for fingerprint, record in table.calibrations.items():
        space = create_space(record["space"]["name"], **record["space"]["options"])
        assert space.fingerprint == fingerprint
        model = LatencyModel.from_table(space, table)
        assert model.error is not None
        assert not model.poor
        assert record["space"]["name"] in (FOLDER / "README.md").read_text(encoding="utf-8")
    assert " /" not in table.provenance["command"], "a path of the machine that made it"
    assert path.stem in (FOLDER / "README.md").read_text(encoding="utf-8")
