"""Tables as artefacts: shown, drawn, compared and merged."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwnas.errors import EnvironmentMismatchError, UsageError
from hwnas.latency.comparison import Comparison
from hwnas.latency.drawing import draw_table
from hwnas.latency.listing import listing
from hwnas.latency.measurement import Measurement, failure
from hwnas.latency.merging import merge
from hwnas.latency.model import LatencyModel
from hwnas.latency.table import LatencyTable
from hwnas.space import OpSignature, create_space
from hwnas.testing.toys import AnalyticProfiler, toy_space, toy_table

Run = Callable[..., Any]


def measured(ms: float, *, status: str = "ok") -> Measurement:
    """A measurement of 1 % spread."""
    return Measurement(ms, 1.1 * ms, 1.2 * ms, 0.01, 10, status)


def convs(*latencies: float) -> dict[OpSignature, Measurement]:
    """Convolutions of 1, 2, 3 ... output channels."""
    return {OpSignature.create("conv", (3, 8, 8), i, k=3): measured(ms) for i, ms in enumerate(latencies, start=1)}


def table_of(entries: Mapping[OpSignature, Measurement], *, device: str = "formula", **rest: Any) -> LatencyTable:
    """A table of the analytic device."""
    return LatencyTable(AnalyticProfiler(device=device).environment(), entries, **rest)


def test_show(hwnas: Run, small: list[str], table: Path) -> None:
    out = hwnas("table", "show", table).done()
    assert "26 operators (26 ok, 0 unstable, 0 failed)" in out
    assert "formula, analytic 1.0, fp32, batch 1, 1 thread, formula" in out
    assert "command: hwnas profile" in out
    assert "networks of space 'tiny-mbconv'" in out
    assert "held-out error of the table: MAPE" in out
    for signature in create_space("tiny-mbconv", resolution=16, width=0.25).signatures():
        shapes = str(signature).split(f" s{signature.stride} ")[1]
        assert f"{signature.op} s{signature.stride} {shapes}\n" in out
    assert "\x1b" not in out, "plain where there is no terminal"
    assert "not shown" not in out

    out = hwnas("table", "show", table, "--limit", 3).done()
    assert "23 faster operators are not shown" in out


def test_show_says_what_a_space_lacks(hwnas: Run, table: Path) -> None:
    larger = create_space("tiny-mbconv", resolution=24, width=0.25)
    lacking = LatencyTable.load(table).missing(larger.signatures())
    arguments = ["--space", "tiny-mbconv", "--resolution", 24, "--width", 0.25]
    out = hwnas("table", "show", table, *arguments).done()
    num = len(larger.signatures())
    assert f"covers {num - len(lacking)} of {num} operators of space 'tiny-mbconv', lacks {len(lacking)}" in out
    assert str(lacking[0]) in out


@pytest.mark.parametrize("change", [{"name": "no-such-space"}, {"options": {"resolution": 32}}])
def test_show_with_networks_of_an_unknown_space(hwnas: Run, table: Path, change: dict[str, Any]) -> None:
    sidecar = json.loads(table.with_suffix(".json").read_text())
    for record in sidecar["calibrations"].values():
        record["space"] |= change
    table.with_suffix(".json").write_text(json.dumps(sidecar))
    name = change.get("name", "tiny-mbconv")
    assert f"networks of space '{name}', which is not one of this hwnas" in hwnas("table", "show", table).done()


def test_rows_are_grouped_sorted_and_in_proportion() -> None:
    entries = {
        OpSignature.parse("conv k3 s1 3x8x8 -> 8x8x8"): measured(1.0),
        OpSignature.parse("conv k5 s1 3x8x8 -> 8x8x8"): measured(4.0, status="unstable"),
        OpSignature.parse("skip s1 8x8x8 -> 8x8x8"): replace(measured(3.0), num_samples=0),
    }
    lines = listing(table_of(entries), limit=10, width=80)
    headings = [line for line in lines[1:] if not line.startswith(" ")]
    assert headings == ["conv s1 3x8x8 -> 8x8x8", "skip s1 8x8x8 -> 8x8x8"], "the slowest group first"
    rows = [line for line in lines[1:] if line.startswith(" ")]
    assert [row.split()[0] for row in rows[:2]] == ["k5", "k3"], "the slowest first"
    widths = [row.count("█") for row in rows]
    assert widths == pytest.approx([widths[0], widths[0] / 4, widths[0] * 3 / 4], abs=1)
    # 4, 1 and 3 of 8 ms in all
    assert [row.split()[-1] for row in rows] == ["50.00%", "12.50%", "37.50%"]
    assert "1.0% unstable" in rows[0]
    assert rows[2].split()[-2] == "-", "nobody counted the runs"


@pytest.mark.parametrize("num_rows", [1, 5, 36_000])
@pytest.mark.parametrize("width", [80, 200])
def test_lines_fit_at_any_size(num_rows: int, width: int) -> None:
    lines = listing(table_of(convs(*np.linspace(0.01, 9, num_rows))), limit=40, width=width)
    assert max(map(len, lines)) <= width
    # a heading and a row for each that is shown, the titles of the columns, and what was left out
    assert len(lines) == 1 + 2 * min(num_rows, 40) + (num_rows > 40)
    if num_rows > 40:
        assert lines[-1].startswith("35,960 faster operators are not shown")


def test_failures_are_shown_as_failures() -> None:
    entries = convs(1.0, 2.0) | {s: failure("out of memory") for s in list(convs(*8 * [1.0]))[2:]}
    lines = listing(table_of(entries), limit=1, width=80)
    assert sum("out of memory" in line for line in lines) == 5
    assert lines[-1] == "and 1 more that failed"
    assert "1 faster operators are not shown" in lines[-7]
    only_failed = table_of({s: failure("no driver") for s in convs(1.0)})
    assert listing(only_failed, limit=1, width=80) == ["failed: conv k3 s1 3x8x8 -> 1x8x8: no driver"]


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height, from the header of a PNG."""
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def test_pictures(hwnas: Run, table: Path, tmp_path: Path) -> None:
    out = hwnas("table", "show", table, "--png", tmp_path / "t.png").done()
    assert f"wrote {tmp_path / 't.png'}" in out
    hwnas("table", "compare", table, table, "--png", tmp_path / "c.png").done()
    plain = toy_table(toy_space())
    draw_table(plain, [], tmp_path / "plain.png")
    # two panels, for there are networks; and one
    assert picture_size(tmp_path / "t.png")[0] > 1.5 * picture_size(tmp_path / "plain.png")[0]
    assert picture_size(tmp_path / "c.png")[0] == picture_size(tmp_path / "t.png")[0]
    with pytest.raises(UsageError, match=r"t\.pdf' is not a picture; expected a name that ends in \.png"):
        draw_table(plain, [], tmp_path / "t.pdf")
    assert not (tmp_path / "t.pdf").exists()


def test_pictures_of_unusual_tables(tmp_path: Path) -> None:
    unknown = {OpSignature.create(f"kind{i}", (3, 8, 8), 8): measured(1.0 + i) for i in range(9)}
    skips = {OpSignature.create("skip", (c, 8, 8), c): measured(1.0) for c in (3, 4)}
    tables = {
        "unknown operators": table_of(unknown),
        "some unknown": table_of(unknown | convs(1.0)),
        "no multiply-adds at all": table_of(skips),
        "failures": table_of(convs(1.0, 2.0) | {s: failure("no") for s in unknown}),
        "many": table_of(convs(*np.linspace(1, 2, 1500)), device="a very long name " * 20),
    }
    pictures = {name: draw_table(each, [], tmp_path / f"{name}.png").read_bytes() for name, each in tables.items()}
    assert len(set(pictures.values())) == len(tables)
    with pytest.raises(UsageError, match="no measured operator to draw"):
        draw_table(table_of({s: failure("no") for s in unknown}), [], tmp_path / "none.png")


def test_picture_of_predictions_follows_the_model(tmp_path: Path) -> None:
    space = toy_space()
    networks = [{"options": [i, j, 0], "ms": 1.0 + i + j} for i in range(3) for j in range(3)]
    record = {"space": space.describe(), "networks": networks}
    table = replace(toy_table(space), calibrations={space.fingerprint: record})
    model = LatencyModel.from_table(space, table)
    good = draw_table(table, [model], tmp_path / "a.png").read_bytes()
    bad = draw_table(table, [replace(model, overhead_ms=5.0)], tmp_path / "b.png").read_bytes()
    assert good != bad


def test_a_device_that_is_twice_as_fast() -> None:
    comparison = Comparison(table_of(convs(1.0, 2.0, 3.0, 4.0)), table_of(convs(2.0, 4.0, 6.0, 8.0), device="other"))
    assert comparison.ratio.tolist() == [0.5] * 4
    assert (comparison.difference, comparison.difference_in_shape, comparison.overall_ratio) == (0.5, 0.0, 0.5)
    assert comparison.rank_correlations() == pytest.approx({"Spearman": 1.0, "Kendall": 1.0})


def test_where_tables_disagree() -> None:
    # ratios 1, 1, 1, 0.5 and 4: median 1; |ratio - 1| is 0, 0, 0, 0.5 and 3: median 0
    comparison = Comparison(table_of(convs(1, 2, 3, 4, 20)), table_of(convs(1, 2, 3, 8, 5)))
    assert [(s.out_shape[0], ratio) for s, ratio in comparison.farthest(2)] == [(5, 4.0), (4, 0.5)]
    assert comparison.difference == 0.0
    assert comparison.quantiles(0, 0.5, 1) == [0.5, 1.0, 4.0]
    # b ranks 1 2 3 5 4 where a ranks 1 2 3 4 5: 1 - 6 * (1 + 1) / (5 * 24) and (9 - 1) / 10
    assert comparison.rank_correlations() == pytest.approx({"Spearman": 0.9, "Kendall": 0.8})


def test_repeatability_is_the_median_entry() -> None:
    # ratios 1.01, 0.98, 1.03, 1.02 and 1.00: distances from 1 are 1, 2, 3, 2, 0 %, so 2 %; the median ratio is 1.01
    a = [1.01, 0.98, 1.03, 1.02, 1.0]
    comparison = Comparison(table_of(convs(*a)), table_of(convs(1, 1, 1, 1, 1)))
    assert comparison.difference == pytest.approx(0.02)
    assert comparison.difference_in_shape == pytest.approx(0.01 / 1.01)
    assert comparison.rank_correlations() == {}, "one of them does not vary"


def test_what_only_one_has() -> None:
    entries = convs(1.0, 2.0, 3.0, 4.0)
    first, second, third, fourth = entries
    a = table_of({first: entries[first], second: entries[second], third: failure("no")})
    b = table_of({first: entries[first], third: entries[third], fourth: failure("no")})
    comparison = Comparison(a, b)
    assert (comparison.signatures, comparison.only_in_a, comparison.only_in_b) == ([first], [second], [third])
    with pytest.raises(UsageError, match="have no measured operator in common"):
        Comparison(table_of({first: entries[first]}), table_of({second: entries[second]}))


def test_compare_on_the_command_line(hwnas: Run, small: list[str], table: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    loaded = LatencyTable.load(table)
    entries = {s: replace(e, ms=2 * e.ms) for s, e in loaded.entries.items()}
    odd, removed, *_ = entries
    entries[odd] = replace(entries[odd], ms=3 * entries[odd].ms)
    del entries[removed]
    LatencyTable(replace(loaded.environment, device="slow", threads=2), entries).save(other)
    out = hwnas("table", "compare", table, other, "--limit", 1).done()
    assert "device is 'formula' in A and 'slow' in B" in out
    assert "threads is '1' in A and '2' in B" in out
    assert f"25 operators in both, 1 only in A (such as {removed})" in out
    assert "median entry differs by 50.00%; by 0.00% after scaling by the median ratio 0.5" in out
    assert "ratio A / B: least 0.1667, 10 % 0.5, median 0.5, 90 % 0.5, largest 0.5" in out
    assert out.splitlines()[-1].split(maxsplit=2)[2] == f"0.333  {odd}"
    hwnas("table", "compare", table, tmp_path / "none.csv").failed(1, "none.json does not exist")


def test_the_best_entry_is_kept() -> None:
    signatures = list(convs(*6 * [1.0]))
    a = [failure("no"), measured(2.0), measured(1.0, status="unstable"), measured(2.0), measured(1.0)]
    b = [measured(9.0), measured(1.5), measured(3.0), failure("no"), replace(measured(1.0), spread=0.0)]
    kept = [b[0], b[1], b[2], a[3], a[4]]  # of equals the first
    tables = [table_of(dict(zip(signatures, entries, strict=False))) for entries in (a, [*b, measured(7.0)])]
    assert list(merge(tables).entries.values()) == [*kept, measured(7.0)]


def test_networks_come_together_once() -> None:
    def record(*networks: tuple[list[int], float]) -> dict[str, Any]:
        return {"space": {"name": "toy"}, "networks": [{"options": o, "ms": ms} for o, ms in networks]}

    a = table_of(convs(1.0), calibrations={"x": record(([0, 1], 5.0), ([1, 1], 6.0)), "y": record(([0], 1.0))})
    b = table_of(convs(1.0), calibrations={"x": record(([1, 1], 5.5), ([0, 0], 7.0)), "z": record(([1], 2.0))})
    merged = merge([a, b])
    assert set(merged.calibrations) == {"x", "y", "z"}
    assert merged.calibrations["x"] == record(([0, 1], 5.0), ([1, 1], 5.5), ([0, 0], 7.0))
    assert [t.calibrations["x"]["networks"][0]["ms"] for t in (a, b)] == [5.0, 5.5], "the tables are as they were"


def test_only_tables_of_one_environment_merge() -> None:
    a, b = table_of(convs(1.0)), table_of(convs(1.0), device="other")
    with pytest.raises(EnvironmentMismatchError, match="device is 'formula' here and 'other' there"):
        merge([a, b])
    with pytest.raises(UsageError, match="at least two tables; got 1"):
        merge([a])


def test_merge_on_the_command_line(hwnas: Run, small: list[str], table: Path, tmp_path: Path) -> None:
    few = ["--profiler", "analytic", "--networks", 3, "--rounds", 2]
    larger, output = tmp_path / "larger.csv", tmp_path / "merged.csv"
    hwnas("profile", *small, "--resolution", 24, *few, "--output", larger).done()
    a, b = LatencyTable.load(table), LatencyTable.load(larger)
    shared = set(a.entries) & set(b.entries)
    out = hwnas("table", "merge", table, larger, "--output", output).done()
    assert f"{len(shared)} operators stood in several tables" in out
    merged = LatencyTable.load(output)
    assert set(merged.entries) == set(a.entries) | set(b.entries)
    assert set(merged.calibrations) == set(a.calibrations) | set(b.calibrations)
    assert [each["table"] for each in merged.provenance["merged"]] == [table.name, larger.name]
    assert [each["date"] for each in merged.provenance["merged"]] == [a.provenance["date"], b.provenance["date"]]
    shown = hwnas("table", "show", output).done()
    assert shown.count("held-out error of the table") == 2
    assert f"merged: table {table.name}" in shown

    before = larger.read_bytes()
    hwnas("table", "merge", table, output, "--output", larger).failed(2, "exists and is not one of the tables to merge")
    assert larger.read_bytes() == before
    hwnas("table", "merge", table, larger, "--output", larger).done()
    assert LatencyTable.load(larger).entries == merged.entries


def test_nothing_is_written_when_merging_fails(hwnas: Run, table: Path, tmp_path: Path) -> None:
    loaded, other = LatencyTable.load(table), tmp_path / "other.csv"
    replace(loaded, environment=replace(loaded.environment, precision="fp16")).save(other)
    before = {file: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
    arguments = ["table", "merge", table, other, "--output"]
    hwnas(*arguments, tmp_path / "m.csv").failed(1, "precision is 'fp32' here and 'fp16' there")
    hwnas(*arguments, other).failed(1, "precision is 'fp32' here and 'fp16' there")
    assert {file: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()} == before
