"""Documents, tables and logs that somebody else wrote: a hostile one is a clear error or is shown as text."""

import contextlib
import copy
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hwnas.deploy.report import report
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hwnas.accuracy import scored_paths
from hwnas.errors import HwnasError, RunError, TableError
from hwnas.files import DEEPEST, read_json
from hwnas.latency.journal import Journal
from hwnas.latency.model import LatencyModel
from hwnas.latency.table import LatencyTable
from hwnas.metrics import read_log
from hwnas.run import RunFolder, table_hash
from hwnas.space import Architecture, OpSignature, create_space, macs, parameters
from hwnas.space.cost import has_cost
from hwnas.space.library import SPACES

ROOT = Path(__file__).parent.parent

HOSTILE = "\"><script>alert(1)</script><img src=x onerror='alert(1)'>"

short = settings(
    max_examples=50,
    deadline=None,
    derandomize=True,  # a failure of the suite is found again
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


few = settings(short, max_examples=15)
"""Where every example makes a report."""


NESTED = "[" * 100_000
TEXTS = st.text('aé٣ 0-.,:;"\\/<&{}[]\n\t\x00\x1b', max_size=20)
"""Of few characters: to know all of them takes seconds."""
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
    | st.sampled_from([HOSTILE, "../../../etc/passwd", "\x00", "\ud800", 10**400, -1, 1e308, 5e-324, "x" * 100_000])
)  # fmt: skip
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place of a document, from the whole to the leaves."""
    yield path
    inside = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in inside:
        yield from places(value, (*path, key))


def at(document: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        document = document[key]
    return document


def changed(document: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value at a place."""
    if not place:
        return value
    document = copy.deepcopy(document)
    at(document, place[:-1])[place[-1]] = value
    return document


@st.composite
def damaged(draw: st.DrawFn, document: Any) -> str:
    """The JSON of a document with one place changed, removed, or added under a name that may mean something."""
    known = list(places(document))
    place = draw(st.sampled_from(known))
    what = draw(st.sampled_from(["change", "change", "remove", "rename", "add"])) if place else "change"
    document = changed(document, place, draw(VALUES)) if what == "change" else copy.deepcopy(document)
    holder = at(document, place[:-1])
    if what in ("remove", "rename"):
        value = holder.pop(place[-1])
    if isinstance(holder, dict) and what in ("rename", "add"):
        names = {name for each in known for name in each if isinstance(name, str)} | UNUSUAL
        holder[draw(st.sampled_from(sorted(names)))] = value if what == "rename" else draw(VALUES)
    return json.dumps(document)


UNUSUAL = {HOSTILE, "", "\x1b[2J", "merged", "imported", "earlier", "plan", "weights_from", "resolved", "reference"}
"""Names that the examples do not have."""


def refused_or_read(read: Callable[[], object]) -> None:
    """A reader either succeeds or raises an error of ours."""
    with contextlib.suppress(HwnasError):
        read()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (NESTED, f"deeper than {DEEPEST}"),
        ('{"a": ' * (DEEPEST + 1) + "1" + "}" * (DEEPEST + 1), f"deeper than {DEEPEST}"),
        ('{"max_ms": 1, "max_ms": 2}', "'max_ms' stands twice"),
        ('{"max_ms": NaN}', "NaN is no JSON"),
        ('{"max_ms": 1e999}', "1e999 is no JSON"),
        ('{"seed": ' + "1" * 5000 + "}", "4300 digits"),
        ('{"data": "\\ud800"}', "surrogates not allowed"),
        ("", "Expecting value"),
    ],
)
def test_hostile_json_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(RunError, match=re.escape(said)) as caught:
        read_json(path)
    assert str(path) in str(caught.value)


def test_files_that_never_end_or_are_no_text_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(2**29)  # a hole: takes no space on the disk
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    for name, said in (("pipe", "no ordinary file"), ("huge", "at most"), ("bytes", "utf-8"), ("", "no ordinary file")):
        path = tmp_path / f"{name}.json" if name else tmp_path
        with pytest.raises(RunError, match=said):
            read_json(path)
    with pytest.raises(RunError, match="no ordinary file"):
        read_log(tmp_path / "pipe.json")


def test_an_error_does_not_command_the_terminal(tmp_path: Path) -> None:
    with pytest.raises(HwnasError) as caught:
        create_space("\x1b[2J\x07")
    assert "\\x1b[2J\\x07" in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_a_table_does_not_command_the_terminal(finished: Path, tmp_path: Path, hwnas: Callable[..., Any]) -> None:
    for suffix in (".csv", ".json"):
        shutil.copy(finished.parent / f"table{suffix}", tmp_path)
    document = json.loads((tmp_path / "table.json").read_text())
    document["provenance"]["date"] = document["environment"]["device"] = "\x1b[2J"
    (tmp_path / "table.json").write_text(json.dumps(document))
    shown = hwnas("table", "show", tmp_path / "table.csv").done()
    assert "date: \\x1b[2J" in shown
    assert "\x1b" not in shown


@short
@given(text=damaged({"space": "tiny-mbconv", "options": {"stage1_layer1": "k3_e3"}}) | TEXTS)
@example(NESTED)
@example('{"space": "a", "options": {"b": {"c": 1}}}')
def test_any_architecture_is_read_or_refused(text: str) -> None:
    space = create_space("tiny-mbconv", resolution=16)
    refused_or_read(lambda: space.indices(Architecture.from_json(text)))


NUMBER = st.integers(0, 99).map(str) | st.sampled_from(["0", "999999999", "1" * 10, "1" * 5000, "٣", "-1", "1e3", ""])


@short
@given(
    op=st.sampled_from(["mbconv", "conv", "skip", "classifier", "avg_pool", "Conv", ""]),
    words=st.lists(st.sampled_from(["k", "e", "g", "r", "act=", "k=", " "]).flatmap(lambda n: NUMBER.map(n.__add__))),
    numbers=st.lists(NUMBER, min_size=7, max_size=7),
)
@example(op="conv", words=["k3", "g0"], numbers=["1", "8", "4", "4", "8", "4", "4"])
def test_any_signature_is_read_or_refused(op: str, words: list[str], numbers: list[str]) -> None:
    s, *sizes = numbers
    text = f"{' '.join([op, *words])} s{s} {'x'.join(sizes[:3])} -> {'x'.join(sizes[3:])}"

    def read() -> None:
        signature = OpSignature.parse(text)
        assert str(signature) == text
        if has_cost(signature):
            assert macs(signature) >= 0
            assert parameters(signature) >= 0

    refused_or_read(read)


@short
@given(name=st.sampled_from(sorted(SPACES)), data=st.data())
def test_any_description_of_a_space_is_built_or_refused(name: str, data: st.DataObject) -> None:
    known = ["resolution", "num_classes", "width", "head", "num_cells", "other"]
    values = st.integers(-1, 300) | LEAVES
    options = data.draw(st.dictionaries(st.sampled_from(known), values, max_size=3))
    refused_or_read(lambda: create_space(name, **options).fingerprint)


CELLS = (
    st.sampled_from(["", "nan", "inf", "-1", "1e308", "1e-320", "1" * 400, HOSTILE, "a\nb", '"', "\x00", "ok"]) | TEXTS
)


@short
@given(row=st.integers(0, 5), column=st.integers(0, 8), cell=CELLS)
def test_any_row_of_a_table_is_read_or_refused(
    finished: Path, tmp_path: Path, row: int, column: int, cell: str
) -> None:
    original = finished.parent / "table.csv"
    lines = [line.split(",") for line in original.read_text().splitlines()]
    lines[row][column : column + 1] = [cell]
    path = tmp_path / "table.csv"
    path.write_text("\n".join(map(",".join, lines)) + "\n", encoding="utf-8", errors="ignore")
    sidecar = json.loads(original.with_suffix(".json").read_text())
    sidecar["sha256"] = hashlib.sha256(path.read_text(encoding="utf-8").encode()).hexdigest()
    path.with_suffix(".json").write_text(json.dumps(sidecar))
    refused_or_read(lambda: used(path))


def used(path: Path) -> None:
    LatencyModel.from_table(create_space("tiny-mbconv", resolution=16, num_classes=2), LatencyTable.load(path))


@short
@given(data=st.data())
def test_any_sidecar_is_read_or_refused(finished: Path, tmp_path: Path, data: st.DataObject) -> None:
    original = finished.parent / "table.csv"
    path = tmp_path / "table.csv"
    shutil.copy(original, path)
    document = json.loads(original.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(data.draw(damaged(document)))
    refused_or_read(lambda: used(path))


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("*.pt", "tensorboard", "*.html"))


DOCUMENTS = ("run", "derivation", "training", "verification")


@pytest.mark.parametrize("name", DOCUMENTS)
@few
@given(data=st.data())
def test_any_document_of_a_run_is_reported_or_refused(
    finished: Path, run: Path, name: str, data: st.DataObject
) -> None:
    document = json.loads((finished / f"{name}.json").read_text())
    (run / f"{name}.json").write_text(data.draw(damaged(document)))
    refused_or_read(lambda: harmless(report(run)))
    shutil.copy(finished / f"{name}.json", run)


def test_a_table_that_does_not_say_where_it_is_from_is_reported(finished: Path, run: Path, tmp_path: Path) -> None:
    table = RunFolder.open(finished).table()
    for origin in ("imported", "merged"):
        unknown = replace(table, provenance={origin: []}).save(tmp_path / f"{origin}.csv")
        document = json.loads((run / "run.json").read_text())
        document["config"]["table"] = {"path": str(unknown.path), "sha256": table_hash(unknown)}
        (run / "run.json").write_text(json.dumps(document))
        assert "hwnas profile" not in report(run).read_text()


@pytest.mark.parametrize("name", ["search.jsonl", "training.jsonl", "scores.jsonl"])
@few
@given(data=st.data())
def test_any_log_is_reported_or_refused(finished: Path, run: Path, name: str, data: st.DataObject) -> None:
    options = RunFolder.open(finished).architecture().options
    score = {"step": 0, "architecture": dict(options), "accuracy": 0.5, "identity": "x"}
    source = finished / name
    lines = source.read_text().splitlines() if source.exists() else [json.dumps(score)] * 3
    lines[-1] = data.draw(damaged(json.loads(lines[-1])))
    (run / name).write_text("\n".join(lines) + "\n")
    reader = scored_paths if name == "scores.jsonl" else read_log
    refused_or_read(lambda: reader(run / name))
    refused_or_read(lambda: harmless(report(run)))


def harmless(page: Path) -> None:
    """Nothing of what a run holds became an element of its page."""
    source = page.read_text(encoding="utf-8")
    assert "<script" not in source
    assert "<img" not in source


MEANT = {
    ("config", "space", "name"),
    ("config", "space", "fingerprint"),
    ("config", "table", "path"),
    ("architecture",),
}
"""Places of texts that name something, besides those of an architecture and its layers."""


def means_something(place: tuple[Any, ...]) -> bool:
    return place in MEANT or bool({"architecture", "operator"} & {*place}) or place[::2] == ("rounds", "id")


def test_a_hostile_label_is_text_wherever_it_stands(finished: Path, run: Path) -> None:
    documents = {name: json.loads((finished / f"{name}.json").read_text()) for name in DOCUMENTS}
    texts = [(n, p) for n, document in documents.items() for p in places(document) if isinstance(at(document, p), str)]
    labels = [(name, place) for name, place in texts if not means_something(place)]
    hostile = documents
    for name, place in labels:
        hostile = changed(hostile, (name, *place), HOSTILE)
    for name in DOCUMENTS:
        (run / f"{name}.json").write_text(json.dumps(hostile[name]))
    page = report(run)
    harmless(page)
    assert page.read_text().count("&lt;script&gt;") > len(labels) / 2, "most are shown"
    for name in DOCUMENTS:
        (run / f"{name}.json").write_text(json.dumps(documents[name]))
    for name, place in texts:
        if means_something(place):
            (run / f"{name}.json").write_text(json.dumps(changed(documents[name], place, HOSTILE)))
            refused_or_read(lambda: harmless(report(run)))
            (run / f"{name}.json").write_text(json.dumps(documents[name]))


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../../etc/passwd", "/dev/zero", "", "\x00", "/proc/self/mem.csv", "."]
)
def test_a_path_to_elsewhere_is_no_table(run: Path, path: str) -> None:
    document = json.loads((run / "run.json").read_text())
    document["config"]["table"]["path"] = path
    (run / "run.json").write_text(json.dumps(document))
    with pytest.raises(TableError, match="table"):
        RunFolder.open(run).table()
    assert "root:" not in report(run).read_text()


@short
@given(data=st.data())
def test_any_journal_goes_on_or_is_refused(finished: Path, tmp_path: Path, data: st.DataObject) -> None:
    environment = RunFolder.open(finished).table().environment
    path = tmp_path / "t.partial.jsonl"
    path.unlink(missing_ok=True)
    with Journal(path, environment, {"seed": 0}) as journal:
        journal.add("conv", 0, [0.5])
        journal.fail("skip", "no")
    lines = path.read_text().splitlines()
    number = data.draw(st.integers(0, 2))
    lines[number] = data.draw(damaged(json.loads(lines[number])))
    path.write_text("\n".join(lines) + "\n")

    def read() -> None:
        with Journal(path, environment, {"seed": 0}):
            pass

    refused_or_read(read)
