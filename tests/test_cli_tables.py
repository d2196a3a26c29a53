"""The command line and latency tables: damaged, incomplete, of another device, in another unit."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hwnas.space import create_space

Run = Callable[..., Any]
MS, STATUS = 1, 6  # columns


def rows_of(table: Path) -> list[list[str]]:
    """Header and rows."""
    return list(csv.reader(io.StringIO(table.read_text())))


def write_rows(table: Path, rows: list[list[str]]) -> None:
    """Replaces header and rows; the sidecar is left as it is."""
    with table.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def edit_sidecar(table: Path, **entries: Any) -> None:
    """Changes top-level entries of the sidecar."""
    sidecar = table.with_suffix(".json")
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | entries))


def seal(table: Path) -> None:
    """Makes the sidecar agree with the rows, as someone would who edits a table on purpose."""
    sha256 = hashlib.sha256(table.read_bytes()).hexdigest()
    edit_sidecar(table, sha256=sha256, num_rows=len(rows_of(table)) - 1)


def set_device(table: Path, device: str) -> None:
    """Makes the table one of another device."""
    environment = json.loads(table.with_suffix(".json").read_text())["environment"]
    edit_sidecar(table, environment=environment | {"device": device})


@pytest.fixture
def refused(hwnas: Run, small: list[str], table: Path, tmp_path: Path) -> Callable[..., None]:
    """Asserts that every command that reads the table refuses it with this message and changes nothing."""

    def check(*parts: object) -> None:
        before = {file: file.read_bytes() for file in tmp_path.glob("formula.*")}
        hwnas("table", "check", table).failed(1, *parts)
        hwnas("search", *small, "--table", table, "--output", tmp_path / "run").failed(1, *parts)
        hwnas("profile", *small, "--profiler", "analytic", "--output", table).failed(1, *parts)
        assert {file: file.read_bytes() for file in tmp_path.glob("formula.*")} == before
        assert not (tmp_path / "run").exists()

    return check


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (MS, "nan", "ms is nan; expected a positive, finite number"),
        (MS, "inf", "ms is inf; expected a positive"),
        (MS, "-0.5", "ms is -0.5; expected a positive"),
        (MS, "0", "ms is 0; expected a positive"),
        (MS + 1, "0.0", "p50_ms is 0.0; expected a positive"),
        (MS + 3, "-1", "spread is -1; expected a positive"),
        (MS, "fast", "ms is 'fast', not a number"),
        (MS, "0,5", "ms is '0,5', not a number (decimal point, no unit)"),
        (MS, "0.5 ms", "ms is '0.5 ms', not a number (decimal point, no unit)"),
        (MS, "", "ms is '', not a number"),
        (5, "many", "num_samples is 'many', not a count"),
        (STATUS, "fine", "status is 'fine'; expected ok, unstable or failed"),
        (0, "mbconv", "'mbconv' is not an operator signature; expected for example"),
        (0, "conv k03 s2 3x16x16 -> 8x8x8", "'conv k03 s2 3x16x16 -> 8x8x8' is not in canonical form; write"),
    ],
)
def test_wrong_value(refused: Run, table: Path, column: int, value: str, message: str) -> None:
    rows = rows_of(table)
    rows[4][column] = value
    write_rows(table, rows)
    refused(f"{table}:5: {message}")


def test_decimal_comma_outside_quotes(refused: Run, table: Path) -> None:
    lines = table.read_text().splitlines(keepends=True)
    lines[4] = lines[4].replace(",0.", ",0,", 1)
    table.write_text("".join(lines))
    refused(f"{table}:5: 9 fields where 8 were expected")


def test_rows_cut_in_the_middle(refused: Run, table: Path) -> None:
    text = table.read_bytes()
    num_lines = text.count(b"\n")
    table.write_bytes(text[:-20])
    refused(f"{table}:{num_lines}: ", "fields where 8 were expected; the row is truncated or torn")


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_no_cut_goes_unnoticed(hwnas: Run, table: Path, cut: int) -> None:
    table.write_bytes(table.read_bytes()[:-cut])
    hwnas("table", "check", table).failed(1, str(table))


def test_last_row_removed(refused: Run, table: Path) -> None:
    rows = rows_of(table)
    write_rows(table, rows[:-1])
    refused(f"{table}:{len(rows) - 1}: {len(rows) - 2} rows, but the sidecar says {len(rows) - 1}", "truncated")


def test_all_rows_removed(refused: Run, table: Path) -> None:
    write_rows(table, rows_of(table)[:1])
    refused(f"{table}:1: the table has no rows")


def test_rows_reordered(refused: Run, table: Path) -> None:
    rows = rows_of(table)
    rows[3], rows[4] = rows[4], rows[3]
    write_rows(table, rows)
    refused(f"{table}:5: rows are out of order; they are sorted by signature")


def test_row_duplicated(refused: Run, table: Path) -> None:
    rows = rows_of(table)
    write_rows(table, rows[:4] + rows[3:])
    refused(f"{table}:5: '{rows[3][0]}' stands twice")


def test_columns_reordered(refused: Run, table: Path) -> None:
    write_rows(table, [[row[0], row[2], row[1], *row[3:]] for row in rows_of(table)])
    refused(f"{table}:1: the columns must be signature, ms, p50_ms")


def test_values_edited(refused: Run, table: Path) -> None:
    rows = rows_of(table)
    rows[4][MS] = "0.5"  # a valid row, but not the one that was measured
    write_rows(table, rows)
    refused(f"{table}: the rows are not those that formula.json describes (hash differs)")


def test_quote_that_never_ends(refused: Run, table: Path) -> None:
    lines = table.read_text().splitlines(keepends=True)
    lines[4] = '"' + lines[4]
    # more than the 131072 characters that the csv module takes for one field
    table.write_text("".join(lines) + "x" * 140_000)
    refused(f"{table}:{len(lines) + 1}: cannot be read as CSV")


def test_not_text(refused: Run, table: Path) -> None:
    table.write_bytes(b"\xff\xfe" + table.read_bytes())
    refused(f"{table}: cannot be read")


def test_rows_missing(refused: Run, table: Path) -> None:
    table.unlink()
    refused(f"{table}: cannot be read", "No such file")


def test_sidecar_missing(refused: Run, table: Path) -> None:
    table.with_suffix(".json").unlink()
    refused(f"{table.with_suffix('.json')} does not exist", "a .csv with a .json of the same name beside it")


def test_sidecar_that_is_not_json(refused: Run, table: Path) -> None:
    sidecar = table.with_suffix(".json")
    sidecar.write_text(sidecar.read_text()[:100])
    refused(f"{sidecar} cannot be read as JSON", "a .csv with a .json of the same name beside it")


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": "else"}'])
def test_sidecar_of_something_else(refused: Run, table: Path, content: str) -> None:
    table.with_suffix(".json").write_text(content)
    refused(f"{table.with_suffix('.json')}: not the sidecar of a latency table")


@pytest.mark.parametrize("key", ["format_version", "signature_version"])
def test_sidecar_of_another_version(refused: Run, table: Path, key: str) -> None:
    edit_sidecar(table, **{key: 99})
    refused(f"{table.with_suffix('.json')}: format version", "99", "this hwnas reads (1, 1)")


def test_sidecar_without_environment(refused: Run, table: Path) -> None:
    sidecar = json.loads(table.with_suffix(".json").read_text())
    del sidecar["environment"]["device"]
    table.with_suffix(".json").write_text(json.dumps(sidecar))
    refused(f"{table.with_suffix('.json')}: environment lacks 'device'")
    del sidecar["environment"]
    table.with_suffix(".json").write_text(json.dumps(sidecar))
    refused(f"{table.with_suffix('.json')}: it lacks 'environment'")


def test_seconds_are_not_taken_for_milliseconds(refused: Run, table: Path) -> None:
    rows = rows_of(table)
    write_rows(table, [rows[0], *([row[0], *(repr(float(v) / 1000) for v in row[1:4]), *row[4:]] for row in rows[1:])])
    seal(table)
    refused(
        f"{table}: {len(rows) - 1} of {len(rows) - 1} latencies are faster than any device (first: {rows[1][0]}",
        "Are they in seconds? Expected milliseconds; multiply them by 1000.",
    )


def test_a_failed_row_is_no_number(hwnas: Run, small: list[str], table: Path, tmp_path: Path) -> None:
    rows = rows_of(table)
    rows[4][STATUS:] = ["failed", "out of memory"]  # its numbers stay, and must not be used
    write_rows(table, rows)
    seal(table)
    assert "26 operators (25 ok, 0 unstable, 1 failed)" in hwnas("table", "check", table).done()
    ended = hwnas("search", *small, "--table", table, "--output", tmp_path / "run")
    ended.failed(1, "latency table formula.csv lacks 1 of 26 signatures", f"(first: {rows[4][0]})")
    assert not (tmp_path / "run").exists()


def test_missing_signatures_and_the_command_that_adds_them(hwnas: Run, small: list[str], tmp_path: Path) -> None:
    table, larger = tmp_path / "my tables" / "t.csv", [*small, "--resolution", "24"]
    few = ["--networks", 3, "--rounds", 2]
    hwnas("profile", *small, "--profiler", "analytic", "--batch", 2, *few, "--output", table).done()
    before = rows_of(table)

    old, new = (create_space("tiny-mbconv", resolution=r, width=0.25).signatures() for r in (16, 24))
    lacking = [s for s in new if s not in old]
    search = ["search", *larger, "--table", table, "--epochs", 1, "--output", tmp_path / "run"]
    ended = hwnas(*search)
    ended.failed(1, f"table t.csv lacks {len(lacking)} of {len(new)} signatures of space", f"(first: {lacking[0]})")
    command = re.search(r"Run 'hwnas (.*)' to add them\.", ended.err)
    assert command is not None
    assert not (tmp_path / "run").exists()

    hwnas(*shlex.split(command[1]), *few).done()
    after = rows_of(table)
    assert all(row in after for row in before), "what was measured is kept"
    assert len(after) == len(before) + len(lacking)
    assert "target met" in hwnas(*search).done()


def test_table_of_another_device(hwnas: Run, small: list[str], table: Path, tmp_path: Path) -> None:
    set_device(table, "another")
    before = {file: file.read_bytes() for file in tmp_path.glob("formula.*")}
    differs = ("formula.csv is from another environment", "device is 'formula' here and 'another' there")
    search = ["search", *small, "--table", table, "--epochs", 1, "--output", tmp_path / "run"]
    hwnas(*search).failed(1, *differs, "pass --other-device")
    assert not (tmp_path / "run").exists()
    hwnas("profile", *small, "--profiler", "analytic", "--output", table).failed(1, *differs)
    assert {file: file.read_bytes() for file in tmp_path.glob("formula.*")} == before

    assert "not measured, target met" in hwnas(*search, "--other-device").done()
    derivation = json.loads((tmp_path / "run" / "derivation.json").read_text())
    assert [each["measured_ms"] for each in derivation["rounds"]] == [None]


@pytest.mark.parametrize(
    ("arguments", "difference"),
    [
        (["--threads", 2], "threads is '2' here and '1' there"),
        (["--batch", 4], "batch is '4' here and '1' there"),
        (["--device", "other"], "device is 'other' here and 'formula' there"),
    ],
)
def test_a_table_is_not_extended_under_other_conditions(
    hwnas: Run, small: list[str], table: Path, arguments: list[Any], difference: str
) -> None:
    before = table.read_bytes()
    ended = hwnas("profile", *small, "--profiler", "analytic", *arguments, "--output", table)
    ended.failed(1, difference)
    assert table.read_bytes() == before


def test_table_of_a_runtime_that_is_not_here(hwnas: Run, small: list[str], table: Path, tmp_path: Path) -> None:
    environment = json.loads(table.with_suffix(".json").read_text())["environment"]
    edit_sidecar(table, environment=environment | {"runtime": "analytik"})
    ended = hwnas("search", *small, "--table", table, "--output", tmp_path / "run")
    ended.failed(1, "cannot be measured here", "unknown profiler 'analytik'", "search with --other-device")


def test_table_check(hwnas: Run, small: list[str], table: Path) -> None:
    out = hwnas("table", "check", table, *small).done()
    assert "26 operators (26 ok, 0 unstable, 0 failed)" in out
    assert "formula, analytic 1.0, fp32, batch 1, 1 thread" in out
    assert "held-out error of the table: MAPE" in out
    assert "reachable: " in out
    ended = hwnas("table", "check", table, *small, "--num-classes", 3)
    ended.failed(1, "lacks 1 of 26 signatures", "classifier", "--num-classes 3 --width 0.25 --profiler analytic")
