"""The report of a run: whole, self-contained, honest; on a small run made by the real steps."""

import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hwnas.deploy.report import report

from hwnas.errors import RunError
from hwnas.latency.table import LatencyTable

OVERHEAD_MS = -0.05
"""By which the measured networks of the run's table are off the sum of their layers."""

FILE_FIGURES = ("bytes", "max_difference", "mean_difference", "min_cosine", "top1_agreement", "accuracy_exported",
                "measured_ms", "p50_ms", "p90_ms", "p99_ms")  # fmt: skip
"""Rows of the table of exported files, of which the run has two."""

Edit = Callable[[dict[str, Any]], Any]


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run to change."""
    return shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("*.pt", "tensorboard"))


def edit(run: Path, name: str, change: Edit) -> None:
    document = json.loads((run / name).read_text())
    change(document)
    (run / name).write_text(json.dumps(document))


class Page(HTMLParser):
    """Checks that tags balance, and keeps texts and elements."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).replace("\u00a0", " ").split())

    def having(self, name: str, class_: str) -> list[dict[str, str | None]]:
        return [a for tag, a in self.elements if tag == name and class_ in (a.get("class") or "").split()]


def written(run: Path) -> tuple[Page, dict[str, Any]]:
    path = report(run)
    assert path == run / "report.html"

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return Page(path), json.loads((run / "report.json").read_text(), parse_constant=refuse)


def test_key_figures_stand_on_the_page_and_in_the_document(run: Path) -> None:
    page, document = written(run)
    latency, accuracy = document["latency"], document["accuracy"]
    training = json.loads((run / "training.json").read_text())
    assert latency["met"]
    assert latency["basis"] == "verification"
    assert (latency["measured_ms"], latency["p50_ms"], latency["p99_ms"]) == (0.1953, 0.2017, 0.3499)
    assert accuracy["trained"] == training["accuracy"]
    assert (accuracy["pytorch"], accuracy["exported"]) == (0.75, 0.5)
    costs = {name: training[name] for name in ("parameters", "macs")}
    assert document["size"] == {**costs, "file": "model.onnx", "bytes": 123456}
    # 0.1953 is 21.9 % below 0.25; the target decides three decimals
    assert "✓ Target met : 0.195 ms of 0.250 ms allowed, 22 % below" in page.text
    assert "Top-1 50.0 % as exported, 123 kB, " in page.text[: page.text.index("Summary")]
    for figure in ("0.202 ms", "0.211 ms", "0.350 ms", "3.8×10⁻⁶", "2.4×10⁻⁷", "123 kB", "50.0 %"):
        assert figure in page.text
    assert f"{training['parameters']:,}" in page.text
    assert "0.260 ms ✗ missed" in page.text
    assert "0.200 ms ✓ met" in page.text


def test_numbers_for_machines_are_those_of_the_document(run: Path) -> None:
    page, document = written(run)
    exact = [float(attributes["value"] or "nan") for tag, attributes in page.elements if tag == "data"]
    latency = document["latency"]
    expected = [
        *(latency[name] for name in ("measured_ms", "target_ms", "relative_error")),
        *(({**each, **each["numerics"], **each["latency"]})[key] for key in FILE_FIGURES for each in document["files"]),
        *document["accuracy"].values(),
        *(document["size"][name] for name in ("parameters", "macs", "bytes")),
        document["prediction"]["error"]["mape"],
        *(error["mape"] for error in document["prediction"]["baselines"].values()),
    ]
    assert exact == expected


def test_layers_and_overhead_add_up_to_the_prediction(run: Path) -> None:
    page, document = written(run)
    # the networks of the table were measured at their sum - 0.05 ms, and the calibration finds that
    assert document["overhead_ms"] == pytest.approx(OVERHEAD_MS, abs=1e-9)
    total = sum(layer["predicted_ms"] for layer in document["layers"]) + document["overhead_ms"]
    assert total == pytest.approx(document["latency"]["predicted_ms"], abs=1e-9)
    assert [layer["name"] for layer in document["layers"] if layer["skipped"]] == [
        *("stage1_layer2", "stage2_layer2", "stage2_layer3", "stage3_layer2")
    ]
    assert "−0.0500 ms" in page.text
    assert "The overhead is negative" in page.text


def test_calibration_networks_are_predicted_and_measured(run: Path) -> None:
    page, document = written(run)
    networks = document["prediction"]["networks"]
    assert len(networks) == 6
    for network in networks:
        assert network["predicted_ms"] == pytest.approx(network["measured_ms"], abs=1e-9)
    assert page.text.count("calibration network: ") == 6  # a dot each, with its title
    assert page.text.count("result: 0.1953, ") == 1
    assert "fitted to these very networks" in page.text


def test_measurement_above_the_target_says_missed(run: Path) -> None:
    edit(run, "verification.json", lambda v: v["latency"].update(measured_ms=0.2526))
    page, document = written(run)
    assert not document["latency"]["met"]  # although the file still says so
    assert "✗ Target missed : 0.253 ms of 0.250 ms allowed, 1.0 % above" in page.text
    assert "Target met" not in page.text


def test_measurement_within_the_tolerance_says_so(run: Path) -> None:
    edit(run, "verification.json", lambda v: v["latency"].update(measured_ms=0.2524))
    page, document = written(run)
    assert document["latency"]["met"]
    assert "0.252 ms of 0.250 ms allowed, 1.0 % above, within the 1 % allowed for noise" in page.text


def test_failed_bounds_and_surprises_are_said_first(run: Path) -> None:
    def change(verification: dict[str, Any]) -> None:
        verification["failures"] = ["top-1 agrees on 98.00%; at least 99.9% is required"]
        verification["latency"]["p50_ms"] = 0.2711
        verification["latency"] |= {"measured_ms": 0.1, "slowdown": 1.25}

    edit(run, "verification.json", change)
    page, _ = written(run)
    head = page.text[: page.text.index("Summary")]
    assert "Verification failed: top-1 agrees on 98.00%" in head
    assert "The median run took 0.271 ms, longer than the target" in head
    assert "above the measurement" in head
    assert "The device was 1.25 times slower than in the table's sweep" in head


def test_run_without_training_names_the_commands(run: Path) -> None:
    (run / "training.json").unlink()
    (run / "verification.json").unlink()
    page, document = written(run)
    assert document["training"] is None
    assert document["numerics"] is None
    assert document["latency"]["basis"] == "derivation"
    assert document["latency"]["measured_ms"] == 0.2
    assert "with the supernet's weights, " in page.text[: page.text.index("Summary")]
    assert f"Not trained yet. Run: hwnas train {run}" in page.text
    assert f"hwnas verify {run}" in page.text[: page.text.index("Derivation")]
    assert document["missing"]["verification"][0].startswith("hwnas train")


def test_run_without_verification_names_the_command(run: Path) -> None:
    (run / "verification.json").unlink()
    (run / "model.onnx").touch()
    page, document = written(run)
    assert document["missing"] == {"verification": [f"hwnas verify {run}"]}
    assert f"Not verified yet. Run: hwnas verify {run}" in page.text
    assert document["accuracy"]["trained"] is not None


@pytest.mark.parametrize("verified", [False, True], ids=["not verified", "verified elsewhere"])
def test_nothing_measured_is_called_a_prediction(run: Path, verified: bool) -> None:
    def forget(derivation: dict[str, Any]) -> None:
        derivation["rounds"][-1]["measured_ms"] = None

    edit(run, "derivation.json", forget)
    if verified:
        unknown = dict.fromkeys(("measured_ms", "p50_ms", "p90_ms", "p99_ms"))
        edit(run, "verification.json", lambda verification: verification["latency"].update(unknown))
    else:
        (run / "verification.json").unlink()
    page, document = written(run)
    assert document["latency"]["basis"] == "prediction"
    assert (document["numerics"] is not None) == verified
    assert "predicted; not measured on the device" in page.text


def test_results_of_a_replaced_architecture_are_left_out(run: Path) -> None:
    edit(run, "verification.json", lambda verification: verification.update(architecture="00000000"))
    _, document = written(run)
    assert document["training"] is not None
    assert document["numerics"] is None
    edit(run, "training.json", lambda training: training.update(architecture="00000000"))
    page, document = written(run)
    assert document["training"] is None
    assert "training.json is about an architecture that was replaced since" in page.text


def test_lost_table_is_said_and_the_rest_stays(run: Path) -> None:
    edit(run, "run.json", lambda document: document["config"]["table"].update(path="/nowhere/table.csv"))
    page, document = written(run)
    assert document["prediction"]["networks"] == []
    assert document["provenance"]["environment"]["device"] == "Test <chip>"  # from the verification
    assert "The latency table could not be read: /nowhere/table.json does not exist" in page.text


def test_unfinished_or_damaged_run_is_an_error_that_says_what_to_do(run: Path) -> None:
    edit(run, "derivation.json", lambda derivation: derivation.pop("rounds"))
    with pytest.raises(RunError, match=r"derivation\.json: it lacks 'rounds'"):
        report(run)
    (run / "derivation.json").unlink()
    with pytest.raises(RunError, match=r"no derivation\.json.*--resume"):
        report(run)
    assert not (run / "report.html").exists()


def test_page_is_self_contained(run: Path) -> None:
    page, _ = written(run)
    names = [tag for tag, _ in page.elements]
    assert not {"script", "link", "iframe", "img", "object", "base"} & set(names)
    for _, attributes in page.elements:
        assert not {"src", "href", "xlink:href", "onload", "onclick"} & set(attributes)
    assert "://" not in page.source
    assert "@import" not in page.source
    assert "url(" not in page.source
    assert page.source.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert (run / "report.html").stat().st_size < 600_000


def test_every_drawing_has_an_alternative_text(run: Path) -> None:
    page, _ = written(run)
    drawings = [attributes for tag, attributes in page.elements if tag == "svg"]
    labels = [attributes["aria-label"] or "" for attributes in drawings]
    assert all(attributes["role"] == "img" for attributes in drawings)
    assert any("measured 0.195\u00a0ms" in label for label in labels)
    assert any("stage1_layer2: skipped" in label for label in labels)
    assert any(label.startswith("Loss: weights from 2.00 to 1.11") for label in labels)  # 2 - 8 / 9
    assert len(labels) == len(set(labels))


def test_chosen_options_are_marked(run: Path) -> None:
    page, document = written(run)
    for choice in document["probabilities"]:
        assert [option["chosen"] for option in choice["options"]].index(True) == len(choice["options"]) - 1
        assert sum(option["probability"] for option in choice["options"]) == pytest.approx(1)
    marked = page.having("td", "chosen")
    assert len(marked) == len(document["probabilities"]) == 7
    # softmax of 1 .. 2 over 5 options: the last has e^2 / (e^1 + e^1.25 + e^1.5 + e^1.75 + e^2) = 31.0 %
    assert "--share:31.0" in [attributes["style"] for attributes in marked]
    assert "31 ✓" in page.text


def test_missing_numbers_of_a_log_become_null(run: Path) -> None:
    _, document = written(run)
    assert document["search"]["arch_loss"] == [None] * 9  # eight not logged, one NaN
    assert document["search"]["step"] == list(range(9))
    assert document["search"]["expected_ms"][-1] == 0.21


def test_hostile_names_are_text(run: Path) -> None:
    hostile = "\"><script>alert(1)</script><b x='"

    def rename(derivation: dict[str, Any]) -> None:
        derivation["layers"][0]["name"] = derivation["rounds"][0]["id"] = hostile
        derivation["prediction"]["baselines"][hostile] = derivation["prediction"]["error"]

    edit(run, "derivation.json", rename)
    edit(run, "training.json", lambda training: training.update(data=hostile))
    edit(run, "run.json", lambda document: document["origin"].update(command=hostile))
    edit(run, "run.json", lambda document: document["config"].update(data=hostile))
    edit(run, "verification.json", lambda v: v.update(file=hostile, failures=[hostile]))
    page, _ = written(run)
    names = {tag for tag, _ in page.elements}
    assert "script" not in names
    assert "b" not in names
    assert "<script>" not in page.source
    assert page.text.count("<script>alert(1)</script>") >= 5


def test_commands_are_on_the_page(run: Path) -> None:
    page, document = written(run)
    steps = ["profile", "search", "train", "export", "export model-fp16.onnx", "verify", "report"]
    assert list(document["commands"]) == steps
    assert document["commands"]["export model-fp16.onnx"].endswith("--exporter onnx --precision fp16")
    assert all(line in page.text for line in document["commands"].values())


def test_provenance_is_complete(run: Path) -> None:
    page, document = written(run)
    config = json.loads((run / "run.json").read_text())["config"]
    for fact in (config["table"]["sha256"], "Test <chip>", "onnxruntime", "fp32", "gates(num_epochs=3, arch_every=1)"):
        assert fact in page.text
    assert document["provenance"]["table"]["rows"] == len(LatencyTable.load(config["table"]["path"]).entries)
    assert document["provenance"]["search"]["seed"] == 7
    edit(run, "run.json", lambda d: d["origin"].update(gpu="Test GPU", driver="550.1", cuda="13.0"))
    page, _ = written(run)
    assert "GPU Test GPU driver 550.1 CUDA 13.0" in page.text
