"""Published latency tables: what they say is what is imported, and what is wrong in them is named with its line."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hwnas.latency.foreign import FORMATS
from hwnas.latency.table import LatencyTable
from hwnas.space import OpSignature, create_space

Run = Callable[..., Any]
SHARED = Path(os.environ.get("HWNAS_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture
def published(hwnas: Run, tmp_path: Path) -> Callable[..., LatencyTable]:
    """Imports a published file; skips where it is not here."""

    def load(name: str, file_format: str, *options: object) -> LatencyTable:
        file = SHARED / "latency-tables" / name
        if not file.is_file():
            pytest.skip(f"no {file}; set HWNAS_SHARED_DATA")
        output = tmp_path / "imported.csv"
        arguments = ("--format", file_format, "--device", "somewhere", "--output", output, *options)
        assert str(output) in hwnas("table", "import", file, *arguments).done()
        table = LatencyTable.load(output)
        table.save(tmp_path / "again.csv")
        assert output.read_bytes() == (tmp_path / "again.csv").read_bytes(), "the round trip is exact"
        return table

    return load


@pytest.fixture
def imported(hwnas: Run, tmp_path: Path) -> Callable[..., Any]:
    """Imports a text; returns how the command ended."""

    def run(text: str, file_format: str, *options: object) -> Any:
        file = tmp_path / "foreign.txt"
        file.write_text(text, encoding="utf-8")
        arguments = ("--format", file_format, "--device", "somewhere", "--output", tmp_path / "imported.csv")
        return hwnas("table", "import", file, *arguments, *options)

    return run


@pytest.fixture
def refused(imported: Callable[..., Any], tmp_path: Path) -> Callable[..., None]:
    """Asserts that a text is refused with these words at that line, and that nothing is left behind."""

    def check(text: str, file_format: str, line: int, *parts: str) -> None:
        imported(text, file_format).failed(1, f"{tmp_path / 'foreign.txt'}:{line}: ", *parts, "Nothing was imported.")
        assert not list(tmp_path.glob("*imported*"))

    return check


YAML = """\
Conv-input:224x224x3-output:112x112x32:
  count: 16
  mean: 4.0
  var: 0.25
expanded_conv-input:56x56x24-output:56x56x24-expand:6-kernel:5-stride:1-idskip:1:
  count: 10
  mean: 2.0
  var: 0.0
"""


SUMS = {"k3_e3": 72.462422, "k5_e3": 85.278567, "k7_e3": 102.597366, "k3_e6": 126.765646, "k5_e6": 149.298217,
        "k7_e6": 180.975184}  # fmt: skip
"""All layers alike, milliseconds, as the documentation of the data states them."""

SHALLOW_SUMS = {"k3_e3": 32.708466, "k7_e6": 60.940003}
"""One layer a stage; what is skipped counts nothing."""


def test_proxylessnas_sums(published: Callable[..., LatencyTable]) -> None:
    table, space = published("proxyless_pixel1.yaml", "proxylessnas"), create_space("proxylessnas")

    def total(options: dict[str, str]) -> float:
        operators = space.operators(space.architecture(options))
        return math.fsum(table.entries[s].ms for s in operators if s.op != "skip")

    for block, expected_ms in SUMS.items():
        assert total({c.name: block for c in space.choices}) == pytest.approx(expected_ms, abs=1e-6), block
    for block, expected_ms in SHALLOW_SUMS.items():
        shallow = {c.name: "skip" if "skip" in c.options else block for c in space.choices}
        assert total(shallow) == pytest.approx(expected_ms, abs=1e-6), block


def test_proxylessnas_covers_its_space_but_for_skip(published: Callable[..., LatencyTable]) -> None:
    table = published("proxyless_pixel1.yaml", "proxylessnas")
    assert len(table.entries) == 72
    lacking = table.missing(create_space("proxylessnas").signatures())
    assert {s.op for s in lacking} == {"skip"}, "what the file does not hold stays missing"
    # the kernels 5 and 7 of the first block are in the file and in no network of the space
    assert len(set(table.entries) - set(create_space("proxylessnas").signatures())) == 2


def test_what_a_block_becomes(imported: Callable[..., Any], tmp_path: Path) -> None:
    imported("# a comment\n\n" + YAML, "proxylessnas", "--runtime", "tflite", "--threads", 1).done()
    table = LatencyTable.load(tmp_path / "imported.csv")
    conv, block = (
        table.entries[OpSignature.parse(text)]
        for text in ("conv k3 s2 3x224x224 -> 32x112x112", "mbconv k5 e6 r1 s1 24x56x56 -> 24x56x56")
    )
    # standard error: sqrt(0.25) / sqrt(16) = 0.125, and 0.125 / 4 = 0.03125
    assert (conv.ms, conv.p50_ms, conv.p90_ms, conv.spread, conv.num_samples) == (4.0, 4.0, 4.0, 0.03125, 16)
    assert (block.ms, block.spread, block.status) == (2.0, 0.0, "ok")
    assert (table.environment.device, table.environment.runtime, table.environment.threads) == (
        "somewhere",
        "tflite",
        1,
    )
    assert table.environment.mode == "imported"
    origin = table.provenance["imported"]
    assert (origin["file"], origin["format"], origin["unit"]) == ("foreign.txt", "proxylessnas", "ms")


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("mean: 4.0", "mean: 4,0", 3, "mean is '4,0' with a decimal comma; expected a number with a decimal point"),
        ("mean: 4.0", "mean: 4.0 ms", 3, "mean is '4.0 ms'; expected a number"),
        ("mean: 4.0", "mean: -4.0", 3, "mean is -4.0; a latency is greater than zero"),
        ("mean: 4.0", "mean: 0", 3, "mean is 0; a latency is greater than zero"),
        ("mean: 4.0", "mean: nan", 3, "mean is nan; expected a finite number"),
        ("var: 0.25", "var: -0.25", 4, "var is -0.25; expected zero or more"),
        ("count: 16", "count: 1.5", 2, "count is '1.5'; expected a whole number"),
        ("count: 16", "count: 0", 2, "count is '0'; expected a whole number of at least 1"),
        ("  count: 16\n", "", 1, "has no count; expected count, mean, var"),
        ("  count: 16", "  count: 16\n  count: 17", 3, "count stands twice under 'Conv-input"),
        ("  count: 16", "  median: 16", 2, "'median: 16' is no field of an operator"),
        ("112x112x32:", "112x112x32", 1, "is neither a key that ends in ':' nor an indented field"),
        ("112x112x32:", "112x111x32:", 1, "stride 2 does not lead from 3x224x224 to 32x112x111"),
        ("Conv-", "Pool-", 1, "'Pool-input:224x224x3-output:112x112x32' is no operator of this format"),
        ("output:56x56x24", "output:56x56x40", 5, "adds its input to an output of another shape"),
        ("stride:1", "stride:2", 5, "stride 2 does not lead from 24x56x56 to 24x56x56"),
        ("stride:1", "stride:0", 5, "stride 0 does not lead"),
        ("idskip:1:", "idskip:2:", 5, "is no operator of this format"),
    ],
)
def test_malformed_yaml(refused: Callable[..., None], old: str, new: str, line: int, message: str) -> None:
    assert old in YAML
    refused(YAML.replace(old, new, 1), "proxylessnas", line, message)


def test_yaml_operator_twice(refused: Callable[..., None]) -> None:
    refused(YAML + YAML, "proxylessnas", 9, "'conv k3 s2 3x224x224 -> 32x112x112' stands twice")


TFNAS = """{
"base": 2.5,
"MBInvertedResBlock_56_24_48_40_k5_s2_swish": {"1": -0.5, "2": 0.5, "3": 0.0}
}"""


def test_tf_nas(published: Callable[..., LatencyTable]) -> None:
    name, num_impossible = "tfnas_gpu.json", 88
    table = published(name, "tf-nas", "--batch", 32)
    document = json.loads((SHARED / "latency-tables" / name).read_text())
    base = document.pop("base")
    latencies = [ms for block in document.values() for ms in block.values()]
    assert len(table.entries) == len(latencies) + 1 == 36_481
    assert sum(ms <= 0 for ms in latencies) == num_impossible
    assert sum(not entry.usable for entry in table.entries.values()) == num_impossible
    total = math.fsum(entry.ms for entry in table.entries.values() if entry.usable)
    assert total == pytest.approx(base + math.fsum(ms for ms in latencies if ms > 0), rel=1e-12)


def test_what_a_tf_nas_entry_becomes(imported: Callable[..., Any], tmp_path: Path) -> None:
    imported(TFNAS, "tf-nas").done()
    entries = {str(s): entry for s, entry in LatencyTable.load(tmp_path / "imported.csv").entries.items()}
    block = "tfnas_mbconv k5 act=swish h{} se48 s2 24x56x56 -> 40x28x28"
    assert entries["tfnas_base s32 3x224x224 -> 1000x1x1"].ms == 2.5
    assert (entries[block.format(2)].ms, entries[block.format(2)].num_samples) == (0.5, 0)
    for width, text in ((1, "-0.5"), (3, "0.0")):
        assert entries[block.format(width)].status == "failed"
        assert entries[block.format(width)].error == f"the file says {text} ms, which is extrapolated"


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("2.5", "0", 2, "base is 0; a latency is greater than zero"),
        ("2.5", "NaN", 2, "base is NaN; expected a finite number"),
        ("2.5", '"2,5"', 2, "base is '2,5' with a decimal comma"),
        ("2.5", "null", 2, "base is 'None'; expected a number"),
        ("0.5}", "0.5", 3, "with 1 expanded channels is '[]'"),
        ('"2": 0.5', '"two": 0.5', 3, "a width of 'MBInvertedResBlock_56_24_48_40_k5_s2_swish' is 'two'"),
        ('"2": 0.5', '"1": 0.5', 3, "'tfnas_mbconv k5 act=swish h1 se48 s2 24x56x56 -> 40x28x28' stands twice"),
        ("k5_s2", "k5_s3", 3, "is no block of this format"),
        ('"base": 2.5,', '"base": 2.5', 3, "not JSON (Expecting ',' delimiter, column 1)"),
    ],
)
def test_malformed_tf_nas(refused: Callable[..., None], old: str, new: str, line: int, message: str) -> None:
    text = TFNAS.replace('"1": -0.5', '"1": []') if "[]" in message else TFNAS.replace(old, new, 1)
    refused(text, "tf-nas", line, message)


def test_nn_meter(published: Callable[..., LatencyTable]) -> None:
    table = published("nnmeter_pixel6_blocks.json", "nn-meter")
    document = json.loads((SHARED / "latency-tables" / "nnmeter_pixel6_blocks.json").read_text())
    assert len(table.entries) == len(document) == 12_116
    assert math.fsum(e.ms for e in table.entries.values()) == pytest.approx(math.fsum(document.values()), rel=1e-12)
    named = {
        "firstconv_224_3_16_2_3": "nnmeter_firstconv k3 s2 3x224x224 -> 16x112x112",
        "conv_44_16_16_3_2_hard_swish_3_se": "nnmeter_conv k3 e3 act=hard_swish se=se s2 16x44x44 -> 16x22x22",
        "transds_16_16_48_2_4": "nnmeter_transds e4 s2 16x16x16 -> 48x8x8",
        "transattn_16_48_hard_swish_2_ln": "nnmeter_transattn act=hard_swish norm=ln v2 s1 48x16x16 -> 48x16x16",
        "transffn_16_48_2_hard_swish_ln": "nnmeter_transffn e2 act=hard_swish norm=ln s1 48x16x16 -> 48x16x16",
        "mbpool_2_160_1984_6_hard_swish": "nnmeter_mbpool e6 act=hard_swish s2 160x2x2 -> 1984x1x1",
    }
    for key, text in named.items():
        assert table.entries[OpSignature.parse(text)].ms == document[key], key


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ('{"firstconv_8_3_4_2_3": 1,\n"firstconv_8_3_4_2_3": 2}', 2, "'nnmeter_firstconv k3 s2 3x8x8 -> 4x4x4' stands"),
        ('{\n"firstconv_8_3_4_2_3": -1}', 2, "'firstconv_8_3_4_2_3' is -1; a latency is greater than zero"),
        ('{\n"firstconv_8_3_4_0_3": 1}', 2, "stride 0 does not lead"),
        ('{\n\n"lastconv_8_3_4_2_3": 1}', 3, "'lastconv_8_3_4_2_3' is no block of this format"),
        ('{"firstconv_8_3_4_2_3": {"a": 1}}', 1, "expected a number"),
        ("[1, 2]", 1, "not a JSON object of operators"),
        ("{}", 1, "no operators"),
        ("", 1, "not JSON"),
    ],
)
def test_malformed_nn_meter(refused: Callable[..., None], text: str, line: int, message: str) -> None:
    refused(text, "nn-meter", line, message)


NAMES = "ir_k3_e1 ir_k3_s2 ir_k3_e3 ir_k3_e6 ir_k5_e1 ir_k5_s2 ir_k5_e3 ir_k5_e6 skip"


def fbnet_text(**changed: str) -> str:
    """22 rows; row ``i`` (from 1) has ``1000 * i`` microseconds everywhere."""
    rows = [" ".join(9 * [str(1000 * i)]) for i in range(1, 23)]
    return "\n".join([NAMES, *(changed.get(f"row{i}", row) for i, row in enumerate(rows, start=1))])


def test_fbnet(published: Callable[..., LatencyTable]) -> None:
    table = published("fbnet_cpu_lookup_table.txt", "fbnet")
    file = SHARED / "latency-tables" / "fbnet_cpu_lookup_table.txt"
    numbers = [float(cell) for line in file.read_text().splitlines()[1:] for cell in line.split()]
    assert len(numbers) == 22 * 9
    # mean times count is the sum over the layers, so nothing is lost; 1000 microseconds are a millisecond
    total = math.fsum(entry.ms * entry.num_samples for entry in table.entries.values())
    assert total == pytest.approx(math.fsum(numbers) / 1000, rel=1e-12)
    assert sum(entry.num_samples for entry in table.entries.values()) == len(numbers)
    lacking = table.missing(create_space("fbnet").signatures())
    assert [s.op for s in lacking] == ["conv", "conv", "classifier"], "stem, head and classifier are not in the file"


def test_layers_with_the_same_operator(imported: Callable[..., Any], tmp_path: Path) -> None:
    imported(fbnet_text(), "fbnet").done()
    entries = LatencyTable.load(tmp_path / "imported.csv").entries
    layers = {layer.name: layer for layer in create_space("fbnet").layers}
    # rows 3, 4 and 5 are the second to fourth layer of stage 2 and take 3, 4 and 5 ms: median 4; 90 % quantile
    # 4 + 0.8 * (5 - 4); standard deviation 1, so the standard error is 1 / sqrt(3), relative to 4
    for signature in layers["stage2_layer2"].signatures:
        entry = entries[signature]
        assert (entry.ms, entry.p50_ms, entry.num_samples, entry.status) == (4.0, 4.0, 3, "unstable")
        assert (entry.p90_ms, entry.spread) == pytest.approx((4.8, 1 / math.sqrt(3) / 4))
    for signature in layers["stage2_layer1"].signatures:
        assert (entries[signature].ms, entries[signature].num_samples, entries[signature].spread) == (2.0, 1, 0.0)


def test_fbnet_columns_in_another_order(imported: Callable[..., Any], tmp_path: Path) -> None:
    row = "1000 2000 3000 4000 5000 6000 7000 8000 9000"
    text = fbnet_text(row1=row).replace(NAMES, " ".join(reversed(NAMES.split())))
    imported(text, "fbnet").done()
    entries = LatencyTable.load(tmp_path / "imported.csv").entries
    first = create_space("fbnet").layers[1]
    assert [entries[s].ms for s in first.signatures] == [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (fbnet_text(row3="1 2 3"), 4, "3 numbers where 9 were expected"),
        (fbnet_text(row3=" ".join(["2,5", *8 * ["1"]])), 4, "ir_k3_e1 is '2,5' with a decimal comma"),
        (fbnet_text(row3=" ".join([*8 * ["1"], "0"])), 4, "skip is 0; a latency is greater than zero"),
        (fbnet_text().rsplit("\n", 1)[0], 22, "21 rows of latencies; space 'fbnet' has 22 layers"),
        (fbnet_text().replace("ir_k5_e6", "ir_k7_e6"), 1, "k7_e6 skip; expected k3_e1 k3_e1_g2"),
        ("", 1, "the operators are missing"),
    ],
)
def test_malformed_fbnet(refused: Callable[..., None], text: str, line: int, message: str) -> None:
    refused(text, "fbnet", line, message)


HEADER = "op,input,output,stride,attributes,latency_ms\n"
ROW = "mbconv,24x56x56,32x28x28,2,k5 e6,1.5\n"
SIGNATURE = "mbconv k5 e6 s2 24x56x56 -> 32x28x28"


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        (HEADER + ROW, []),
        (f"signature,ms\n{SIGNATURE},1.5\n", []),
        (f"latency_us, signature\n1500, {SIGNATURE}\n", []),
        (f"signature,us\n\n{SIGNATURE},1500\n", []),
        (f"signature,latency_s\n{SIGNATURE},1.5e-3\n", []),
        (f"signature,latency\n{SIGNATURE},1.5\n", ["--unit", "ms"]),
        (f"signature,latency\n{SIGNATURE},1500\n", ["--unit", "us"]),
        (f"signature,latency\n{SIGNATURE},0.0015\n", ["--unit", "s"]),
        (f"\ufeffsignature,ms\r\n{SIGNATURE},1.5\r\n", ["--unit", "ms"]),
    ],
)
def test_csv(imported: Callable[..., Any], tmp_path: Path, text: str, unit: list[str]) -> None:
    imported(text, "csv", *unit).done()
    ((signature, entry),) = LatencyTable.load(tmp_path / "imported.csv").entries.items()
    assert str(signature) == SIGNATURE
    assert entry.ms == pytest.approx(1.5, rel=1e-12)
    assert (entry.num_samples, entry.spread) == (0, 0.0), "the file does not say"


def test_csv_with_runs_and_deviation(imported: Callable[..., Any], tmp_path: Path) -> None:
    imported(f"signature,us,num_samples,std\n{SIGNATURE},1500,25,75\n", "csv").done()
    (entry,) = LatencyTable.load(tmp_path / "imported.csv").entries.values()
    # 75 / sqrt(25) / 1500
    assert (entry.num_samples, entry.spread) == (25, pytest.approx(0.01))


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (HEADER + ROW + ROW, 3, f"'{SIGNATURE}' stands twice"),
        (HEADER + ROW.replace("1.5", "1,5"), 2, "7 fields where 6 were expected. A row cut short, or a decimal comma?"),
        (HEADER + ROW.replace("1.5", '"1,5"'), 2, "latency_ms is '1,5' with a decimal comma"),
        (HEADER + ROW.replace("1.5", ""), 2, "latency_ms is ''; expected a number"),
        (HEADER + ROW.replace("1.5", "-inf"), 2, "latency_ms is -inf; expected a finite number"),
        (HEADER + ROW.replace("1.5", "1_5"), 2, "latency_ms is '1_5'; expected a number"),
        (HEADER + ROW.replace("k5 e6", "e6 k5"), 2, f"is not in canonical form; write it as '{SIGNATURE}'"),
        (HEADER + ROW.replace("24x56x56", "24x56"), 2, "is not an operator signature"),
        (HEADER + ROW[:-9], 2, "5 fields where 6 were expected"),
        (HEADER.replace("stride", "strides") + ROW, 1, "no column 'stride'; an operator is 'signature' or op, input"),
        (HEADER.replace("attributes", "kernel") + ROW, 1, "column 'kernel' is not known; write what tells"),
        (HEADER.replace("attributes", "op") + ROW, 1, "a column stands twice"),
        (HEADER.replace("attributes", "us") + ROW, 1, "2 columns of latencies; expected one of latency_ms, ms"),
        (HEADER.replace("latency_ms", "time") + ROW, 1, "0 columns of latencies"),
        (HEADER.replace("attributes", "std") + ROW, 1, "'std' says nothing without 'num_samples'"),
        ((HEADER + ROW).replace(",", ";"), 1, "fields are separated by ';', and expected is ','"),
        (HEADER + '"' + ROW, 2, "cannot be read as CSV"),
        (HEADER, 1, "no operators"),
        ("", 1, "no column 'op'"),
    ],
)
def test_malformed_csv(refused: Callable[..., None], text: str, line: int, message: str) -> None:
    refused(text, "csv", line, message)


def test_a_unit_that_nobody_knows(imported: Callable[..., Any], tmp_path: Path) -> None:
    text = f"signature,latency\n{SIGNATURE},1.5\n"
    imported(text, "csv").failed(2, "does not say the unit of its latencies. Give it: --unit ms, us or s.")
    imported(text, "csv", "--unit", "ns").failed(2, "unknown unit 'ns'; available: ms, s, us")
    assert not list(tmp_path.glob("*imported*"))


@pytest.mark.parametrize(("text", "file_format", "unit"), [(YAML, "proxylessnas", "ms"), (fbnet_text(), "fbnet", "us")])
def test_a_unit_that_contradicts_the_file(
    imported: Callable[..., Any], tmp_path: Path, text: str, file_format: str, unit: str
) -> None:
    imported(text, file_format, "--unit", "s").failed(2, f"is in {unit}, so it cannot be read in s")
    assert not list(tmp_path.glob("*imported*"))
    imported(text, file_format, "--unit", unit).done()


def test_seconds_called_milliseconds(imported: Callable[..., Any], tmp_path: Path) -> None:
    imported(YAML.replace("4.0", "4e-6").replace("2.0", "2e-6"), "proxylessnas").failed(1, "faster than any device")
    assert not list(tmp_path.glob("*imported*"))


def test_nothing_is_replaced(imported: Callable[..., Any], tmp_path: Path) -> None:
    imported(YAML, "proxylessnas").done()
    before = {file: file.read_bytes() for file in tmp_path.glob("imported.*")}
    assert len(before) == 2
    imported(YAML, "proxylessnas").failed(2, "imported.csv exists, and importing replaces nothing")
    (tmp_path / "imported.csv").unlink()
    imported(YAML, "proxylessnas").failed(2, "imported.json exists")


def test_unknown_format_and_missing_file(imported: Callable[..., Any], hwnas: Run, tmp_path: Path) -> None:
    imported(YAML, "proxyless").failed(2, "unknown format 'proxyless'", *FORMATS, "Did you mean 'proxylessnas'?")
    arguments = ("--format", "csv", "--device", "d", "--output", tmp_path / "t.csv")
    hwnas("table", "import", tmp_path / "none", *arguments).failed(1, f"{tmp_path / 'none'}: cannot be read")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    hwnas("table", "import", tmp_path / "binary", *arguments).failed(1, f"{tmp_path / 'binary'}: cannot be read")
