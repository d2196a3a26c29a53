"""What a report shows of the other architectures, of the way to the result, and of every exported file."""

import html
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hwnas.deploy.report import report

from hwnas.errors import RunError
from hwnas.run import RunFolder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("*.pt", "tensorboard"))


def written(run: Path) -> tuple[str, dict[str, Any]]:
    path = report(run)
    return html.unescape(path.read_text()), json.loads(path.with_suffix(".json").read_text())


def write_scores(run: Path, accuracies: list[float]) -> list[dict[str, Any]]:
    """Scores for as many architectures, of which the first is the result."""
    space, chosen = RunFolder.open(run).space(), RunFolder.open(run).architecture()
    some = [chosen, *(a for a in space.distinct(len(accuracies), seed=0) if a != chosen)]
    lines = [
        {"step": n, "architecture": dict(a.options), "accuracy": accuracy, "identity": "weights"}
        for n, (a, accuracy) in enumerate(zip(some, accuracies, strict=False))
    ]
    (run / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines


def test_scored_architectures_their_front_and_the_result_are_drawn(run: Path) -> None:
    write_scores(run, [0.5, 0.25, 0.75, 0.5, 0.625, 0.375])
    page, document = written(run)
    found = document["candidates"]
    assert len(found) == 6
    assert sum(each["result"] for each in found) == 1
    for each in found:  # by the definition: nothing is as good in both and better in one
        beaten = any(
            other["predicted_ms"] <= each["predicted_ms"]
            and other["accuracy"] >= each["accuracy"]
            and (other["predicted_ms"], other["accuracy"]) != (each["predicted_ms"], each["accuracy"])
            for other in found
        )
        assert each["front"] == (not beaten)
    budget = RunFolder.open(run).budget()
    (result,) = (each for each in found if each["result"])
    assert result["predicted_ms"] == budget.model.exact_ms(RunFolder.open(run).architecture())
    front = [each for each in found if each["front"]]
    assert page.count("<title>Pareto front: ") == len(front)
    assert page.count("<title>candidate: ") == 6 - len({each["id"] for each in [*front, result]})
    assert f"Pareto front: {front[0]['predicted_ms']:.3f}\u00a0ms {100 * front[0]['accuracy']:.1f}\u00a0%" in page


def test_scores_of_other_weights_are_left_out(run: Path) -> None:
    lines = write_scores(run, [0.5, 0.25, 0.75])
    lines[0]["identity"] = "other"
    (run / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert len(written(run)[1]["candidates"]) == 2


def test_without_scores_the_rounds_are_compared(run: Path) -> None:
    _, document = written(run)
    assert {each["accuracy"] for each in document["candidates"]} == {
        each["accuracy"] for each in json.loads((run / "derivation.json").read_text())["rounds"]
    }
    assert len(document["candidates"]) == 2


def test_a_result_alone_is_no_chart(run: Path) -> None:
    derivation = json.loads((run / "derivation.json").read_text())
    del derivation["rounds"][0]
    (run / "derivation.json").write_text(json.dumps(derivation))
    page, document = written(run)
    assert document["candidates"] == []
    assert "No other architecture was scored" in page


def test_the_way_of_the_probabilities_is_drawn(run: Path) -> None:
    page, document = written(run)
    history = document["history"]
    assert history["step"] == list(range(9))
    # they start uniform and end at what derivation.json holds: 5 options, softmax of 1 .. 2, the last of them chosen
    row = next(each for each in history["choices"] if each["choice"] == "stage1_layer2")
    assert (row["probability"][0], row["probability"][-1]) == pytest.approx((0.2, 0.31), abs=5e-4)
    assert "stage1_layer2 from 20\u00a0% to 31\u00a0%" in page
    lines = [json.loads(line) | {"probabilities": {}} for line in (run / "search.jsonl").read_text().splitlines()]
    (run / "search.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page, document = written(run)
    assert document["history"] is None
    assert "over the search" not in page


def test_probabilities_of_another_space_are_refused(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "search.jsonl").read_text().splitlines()]
    lines[-1]["probabilities"]["stage1_layer2"] = [1.0]
    (run / "search.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(RunError, match=r"search\.jsonl, step 8: other options"):
        report(run)


def test_every_exported_file_has_its_column(run: Path) -> None:
    page, document = written(run)
    assert [each["precision"] for each in document["files"]] == ["fp32", "fp16"]
    table = re.search(r"<h3>Exported files against PyTorch</h3>(.*?)</table>", page, re.DOTALL)
    assert table
    rows = re.findall(r'<th scope="row">(.*?)</th>(.*?)</tr>', table[1])
    assert all(cells.count("<td") == 2 for _, cells in rows)
    assert rows[-1][1].index("✓ kept") < rows[-1][1].index("✗ broken"), "only the second one broke a bound"
    assert "model-fp16.onnx: It computes in fp32." in page
    assert "model-fp16.onnx: timed on Other <chip>, onnxruntime 1.0." in page
    assert "model.onnx: timed on" not in page, "it is the one with the verdict"
    assert "model-fp16.engine, not run: No GPU." in page


def test_layers_show_what_was_measured_in_them(run: Path) -> None:
    page, document = written(run)
    layers = document["layers"]
    assert {each["measured_ms"] for each in layers} == {0.0125}
    drawing = re.search(r'aria-label="Predicted latency by layer.*?</svg>', page, re.DOTALL)
    assert drawing
    assert drawing[0].count('class="bar b"') == len(layers)
    assert f"these add up to {0.0125 * len(layers):.4f}\u00a0ms" in page
    verification = json.loads((run / "verification.json").read_text())
    for each in verification["layers"]:
        each["measured_ms"] = None
    (run / "verification.json").write_text(json.dumps(verification))
    page, _ = written(run)
    assert ", measured 0.0125" not in page
    assert "node by node" not in page
