"""What is said while long work goes on: figures on the terminal, logs that survive a kill, pictures in TensorBoard."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hwnas import console
from hwnas.console import Reporter, figures_line
from hwnas.data import load_data
from hwnas.errors import RunError
from hwnas.latency.budget import Budget, feasible_range_ms
from hwnas.metrics import Meter, Progress, RunLog, heat_map, read_log
from hwnas.recipes import create_recipe
from hwnas.run import RunFolder
from hwnas.search.loop import search
from hwnas.testing.toys import toy_latency_model

CPU = torch.device("cpu")
PROBABILITIES = {"layer1": [1.0, 0.0, 0.5], "layer2": [0.25, 0.75]}
WHITE, BLUE, GREY = [255, 255, 255], [8, 48, 107], [160, 160, 160]


def entry(step: int) -> dict[str, Any]:
    return {"weight_loss": 2.0 - step / 100, "note": step, "probabilities": PROBABILITIES}


def written(folder: Path, steps: range, **options: Any) -> None:
    """Logs steps, every odd one with a sampled latency, and costs that no repetition repeats."""
    with RunLog(folder, "work", start_step=steps.start, **options) as log:
        for step in steps:
            log.sample({"sampled_ms": float(step)} if step % 2 else {})
            log.add(step, entry(step), {"images_per_second": float(np.random.default_rng().random())})


def board(folder: Path) -> EventAccumulator:
    read = EventAccumulator(str(folder / "tensorboard" / "work"), size_guidance={"images": 0, "histograms": 0})
    return read.Reload()


# --- logs


def test_a_log_is_one_object_a_step_without_what_no_repetition_repeats(tmp_path: Path) -> None:
    written(tmp_path, range(3))
    lines = (tmp_path / "work.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": step, **entry(step)} for step in range(3)]
    costs = read_log(tmp_path / "work-speed.jsonl")
    assert [list(each) for each in costs] == [["step", "images_per_second"]] * 3


@pytest.mark.parametrize("start", [0, 4, 6])
def test_a_log_that_was_killed_and_resumed_equals_a_whole_one(start: int, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    written(whole, range(10))
    written(broken, range(6))
    for name in ("work.jsonl", "work-speed.jsonl"):
        with (broken / name).open("a") as file:
            file.write('{"step": 6, "weig')  # killed in the middle of a line
    written(broken, range(start, 10))
    assert (whole / "work.jsonl").read_bytes() == (broken / "work.jsonl").read_bytes()
    assert [each["step"] for each in read_log(broken / "work-speed.jsonl")] == list(range(10))


def test_a_log_without_costs_has_one_file_and_one_without_steps_is_empty(tmp_path: Path) -> None:
    with RunLog(tmp_path, "work"):
        pass
    assert read_log(tmp_path / "work.jsonl") == []
    assert [path.name for path in tmp_path.glob("*.jsonl")] == ["work.jsonl"]


@pytest.mark.parametrize("line", ["{", "[]", "3", "{}", "\x00\x00"])
def test_a_damaged_line_is_named(line: str, tmp_path: Path) -> None:
    (tmp_path / "work.jsonl").write_text(f'{{"step": 0}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(RunError, match=r"line 2 of .*work\.jsonl is no entry"):
        read_log(tmp_path / "work.jsonl")


# --- TensorBoard


def test_tensorboard_has_every_number_and_a_picture_now_and_then(tmp_path: Path) -> None:
    written(tmp_path, range(45), picture_every=20)
    read = board(tmp_path)
    assert set(read.Tags()["scalars"]) == {"weight_loss", "images_per_second"}
    assert [event.value for event in read.Scalars("weight_loss")] == pytest.approx([2 - s / 100 for s in range(45)])
    images = read.Images("probabilities/heat_map")
    assert [event.step for event in images] == [0, 20, 40, 44], "every twentieth, and the last"
    with Image.open(io.BytesIO(images[-1].encoded_image_string)) as image:
        assert np.array_equal(np.asarray(image), heat_map(list(PROBABILITIES.values())))
    histograms = read.Histograms("sampled_ms/histogram")
    # The odd steps since the last histogram; at step 0 there was none yet.
    assert [(e.step, e.histogram_value.num, e.histogram_value.sum) for e in histograms] == [
        (20, 10, sum(range(1, 20, 2))),
        (40, 10, sum(range(21, 40, 2))),
        (44, 2, 41 + 43),
    ]


def test_pictures_of_a_resumed_log_come_at_the_same_steps(tmp_path: Path) -> None:
    written(tmp_path, range(7), picture_every=4)
    written(tmp_path, range(6, 12), picture_every=4)
    assert {event.step for event in board(tmp_path).Images("probabilities/heat_map")} >= {0, 4, 8, 11}


def test_what_was_not_logged_is_not_drawn(tmp_path: Path) -> None:
    with RunLog(tmp_path, "work", picture_every=1) as log:
        for step in range(2):
            log.add(step, {"loss": 1.0, "probabilities": {}})
    tags = board(tmp_path).Tags()
    assert (tags["images"], tags["histograms"], tags["scalars"]) == ([], [], ["loss"])


def test_heat_map_has_a_square_for_every_option() -> None:
    picture = heat_map(list(PROBABILITIES.values()), cell=4)
    assert picture.shape == (2 * 4, 3 * 4, 3)
    assert picture.dtype == np.uint8
    squares = picture[::4, ::4].tolist()
    half = [round((white + blue) / 2) for white, blue in zip(WHITE, BLUE, strict=True)]  # of 131.5, 151.5 and 181.0
    assert squares[0] == [BLUE, WHITE, half]
    # A quarter and three quarters of the way; layer2 has no third option.
    assert [square[0] for square in squares[1][:2]] == [round(255 - 0.25 * 247), round(255 - 0.75 * 247)]
    assert squares[1][2] == GREY
    assert (picture[3::4] == GREY).all()
    assert (picture[:, 3::4] == GREY).all()


# --- progress


class Watcher:
    """Keeps what it is shown."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, int, dict[str, float]]] = []

    def __call__(self, what: str, done: int, total: int) -> None:
        raise AssertionError("a callback that shows figures is given them")

    def show(self, what: str, done: int, total: int, figures: Mapping[str, float]) -> None:
        self.seen.append((what, done, total, dict(figures)))


def timed(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> None:
    clock: Iterator[float] = iter(seconds)
    monkeypatch.setattr("hwnas.metrics.time.monotonic", lambda: next(clock))


def test_meter_gives_figures_to_those_who_show_them(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, 0.0, 1.0, 3.0, 4.0)
    watcher = Watcher()
    meter = Meter(watcher, "searching", images_per_step=60, device=CPU, target_ms=20.0, window=2)
    assert "images_per_second" not in meter.costs(), "nothing is done yet"
    for step in range(3):
        meter(step + 1, 3, {"weight_loss": 1.0 - step / 4})
    assert [seen[:3] for seen in watcher.seen] == [("searching", step, 3) for step in (1, 2, 3)]
    figures = [seen[3] for seen in watcher.seen]
    assert [each["weight_loss"] for each in figures] == [1.0, 0.75, 0.5]
    assert {each["target_ms"] for each in figures} == {20.0}
    # 60 images in 1 s; 120 in 3 s; then the last two steps: 120 from second 1 to second 4
    assert [each["images_per_second"] for each in figures] == [60.0, 40.0, 40.0]


def test_meter_calls_any_function_of_three_arguments() -> None:
    calls = []

    def progress(what: str, done: int, total: int) -> None:
        calls.append((what, done, total))

    callback: Progress = progress
    Meter(callback, "training", images_per_step=8, device=CPU)(1, 2, {"loss": 1.0})
    assert calls == [("training", 1, 2)]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells the memory in use to compare with")
def test_memory_is_that_of_the_process() -> None:
    meter = Meter(Watcher(), "x", images_per_step=1, device=CPU)
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    # The most so far is at least what is in use now; the kernel counts in batches, hence the tenth.
    assert (
        0.9 * resident < meter.costs()["memory_mib"] < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_memory_is_that_of_the_gpu() -> None:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    held = torch.zeros(64 * 2**20, dtype=torch.uint8, device="cuda")
    del held
    found = Meter(Watcher(), "x", images_per_step=1, device=torch.device("cuda")).costs()["memory_mib"]
    assert found == pytest.approx(before / 2**20 + 64, abs=1)


FIGURES = {
    "weight_loss": 2.287, "weight_accuracy": 0.5612, "expected_ms": 0.4029, "sampled_ms": 0.5, "target_ms": 0.423,
    "entropy": 1.5426, "images_per_second": 1234.4, "memory_mib": 1234.4,
}  # fmt: skip


def test_figures_fit_a_line() -> None:
    line = figures_line(FIGURES)
    assert line == "loss 2.29, acc 56.1%, 0.403 of 0.423 ms, entropy 1.54, 1234 images/s, 1234 MiB"
    assert len(line) <= 80 - len("  ")
    assert figures_line({"loss": 1.0, "accuracy": 0.5, "lr": 0.1}) == "loss 1.00, acc 50.0%"
    assert figures_line({"expected_ms": 12.3456}) == "12.3 ms"
    assert figures_line({"expected_ms": 1234.5, "target_ms": 999.6}) == "1234 of 1000 ms"
    assert figures_line({"memory_mib": 20480.0}) == "20.0 GiB"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Output of a terminal of 80 columns."""
    file = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=file, force_terminal=True, width=80, soft_wrap=True))
    return file


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Output where there is no terminal; every call is due."""
    file = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=file, force_terminal=False, width=80, soft_wrap=True))
    monkeypatch.setattr(console, "LINE_SECONDS", -1.0)
    return file


def test_terminal_shows_figures_below_the_bar_and_nothing_wraps(terminal: io.StringIO) -> None:
    with Reporter() as reporter:
        reporter("measuring the unstable again", 110_000, 110_160)
        reporter.show("searching", 65_999, 66_000, FIGURES)
        reporter.show("searching", 66_000, 66_000, {"memory_mib": 1e7, "expected_ms": 12345.0})
    rows = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", row).strip() for row in re.split(r"[\r\n]", terminal.getvalue())]
    assert max(map(len, rows)) <= 80
    last = [row for row in rows if row][-3:]
    assert last[0].startswith("measuring the unstable again")
    assert "110000/110160" in last[0]
    assert last[1].startswith("searching")
    assert "66000/66000" in last[1]
    assert last[2].startswith("loss 2.29, acc 56.1%, 12345 of 0.423 ms, entropy 1.54")


def test_lines_name_the_figures_and_keep_those_that_come_seldom(pipe: io.StringIO) -> None:
    with Reporter() as reporter:
        reporter.show("searching", 1, 2, {"weight_loss": 2.0, "expected_ms": 12.3, "target_ms": 20.0})
        reporter.show("searching", 2, 2, {"weight_loss": 1.0})
        reporter("exporting", 1, 1)
        reporter.show("training", 2, 2, {"accuracy": 0.5})
        reporter.show("training", 1, 2, {"loss": 3.0})  # another training
    text = re.sub(r", about \d+ s left", "", pipe.getvalue())
    assert text.splitlines() == [
        "searching 1/2", "  loss 2.00, 12.3 of 20 ms", "searching 2/2", "  loss 1.00, 12.3 of 20 ms",
        "exporting 1/1", "training 2/2", "  acc 50.0%", "training 1/2", "  loss 3.00",
    ]  # fmt: skip


@pytest.mark.parametrize(("rank", "speaks"), [(None, True), ("0", True), ("1", False)])
def test_only_the_first_rank_speaks_but_all_tell_errors(
    hwnas: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, rank: str | None, speaks: bool
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    assert ("proxylessnas" in hwnas("list", "spaces").done()) == speaks
    hwnas("search", "--space", "absent", "--table", "no.csv", "--output", "run").failed(2, "unknown space 'absent'")


# --- a search


def test_a_search_is_watched(tmp_path: Path) -> None:
    _, model = toy_latency_model()
    low, high = feasible_range_ms(model)
    watcher, run = Watcher(), RunFolder(tmp_path)
    data, recipe = load_data("digits", resolution=8), create_recipe("gates", num_epochs=2, batch_size=64)
    search(Budget(model, (low + high) / 2), data, recipe, run, progress=watcher)
    entries, costs = (read_log(run.file(name)) for name in ("search.jsonl", "search-speed.jsonl"))
    assert [each["step"] for each in costs] == [each["step"] for each in entries]
    assert not {"images_per_second", "memory_mib"} & set().union(*entries)
    what, done, total, figures = watcher.seen[-1]
    assert (what, done) == ("searching", total)
    assert {"weight_loss", "weight_accuracy", "entropy", "images_per_second", "memory_mib"} <= set(figures)
    assert figures["target_ms"] == (low + high) / 2
    read = EventAccumulator(str(tmp_path / "tensorboard" / "search")).Reload()
    assert read.Tags()["images"] == ["probabilities/heat_map"]
    shown = {"weight_loss", "weight_accuracy", "expected_ms", "target_ms", "entropy", "images_per_second", "memory_mib"}
    assert shown <= set(read.Tags()["scalars"])
    assert read.Scalars("target_ms")[-1].value == pytest.approx((low + high) / 2)
    sampled = [seen[3]["sampled_ms"] for seen in watcher.seen if "sampled_ms" in seen[3]]
    assert sampled
    histograms = read.Histograms("sampled_ms/histogram")
    assert sum(event.histogram_value.num for event in histograms) == len(sampled)
    assert sum(event.histogram_value.sum for event in histograms) == pytest.approx(sum(sampled))
