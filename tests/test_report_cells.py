"""A report on cells: their drawing, their text, and latency cell by cell."""

from __future__ import annotations

import html
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from hwnas.deploy.report.cells import COLUMN, FIRST, cell
from hwnas.deploy.report.data import collect
from hwnas.deploy.report.page import page

from hwnas.compute import Compute
from hwnas.latency.budget import Budget
from hwnas.latency.model import LatencyModel
from hwnas.run import RunFolder, table_hash
from hwnas.search.loop import SearchResult
from hwnas.search.target import DerivationRound
from hwnas.space import create_space
from hwnas.space.genotype import DARTS_V2, Genotype, kept_edges
from hwnas.steps.searching import write_derivation
from hwnas.supernet.gates import one_hot_gates
from hwnas.supernet.supernet import Supernet

SPACE = create_space("darts-cell", channels=4, num_cells=3, resolution=16, num_classes=2)


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a report says of a run that derived the cells of DARTS."""
    folder = tmp_path_factory.mktemp("cells")
    shared = runpy.run_path(str(Path(__file__).with_name("finished_run.py")))
    space = SPACE
    table, data = shared["saved_table"](space, folder), shared["tiny_data"](folder)
    model = LatencyModel.from_table(space, table)
    chosen = DARTS_V2.architecture(space)
    limit = model.exact_ms(chosen) * 1.01
    config = {
        "space": space.describe(), "table": {"path": str(table.path), "sha256": table_hash(table)}, "max_ms": limit,
        "recipe": {"name": "darts", "arguments": {}}, "data": data.spec, "seed": 7, "other_device": False,
        "classes": None,
    }  # fmt: skip
    run = RunFolder.create(folder / "run", config, resume=False)
    rounds = [DerivationRound(chosen, limit, model.exact_ms(chosen), None, met=True)]
    chances = {name: gate.weights for name, gate in one_hot_gates(space, chosen).items()}
    result = SearchResult(Supernet(space), chances, data.train)
    write_derivation(run, Budget(model, limit), rounds, result, data, Compute(device="cpu"))
    return collect(run)


def test_the_cells_are_drawn_and_printed(document: dict[str, Any]) -> None:
    printed, shown = document["cells"]["genotype"], page(document)
    assert Genotype.parse(printed).architecture(SPACE) == DARTS_V2.architecture(SPACE)
    text = html.unescape(re.sub("<[^>]*>", "", shown))
    assert printed.replace(" ", "") in text.replace(" ", "")
    labels = re.findall(r'aria-label="(The \w+ cell[^"]*)"', shown)
    assert [label.split(":")[0] for label in labels] == ["The normal cell", "The reduce cell"]
    assert "node 5 adds dil 3×3 of node 2" in labels[0]
    assert "node 2 adds max 3×3 of the cell before the last" in labels[1]


def test_latency_is_shown_cell_by_cell_and_adds_up(document: dict[str, Any]) -> None:
    parts = [layer["part"] for layer in document["layers"]]
    assert list(dict.fromkeys(parts)) == ["stem", "cell0", "cell1", "cell2", "classifier"]
    shares = [layer["predicted_ms"] for layer in document["layers"]]
    assert sum(shares) + document["overhead_ms"] == pytest.approx(document["latency"]["predicted_ms"])
    label = re.findall(r'aria-label="(Predicted latency by layer[^"]*)"', page(document))[0]
    assert [said.split()[0] for said in label.split(": ")[1].split("; ")] == [*dict.fromkeys(parts), "overhead"]
    table = page(document).split("All layers as a table")[1].split("</table>")[0]
    assert "cell0_edge" in table
    assert table.count("cell0_edge") == 8  # edges of none are not in the network
    assert "_node" not in table
    nothing = sum(layer["predicted_ms"] for layer in document["layers"] if layer["node"])
    said = re.findall(r"Not listed: 15 nodes, .* and 18 edges of none, together ([\d.]+)", page(document))  # 3 cells
    assert float(said[0]) == pytest.approx(nothing, abs=5e-5)  # 4 decimals


def test_every_edge_goes_from_its_source_to_its_target() -> None:
    edges = [
        {"source": 0, "target": 2, "option": "sep_conv_5x5"},
        {"source": 1, "target": 2, "option": "noise"},
        {"source": 2, "target": 4, "option": "skip_connect"},
    ]
    drawing = cell("normal", edges)
    lines = [tuple(map(float, each)) for each in re.findall(r'd="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"', drawing)]
    across = [(round((a - FIRST) / COLUMN), round((c - FIRST) / COLUMN)) for a, b, c, d in lines if b == d]
    assert across == [(0, 2), (1, 2), (2, 4), (2, 4)]  # the last one joins nodes 2 and 4
    assert drawing.count("box k5") == 1
    assert drawing.count('class="skipped"') == 2


def test_cells_that_share_nothing_are_drawn_one_by_one() -> None:
    space = create_space("gold-nas", channels=4, num_cells=3, resolution=16)
    options = {choice.name: "none" for choice in space.choices}
    options |= {
        f"cell1_edge02_{short}": option for short, option in (("skip", "skip_connect"), ("sep3", "sep_conv_3x3"))
    }
    edges = kept_edges(space.architecture(options | {"cell2_edge13_skip": "skip_connect"}))
    assert edges == {"cell1": [(0, 2, "skip_connect"), (0, 2, "sep_conv_3x3")], "cell2": [(1, 3, "skip_connect")]}
    drawing = cell("cell1", [dict(zip(("source", "target", "option"), edge, strict=True)) for edge in edges["cell1"]])
    assert "Cell 1: node 2 adds skip of the cell before the last; node 2 adds sep 3×3 of the cell" in drawing


def test_the_only_cell_of_a_space_has_one_input_and_one_output() -> None:
    space = create_space("nas-bench-201")
    edges = kept_edges(space.architecture([1, 0, 3, 2, 0, 4]))  # 01, 02, 12, 03, 13, 23
    assert edges == {
        "cell": [(0, 1, "skip_connect"), (1, 2, "nor_conv_3x3"), (0, 3, "nor_conv_1x1"), (2, 3, "avg_pool_3x3")]
    }
    drawing = cell("cell", [dict(zip(("source", "target", "option"), edge, strict=True)) for edge in edges["cell"]])
    assert "The cell: node 1 adds skip of the input; node 2 adds conv 3×3 of node 1; node 3 adds conv 1×1" in drawing
    assert ">input<" in drawing
    assert ">output<" in drawing
    assert "joined" not in drawing
    ends = re.findall(r'<circle cx="([\d.]+)" cy="138', drawing)  # below the rows
    assert [float(x) for x in ends] == [FIRST + 3 * COLUMN]


def test_chains_have_no_cells(finished: Path) -> None:
    found = collect(RunFolder.open(finished))
    assert found["cells"] is None
    assert [layer["part"] for layer in found["layers"]] == [layer["name"] for layer in found["layers"]]
