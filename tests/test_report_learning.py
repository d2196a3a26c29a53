"""What a report says about search and training, whatever the recipe and however far the run has come."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hwnas.deploy.report import report
from hwnas.deploy.report.learning import probabilities_section, search_section, training_section

from hwnas.metrics import read_log

Log = dict[str, list[Any]]

WEIGHTS: Log = {"step": [0, 1, 2], "weight_loss": [2.0, 1.5, 1.25], "weight_accuracy": [0.125, 0.5, 0.75]}
UNMOVED: Log = {"entropy": [1.5, 1.5, 1.5], "multiplier": [0.0, 0.0, 0.0]}
ARCH: Log = {
    "arch_loss": [None, 1.75, 1.5],
    "arch_accuracy": [None, 0.25, 0.5],
    "expected_ms": [None, 12.0, 10.5],
    "sampled_ms": [None, 14.0, 9.0],
    "entropy": [1.5, 1.25, 0.5],
}


def searched(log: Log | None, speed: Log | None = None) -> str:
    return search_section({"search": log, "search_speed": speed or {}, "latency": {"target_ms": 10.0}})


def told(page: str) -> dict[str, str]:
    """Title of every drawing -> its course in words."""
    labels = (html.unescape(label) for label in re.findall(r'aria-label="([^"]*)"', page))
    return dict(label.rstrip(".").split(": ", 1) for label in labels if ": " in label)


def test_a_search_shows_every_figure_it_has() -> None:
    speed = {"step": [0, 1, 2], "images_per_second": [None, 400.0, 500.0], "memory_mib": [700.0, 750.0, 750.0]}
    page = searched({**WEIGHTS, **ARCH, "multiplier": [None, 0.5, -0.25]}, speed)
    assert told(page) == {
        "Loss": "weights from 2.00 to 1.25; architecture from 1.75 to 1.50",
        "Accuracy of batches": "weights from 12.5\xa0% to 75.0\xa0%; architecture from 25.0\xa0% to 50.0\xa0%",
        "Latency, ms": "drawn from 14.0 to 9.0; expected from 12.0 to 10.5",
        "Mean entropy of a choice, nats": "entropy from 1.50 to 0.50",
        "Multiplier of the latency": "multiplier from 0.500 to −0.250",
        "Images per second": "speed from 400 to 500",
        "Most memory so far, MiB": "memory from 700 to 750",
    }
    assert page.count('class="target"') == 1
    assert '<span class="key line">target</span>' in page
    assert "starts to move after its warm-up" in page


def test_a_recipe_without_a_multiplier_shows_none() -> None:
    page = searched({**WEIGHTS, **ARCH})
    assert "Multiplier" not in page
    assert "Latency, ms" in page
    assert "Images per second" not in page, "no speed was logged"
    assert "Multiplier" not in searched({**WEIGHTS, **ARCH, "multiplier": [0.0, 0.0, 0.0]})


def test_a_recipe_that_trains_weights_alone_shows_them_alone() -> None:
    page = searched({**WEIGHTS, **UNMOVED})
    assert list(told(page)) == ["Loss", "Accuracy of batches"]
    assert "architecture" not in page
    assert "Only weights were trained" in page


def test_a_recipe_that_trains_nothing_and_a_lost_log_are_told_apart() -> None:
    assert "trains nothing" in searched({})
    assert "not in the run folder" in searched(None)


def test_a_training_shows_both_losses_both_scores_rate_and_speed() -> None:
    training = {
        "data": "digits", "num_train": 1438, "num_val": 359, "epochs": 2, "accuracy": 0.9, "top5": 0.99,
        "curve": {
            "step": [21, 43], "loss": [2.0, 1.5], "val_loss": [1.0, 0.5], "accuracy": [0.5, 0.9], "top5": [0.9, 0.99],
            "lr": [0.04, 0.00001],
        },
        "speed": {"step": [21, 43], "images_per_second": [500.0, 600.0]},
    }  # fmt: skip
    page = training_section({"training": training})
    assert told(page) == {
        "Loss": "training, as regularized from 2.00 to 1.50; held-out from 1.00 to 0.50",
        "Accuracy on held-out images": "top-1 from 50.0\xa0% to 90.0\xa0%; top-5 from 90.0\xa0% to 99.0\xa0%",
        "Learning rate": "learning rate from 0.0400 to 0.0000",
        "Images per second": "speed from 500 to 600",
    }
    assert "top-1 90.0\xa0%, top-5 99.0\xa0% at the end" in page
    older = training | {
        "top5": None,
        "curve": {"step": [21, 43], "loss": [2.0, 1.5], "accuracy": [0.5, 0.9]},
        "speed": {},
    }
    assert list(told(training_section({"training": older}))) == ["Loss", "Accuracy on held-out images"]


def test_no_probabilities_are_no_table_rows() -> None:
    assert "<td" not in probabilities_section([], None)


def test_the_report_of_a_real_search_says_what_its_log_says(run: Path) -> None:
    (run / "search-speed.jsonl").write_text('{"step": 0, "memory_mib": 700.0}\n{"step": 1, "memory_mib": 800.0}\n')
    page = report(run).read_text()
    log = read_log(run / "search.jsonl")
    losses = [entry["weight_loss"] for entry in log]
    drawn, expected = ([entry[name] for entry in log if name in entry] for name in ("sampled_ms", "expected_ms"))
    assert 0 < len(drawn) < len(expected) == len(log), "the search of the fixture has a warm-up, then moves logits"
    found = told(page)
    assert found["Loss"].startswith(f"weights from {losses[0]:.2f} to {losses[-1]:.2f}; architecture from ")
    assert [float(number) for number in re.findall(r"[\d.]+", found["Latency, ms"])] == pytest.approx(
        [drawn[0], drawn[-1], expected[0], expected[-1]], abs=5e-4
    )
    assert found["Most memory so far, MiB"] == "memory from 700 to 800"
    document, derivation = (json.loads((run / f"{name}.json").read_text()) for name in ("report", "derivation"))
    last = {name: [round(p, 5) for p in values] for name, values in derivation["probabilities"].items()}
    assert last == log[-1]["probabilities"]
    for choice in document["probabilities"]:
        assert [o["probability"] for o in choice["options"]] == derivation["probabilities"][choice["choice"]]
    timed = re.search(r"Predicted latency by layer: ([^\"]*)", page)
    assert timed
    assert len(timed[1].split("; ")) == len(derivation["layers"]) + 1  # and the overhead


def test_new_facts_in_the_files_of_a_run_do_no_harm(run: Path) -> None:
    derivation = json.loads((run / "derivation.json").read_text())
    derivation |= {"method": {"name": "evolution"}, "candidates": [{"id": "x", "accuracy": 0.5}]}
    derivation["rounds"][-1] |= {"accuracy": 0.5}
    derivation["layers"][0] |= {"memory_mib": 1.5}
    derivation["accuracy"] |= {"searched": 0.5}
    del derivation["probabilities"][next(iter(derivation["probabilities"]))]
    (run / "derivation.json").write_text(json.dumps(derivation))
    document = json.loads(report(run).with_suffix(".json").read_text())
    assert document["rounds"][-1]["accuracy"] == 0.5
    assert len(document["probabilities"]) == len(derivation["probabilities"])
