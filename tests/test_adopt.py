"""Networks that are known already: read, held against the limit, and gone on with like any other."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hwnas.deploy.report.data import collect
from hwnas.deploy.report.page import page

from hwnas.errors import ArchitectureError, RunError
from hwnas.latency.device import Device, Timed
from hwnas.latency.measurement import Measurement
from hwnas.latency.model import LatencyModel
from hwnas.latency.table import LatencyTable
from hwnas.plugins import create_profiler
from hwnas.run import RunFolder
from hwnas.space import Architecture, create_space
from hwnas.space.genotype import DARTS_V2, nas_bench_201_name
from hwnas.space.written import read_network
from hwnas.steps import tighten_run
from hwnas.supernet.supernet import Network

Run = Callable[..., Any]

CELLS = create_space("darts-cell", channels=4, num_cells=3, resolution=16)
BENCH = create_space("nas-bench-201", num_cells=1, resolution=16)
SMALL = create_space("tiny-mbconv", resolution=16, width=0.25)
GIVEN = SMALL.distinct(1, seed=3)[0]


def test_every_form_gives_the_same_network(tmp_path: Path) -> None:
    expected = DARTS_V2.architecture(CELLS)
    texts = [expected.to_json(), DARTS_V2.to_json(), str(DARTS_V2), f"\n {DARTS_V2}\n", f"DARTS_V2 = {DARTS_V2}"]
    for number, text in enumerate(texts):
        file = tmp_path / f"network{number}"
        file.write_text(text)
        assert read_network(text, CELLS) == read_network(str(file), CELLS) == expected
    for cell in BENCH.distinct(20, seed=0):
        assert read_network(nas_bench_201_name(dict(cell.options)), BENCH) == cell


EMPTY = "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"
DEAD = "|none~0|+|none~0|nor_conv_1x1~1|+|nor_conv_3x3~0|none~1|none~2|"
ALIVE = "|none~0|+|none~0|none~1|+|nor_conv_3x3~0|none~1|none~2|"


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("missing.json", "'missing.json' is neither a file nor a network"),
        ("x" * 5000, "is neither a file nor a network"),
        ("Genotype(normal=[])", "not a genotype"),
        ('{"normal_concat": 1}', "not a genotype"),
        ("{", "not an architecture"),
        ("|conv~0|", "names no network of space 'nas-bench-201'"),
        (f"{ALIVE}|", "names no network"),
        (nas_bench_201_name(dict.fromkeys(BENCH.choice_names, "conv")), "choice 'edge01' has no option 'conv'"),
        (str(DARTS_V2), "space 'nas-bench-201' has no choice 'normal_edge02'"),
        (DARTS_V2.architecture(CELLS).to_json(), "of space 'darts-cell' given to space 'nas-bench-201'"),
        (EMPTY, "in that network no image reaches the output"),
        (DEAD, f"parts of that network change nothing.*{re.escape(ALIVE)}"),
    ],
    ids=range(12),
)
def test_what_is_no_network_of_the_space_is_refused(written: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ArchitectureError, match=message):
        read_network(written, BENCH)
    (tmp_path / "network").write_text(written)
    in_file = message.replace("neither a file nor a network", "no network")
    with pytest.raises(ArchitectureError, match=f"{tmp_path / 'network'}: .*{in_file}"):
        read_network(str(tmp_path / "network"), BENCH)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "network").write_bytes(b"\xff")
    with pytest.raises(ArchitectureError, match=str(tmp_path / "network")):
        read_network(str(tmp_path / "network"), BENCH)


@pytest.fixture
def adopt(hwnas: Run, small: list[str], table: Path, tmp_path: Path, noise: str) -> Run:
    """Adopts a network into ``tmp_path / "known"``."""
    fixed = [*small, "--table", table, "--data", noise, "--output", tmp_path / "known"]
    return lambda network, *arguments: hwnas("adopt", network, *fixed, *arguments)


def predicted_ms(table: Path, network: Architecture) -> float:
    return LatencyModel.from_table(SMALL, LatencyTable.load(table)).exact_ms(network)


def test_a_given_network_is_predicted_and_measured(adopt: Run, table: Path, tmp_path: Path) -> None:
    network, run = GIVEN, tmp_path / "known"
    (tmp_path / "given.json").write_text(network.to_json())
    said, ms = adopt(tmp_path / "given.json").done(), predicted_ms(table, network)
    derivation = json.loads((run / "derivation.json").read_text())
    (only,) = derivation["rounds"]
    assert f"predicted {ms:.4g} ms, measured" in said
    assert RunFolder.open(run).architecture() == network
    assert only["predicted_ms"] == pytest.approx(ms)
    assert only["measured_ms"] == pytest.approx(ms, rel=0.2)


def test_it_is_trained_exported_verified_and_reported(hwnas: Run, small: list[str], noise: str, tmp_path: Path) -> None:
    run, slow = tmp_path / "known", Measurement(5.0, 5.0, 5.0, 0.01, 100)  # than which any machine is faster
    here = create_profiler("onnxruntime").environment()
    table = LatencyTable(here, dict.fromkeys(SMALL.signatures(), slow)).save(tmp_path / "here.csv")
    hwnas("adopt", GIVEN.to_json(), *small, "--table", table.path, "--data", noise, "--output", run).done()
    hwnas("train", run, "--epochs", 1, "--batch-size", 16).done()
    hwnas("export", run).done()
    hwnas("verify", run, "--images", 8).done()
    hwnas("report", run).done()
    shown = (run / "report.html").read_text()
    assert "measured with the exported network" in shown
    speaks_of_no_search(shown)


def slower(factor: float) -> Callable[..., Timed]:
    """A device on which networks take that much longer than the table says."""

    def measure(self: Device, network: Network, space: Any, **_: Any) -> Timed:
        ms = factor * LatencyModel.from_table(space, self.table).exact_ms(network.architecture)
        return Timed([[ms] * 10] * 3)

    return measure


@pytest.mark.parametrize("factor", [0.8, 1.5])
def test_without_a_limit_none_is_missed(
    adopt: Run, table: Path, tmp_path: Path, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Device, "measure", slower(factor))
    adopt(GIVEN.to_json()).done()
    derivation = json.loads((tmp_path / "known" / "derivation.json").read_text())
    assert derivation["target_ms"] == pytest.approx(1.05 * max(factor, 1) * predicted_ms(table, GIVEN), rel=1e-3)
    assert derivation["rounds"][0]["limit_ms"] == derivation["target_ms"]
    assert derivation["met"]


def test_a_limit_that_the_network_misses_is_an_error_and_the_run_is_kept(
    adopt: Run, hwnas: Run, small: list[str], table: Path, tmp_path: Path
) -> None:
    slow = max(SMALL.distinct(9, seed=0), key=lambda network: predicted_ms(table, network))
    ended = adopt(slow.to_json(), "--max-ms", 0.7 * predicted_ms(table, slow))
    ended.failed(1, "the network does not keep the limit", tmp_path / "known")
    run = RunFolder.open(tmp_path / "known")
    assert not json.loads(run.file("derivation.json").read_text())["met"]
    assert run.architecture() == slow
    with pytest.raises(RunError, match="was given, not searched"):
        tighten_run(run, 1.0)
    search = ["search", *small, "--table", table, "--epochs", 1]
    hwnas(*search, "--output", tmp_path / "new", "--weights-from", run.path).failed(1, "has no supernet", run.path)
    hwnas(*search, "--output", run.path, "--resume").failed(1, "holds a run whose network was given")


def test_elsewhere_nothing_is_measured(adopt: Run, table: Path, tmp_path: Path) -> None:
    sidecar = json.loads(table.with_suffix(".json").read_text())
    sidecar["environment"]["device"] = "another"
    table.with_suffix(".json").write_text(json.dumps(sidecar))
    adopt(GIVEN.to_json()).failed(1, "another")
    assert not (tmp_path / "known").exists()
    assert "not measured, target met" in adopt(GIVEN.to_json(), "--other-device").done()
    speaks_of_no_search(page(collect(RunFolder.open(tmp_path / "known"))))


def test_a_folder_holds_one_run(adopt: Run, hwnas: Run, small: list[str], table: Path, run: Path, noise: str) -> None:
    adopt(GIVEN.to_json()).done()
    adopt(GIVEN.to_json()).failed(1, "holds a run whose network was given", "Choose another output")
    into_searched = hwnas("adopt", GIVEN.to_json(), *small, "--table", table, "--data", noise, "--output", run)
    into_searched.failed(1, "holds a run whose network was searched")


def test_one_process_adopts(adopt: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    adopt(GIVEN.to_json()).failed(2, "without torchrun")
    assert not (tmp_path / "known").exists()


def speaks_of_no_search(shown: str) -> None:
    text = re.sub("<style.*?</style>|<[^>]*>", " ", shown, flags=re.DOTALL).replace("hwnas.search", "")
    words = re.findall(r"\S*(?:search|Search|deriv|Deriv|inherit|Candidate|recipe)\S*", text)
    assert not words


def test_its_report_speaks_of_no_search_and_tells_the_command(adopt: Run, hwnas: Run, tmp_path: Path) -> None:
    adopt(GIVEN.to_json(), "--max-ms", 100, "--seed", 5).done()
    run = RunFolder.open(tmp_path / "known")
    document = collect(run)
    shown = page(document)
    assert "This one was given, and no other tried." in shown
    speaks_of_no_search(shown)
    assert "search" not in document["commands"]
    words = shlex.split(document["commands"]["adopt"])
    words[words.index("--output") + 1] = str(tmp_path / "again")
    hwnas(*words[1:]).done()
    assert RunFolder.open(tmp_path / "again").config == run.config
