"""Networks that are known already: read, held against the limit, and gone on with like any other."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hwnas.deploy.report.data import collect
from hwnas.deploy.report.page import page

from hwnas.errors import ArchitectureError, RunError
from hwnas.latency.model import LatencyModel
from hwnas.latency.table import LatencyTable
from hwnas.run import RunFolder
from hwnas.space import Architecture, create_space
from hwnas.space.genotype import DARTS_V2, nas_bench_201_name
from hwnas.space.written import read_network
from hwnas.steps import tighten_run

Run = Callable[..., Any]

CELLS = create_space("darts-cell", channels=4, num_cells=3, resolution=16)
BENCH = create_space("nas-bench-201", num_cells=1, resolution=16)
SMALL = create_space("tiny-mbconv", resolution=16, width=0.25)


def test_every_form_gives_the_same_network(tmp_path: Path) -> None:
    expected = DARTS_V2.architecture(CELLS)
    texts = [expected.to_json(), DARTS_V2.to_json(), str(DARTS_V2), f"\n {DARTS_V2}\n"]
    for number, text in enumerate(texts):
        file = tmp_path / f"network{number}"
        file.write_text(text)
        assert read_network(text, CELLS) == read_network(str(file), CELLS) == expected
    for cell in BENCH.distinct(20, seed=0):
        assert read_network(nas_bench_201_name(dict(cell.options)), BENCH) == cell


def dead_end() -> str:
    """A cell whose only way to node 2 reads a node that nothing reaches."""
    options = dict.fromkeys(BENCH.choice_names, "none") | {"edge03": "nor_conv_3x3", "edge12": "nor_conv_1x1"}
    return Architecture("nas-bench-201", tuple(options.items())).to_json()


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("missing.json", "'missing.json' is neither a file nor a network"),
        ("x" * 5000, "is neither a file nor a network"),
        ("Genotype(normal=[])", "not a genotype"),
        ('{"normal_concat": 1}', "not a genotype"),
        ("{", "not an architecture"),
        ("|conv~0|", "names no network of space 'nas-bench-201'"),
        (nas_bench_201_name(dict(BENCH.distinct(1, seed=0)[0].options)) + "|", "names no network"),
        (nas_bench_201_name(dict.fromkeys(BENCH.choice_names, "conv")), "choice 'edge01' has no option 'conv'"),
        (str(DARTS_V2), "space 'nas-bench-201' has no choice 'normal_edge02'"),
        (DARTS_V2.architecture(CELLS).to_json(), "of space 'darts-cell' given to space 'nas-bench-201'"),
        (dead_end(), "parts of that network change nothing"),
    ],
    ids=range(11),
)
def test_what_is_no_network_of_the_space_is_refused(written: str, message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        read_network(written, BENCH)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "network").write_bytes(b"\xff")
    with pytest.raises(ArchitectureError, match=str(tmp_path / "network")):
        read_network(str(tmp_path / "network"), BENCH)


@pytest.fixture
def adopt(hwnas: Run, small: list[str], table: Path, tmp_path: Path, noise: str) -> Run:
    """Adopts a network into ``tmp_path / "known"``."""
    fixed = [*small, "--table", table, "--data", noise, "--output", tmp_path / "known"]
    return lambda network, *arguments: hwnas("adopt", network, *fixed, *arguments)


def test_a_given_network_is_predicted_measured_and_finished_like_any_other(
    adopt: Run, hwnas: Run, table: Path, tmp_path: Path
) -> None:
    network, run = SMALL.distinct(1, seed=3)[0], tmp_path / "known"
    (tmp_path / "given.json").write_text(network.to_json())
    said = adopt(tmp_path / "given.json").done()
    ms = LatencyModel.from_table(SMALL, LatencyTable.load(table)).exact_ms(network)
    derivation = json.loads((run / "derivation.json").read_text())
    (only,) = derivation["rounds"]
    assert f"predicted {ms:.4g} ms, measured" in said
    assert RunFolder.open(run).architecture() == network
    assert only["predicted_ms"] == pytest.approx(ms)
    assert only["measured_ms"] == pytest.approx(ms, rel=0.2)
    assert derivation["target_ms"] == pytest.approx(1.05 * ms, rel=1e-3)
    assert only["met"] == (only["measured_ms"] <= derivation["target_ms"])
    hwnas("train", run, "--epochs", 1, "--batch-size", 16).done()
    assert hwnas("export", run).done().startswith("exported")
    hwnas("report", run).done()
    assert (run / "report.html").exists()


def test_a_limit_that_the_network_misses_is_an_error_and_the_run_is_kept(adopt: Run, tmp_path: Path) -> None:
    model = LatencyModel.from_table(SMALL, LatencyTable.load(tmp_path / "formula.csv"))
    slow = max(SMALL.distinct(9, seed=0), key=model.exact_ms)
    ended = adopt(slow.to_json(), "--max-ms", 0.7 * model.exact_ms(slow))
    ended.failed(1, "the network does not keep the limit", tmp_path / "known")
    run = RunFolder.open(tmp_path / "known")
    assert not json.loads(run.file("derivation.json").read_text())["met"]
    assert run.architecture() == slow
    with pytest.raises(RunError, match="was given, not searched"):
        tighten_run(run, 1.0)


def test_elsewhere_nothing_is_measured(adopt: Run, table: Path, tmp_path: Path) -> None:
    sidecar = json.loads(table.with_suffix(".json").read_text())
    sidecar["environment"]["device"] = "another"
    table.with_suffix(".json").write_text(json.dumps(sidecar))
    network = SMALL.distinct(1, seed=3)[0].to_json()
    adopt(network).failed(1, "another")
    assert not (tmp_path / "known").exists()
    assert "not measured, target met" in adopt(network, "--other-device").done()


def test_the_same_again_is_no_matter_and_another_network_is(adopt: Run) -> None:
    first, second = (network.to_json() for network in SMALL.distinct(2, seed=3))
    adopt(first, "--max-ms", 100).done()
    adopt(first, "--max-ms", 100).done()
    adopt(second, "--max-ms", 100).failed(1, "holds a run with another recipe", "Choose another output")


def test_its_report_speaks_of_no_search_and_tells_the_command(adopt: Run, hwnas: Run, tmp_path: Path) -> None:
    network = SMALL.distinct(1, seed=3)[0]
    adopt(network.to_json(), "--max-ms", 100, "--seed", 5).done()
    run = RunFolder.open(tmp_path / "known")
    document = collect(run)
    shown = page(document)
    assert "This one was given, not searched." in shown
    for title in ("Search", "Option probabilities", "Candidates"):
        assert f"<h2>{title}</h2>" not in shown
    for word in ("inherited", "Software of the search"):
        assert word not in shown
    assert "search" not in document["commands"]
    words = shlex.split(document["commands"]["adopt"])
    words[words.index("--output") + 1] = str(tmp_path / "again")
    hwnas(*words[1:]).done()
    assert RunFolder.open(tmp_path / "again").config == run.config
