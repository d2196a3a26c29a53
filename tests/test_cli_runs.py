"""The command line and runs: targets, data sets, run folders, and steps out of order."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hwnas.run import RunFolder
from hwnas.steps import tighten_run

Run = Callable[..., Any]


@pytest.fixture
def search(hwnas: Run, small: list[str], table: Path, tmp_path: Path) -> Run:
    """Searches for one epoch into ``tmp_path / "new"``; later options win over earlier ones."""
    fixed = ["search", *small, "--table", table, "--epochs", 1, "--output", tmp_path / "new"]
    return lambda *arguments: hwnas(*fixed, *arguments)


@pytest.fixture
def resume(hwnas: Run, small: list[str], profiled: Path, run: Path) -> Run:
    """Repeats the search that made ``run``."""
    fixed = ["search", *small, "--table", profiled, "--epochs", 1, "--output", run]
    return lambda *arguments: hwnas(*fixed, *arguments)


def edit_run(run: Path, **entries: Any) -> None:
    document = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(document | entries))


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- targets


@pytest.mark.parametrize("target", ["0.1", "0", "-3", "nan", "-inf"])
def test_target_that_no_network_reaches(search: Run, hwnas: Run, small: list[str], table: Path, target: str) -> None:
    reachable = re.search(r"reachable: (\S+) to (\S+) ms", hwnas("table", "check", table, *small).done())
    assert reachable is not None
    ended = search("--max-ms", target)
    smallest = f"the smallest reachable latency is {reachable[1]} ms and the largest {reachable[2]} ms"
    ended.failed(2, f"no network of space 'tiny-mbconv' runs in {float(target):g} ms", smallest)
    assert "seconds" not in ended.err
    assert not (table.parent / "new").exists()


def test_target_in_seconds(search: Run, table: Path) -> None:
    ended = search("--max-ms", 0.0004)
    ended.failed(2, "Is the target in seconds? 0.0004 s would be --max-ms 0.4.")
    assert not (table.parent / "new").exists()


def test_target_without_end(search: Run, table: Path) -> None:
    search("--max-ms", "inf").failed(2, "infinite limit", "--max-ms 20")
    search("--max-ms", "1e10").failed(2, "a limit of 1e+10 ms limits nothing", "--max-ms 20")
    assert not (table.parent / "new").exists()


# --- data


def write_folder(path: Path, num_classes: int, num_images: int) -> Path:
    """An image folder of noise."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in range(num_classes):
            (path / split / f"class{label}").mkdir(parents=True)
            for i in range(num_images):
                pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path / split / f"class{label}" / f"{i}.png")
    return path


def write_npz(path: Path, num_classes: int, num_images: int = 4, **replaced: np.ndarray) -> Path:
    """Noise, ``num_images`` a class."""
    labels = np.arange(num_images * num_classes) % num_classes
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 16, 16), dtype=np.uint8)
    np.savez(path, **{"x_train": images, "y_train": labels, "x_test": images, "y_test": labels} | replaced)
    return path


def test_data_that_is_not_there(search: Run, tmp_path: Path) -> None:
    search("--data", "digit").failed(2, "unknown data set 'digit'", "npz", "Did you mean 'digits'?")
    search("--data", "npz").failed(2, "'npz' lacks a path", "npz:PATH")
    search("--data", f"npz:{tmp_path}/absent.npz").failed(1, f"{tmp_path}/absent.npz is no file", "Check the path")
    search("--data", f"imagefolder:{tmp_path}/absent").failed(1, f"{tmp_path}/absent is no folder", "Check the path")
    assert not (tmp_path / "new").exists()


def test_empty_data(search: Run, tmp_path: Path) -> None:
    empty = tmp_path / "empty" / "train"
    empty.mkdir(parents=True)
    search("--data", f"imagefolder:{empty.parent}").failed(1, f"{empty} has no class folders", "at least two")
    data = write_folder(tmp_path / "data", 10, 1)
    (data / "val" / "class3" / "0.png").unlink()
    search("--data", f"imagefolder:{data}").failed(1, f"{data}/val/class3 has no images", "Add images")
    npz = write_npz(tmp_path / "empty.npz", 10, x_train=np.zeros((0, 16, 16), np.uint8))
    search("--data", f"npz:{npz}").failed(1, f"{npz}: x_train is empty", "at least one image")
    assert not (tmp_path / "new").exists()


def test_one_class(search: Run, tmp_path: Path) -> None:
    data, npz = write_folder(tmp_path / "data", 1, 1), write_npz(tmp_path / "one.npz", 1)
    search("--data", f"imagefolder:{data}").failed(1, f"{data}/train has one class, 'class0'", "at least two")
    search("--data", f"npz:{npz}").failed(1, f"{npz} has one class, '0'", "at least two")
    assert not (tmp_path / "new").exists()


def test_number_of_labels(search: Run, tmp_path: Path) -> None:
    npz = write_npz(tmp_path / "data.npz", 10, y_train=np.arange(39) % 10)
    search("--data", f"npz:{npz}").failed(1, f"{npz}: y_train has 39 labels, but x_train has 40 images")
    assert not (tmp_path / "new").exists()


def test_number_of_classes(search: Run, tmp_path: Path) -> None:
    npz = write_npz(tmp_path / "data.npz", 3)
    ended = search("--data", f"npz:{npz}")
    ended.failed(2, f"'npz:{npz}' has 3 classes, space 'tiny-mbconv' was built for 10", "Pass --num-classes 3")
    assert not (tmp_path / "new").exists()


def test_fewer_images_than_a_batch(search: Run, tmp_path: Path) -> None:
    npz = write_npz(tmp_path / "data.npz", 10)
    search("--data", f"npz:{npz}").failed(2, "batch size 64 is larger than the data set, which has 20 images")


def test_unreadable_image(search: Run, tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data", 10, 4)
    broken = data / "train" / "class7" / "2.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:50])
    arguments = ["--data", f"imagefolder:{data}", "--batch-size", 4]
    search(*arguments).failed(1, str(broken))
    broken.write_bytes(whole)
    assert "target met" in search(*arguments, "--resume").done()


# --- run folders


def test_existing_run_is_not_overwritten(resume: Run, run: Path) -> None:
    before = contents(run)
    resume().failed(1, f"{run} already holds this run", "Pass --resume", "choose another output")
    assert contents(run) == before


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--seed", 1], "another seed (0, asked now: 1)"),
        (["--epochs", 2], "another recipe ({'name': 'gates', 'arguments': {'num_epochs': 1}}, asked now:"),
        (["--max-ms", 0.5], "another max_ms ("),
        (["--other-device"], "another other_device (False, asked now: True)"),
    ],
)
@pytest.mark.parametrize("flags", [[], ["--resume"]])
def test_run_that_was_asked_something_else(
    resume: Run, run: Path, arguments: list[Any], what: str, flags: list[str]
) -> None:
    before = contents(run)
    resume(*arguments, *flags).failed(1, f"{run} holds a run with {what}", "Choose another output")
    assert contents(run) == before


def test_run_of_another_space(hwnas: Run, resume: Run, run: Path) -> None:
    config = json.loads((run / "run.json").read_text())["config"]
    edit_run(run, config=config | {"space": config["space"] | {"fingerprint": "0123"}})
    before = contents(run)
    resume("--resume").failed(1, f"{run} holds a run with another space", "'0123'", "Choose another output")
    hwnas("train", run).failed(1, f"{run} was made with another definition of space 'tiny-mbconv' (0123, here")
    assert contents(run) == before


@pytest.mark.parametrize(
    ("entries", "message"),
    [({"format_version": 99}, "made by another version of hwnas; this one reads format 2"), (None, "read as JSON")],
)
def test_run_of_another_format(
    hwnas: Run, resume: Run, run: Path, entries: dict[str, Any] | None, message: str
) -> None:
    if entries is None:
        (run / "run.json").write_text("{")
    else:
        edit_run(run, **entries)
    before = contents(run)
    for ended in (resume("--resume"), hwnas("train", run), hwnas("export", run), hwnas("verify", run)):
        ended.failed(1, str(run), message)
    assert contents(run) == before


def test_table_changed_since(hwnas: Run, small: list[str], run: Path, table: Path, profiled: Path) -> None:
    config = json.loads((run / "run.json").read_text())["config"]
    edit_run(run, config=config | {"table": config["table"] | {"path": str(table)}})
    again = ["search", *small, "--table", table, "--epochs", 1, "--output", run, "--resume"]
    hwnas("train", run, "--epochs", 1).done()

    original = table.with_suffix(".json").read_text()
    table.with_suffix(".json").write_text(original.replace('"provenance": {', '"provenance": {"note": "mine",'))
    before = contents(run)
    hwnas(*again).failed(1, f"{run} holds a run with another table", "Choose another output")
    hwnas("export", run).failed(1, f"latency table {table} has changed since {run} was started", "Restore it")
    assert contents(run) == before
    table.with_suffix(".json").write_text(original)
    assert "target met" in hwnas(*again).done()


def test_damaged_checkpoint(resume: Run, run: Path) -> None:
    whole = (run / "search.pt").read_bytes()
    (run / "search.pt").write_bytes(whole[:1000])
    resume("--resume").failed(1, f"checkpoint {run}/search.pt cannot be read", "Delete it to start over")
    (run / "search.pt").unlink()
    assert "target met" in resume("--resume").done()


@pytest.mark.parametrize("below", ["file/run", "/proc/hwnas/run"])
def test_output_that_cannot_be_written(search: Run, tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("kept")
    output = tmp_path / below  # an absolute path stays what it is
    search("--output", output).failed(1, f"cannot create {output}", "folder you can write to")
    assert (tmp_path / "file").read_text() == "kept"


# --- steps out of order


@pytest.mark.parametrize("command", ["train", "export", "verify", "report"])
def test_no_run(hwnas: Run, tmp_path: Path, command: str) -> None:
    ended = hwnas(command, tmp_path / "absent")
    ended.failed(1, f"{tmp_path}/absent is not a run folder (no run.json)", "'hwnas search --output")
    assert not (tmp_path / "absent").exists()


def test_train_before_the_search_is_finished(hwnas: Run, resume: Run, run: Path) -> None:
    found = (run / "architecture.json").read_bytes()
    (run / "architecture.json").unlink()  # as a kill between the last two files leaves it
    for command in ("train", "export"):
        hwnas(command, run).failed(1, f"{run} has no architecture yet", "'hwnas search --resume' to the end")
    resume("--resume").done()
    assert (run / "architecture.json").read_bytes() == found


def test_export_before_train_and_verify_before_export(hwnas: Run, run: Path) -> None:
    before = contents(run)
    hwnas("export", run).failed(1, f"{run} has no trained weights. Run 'hwnas train {run}' first.")
    hwnas("verify", run).failed(1, f"{run} has no model.onnx. Run 'hwnas export {run}' first.")
    assert contents(run) == before


def test_verify_on_a_runtime_that_does_not_run_files(hwnas: Run, run: Path) -> None:
    shutil.copy(run / "run.json", run / "model.onnx")  # its content does not matter
    hwnas("verify", run).failed(1, "'analytic', runs PyTorch modules and cannot run", "such as onnxruntime")
    assert not (run / "verification.json").exists()


def test_trained_run(hwnas: Run, run: Path, tmp_path: Path) -> None:
    train = ["train", run, "--epochs", 1]
    first = hwnas(*train).done()
    assert "training 22/22" in first  # 1437 images // 64
    weights = (run / "weights.safetensors").read_bytes()
    again = hwnas(*train).done()
    assert "training " not in again, "it is done already"
    assert again == first.splitlines(keepends=True)[-1]
    assert (run / "weights.safetensors").read_bytes() == weights

    npz, other = write_npz(tmp_path / "data.npz", 10, 7), f"checkpoint {run}/training.pt is of another training"
    hwnas("train", run, "--epochs", 2).failed(1, other, "num_epochs=1", "num_epochs=2", "Delete it to train anew")
    hwnas(*train, "--data", f"npz:{npz}").failed(1, other, "data=training 1438", "data=training 70")
    hwnas(*train, "--batch-size", 10**6).failed(2, "batch size 1000000 is larger than the data set")
    hwnas("train", run, "--epochs", 0).failed(2, "at least 1 epoch", "got 0")
    hwnas("export", run, "--precision", "fp8").failed(2, "exporter 'onnx' has no precision 'fp8'; it takes fp32")
    assert (run / "weights.safetensors").read_bytes() == weights

    (run / "weights.safetensors").write_bytes(weights[:100])
    hwnas("export", run).failed(1, f"{run}/weights.safetensors cannot be read", f"Run 'hwnas train {run}' again")


def test_a_trained_network_that_misses_is_derived_again(
    run: Path, toyprof: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(toyprof)
    folder = RunFolder.open(run)
    first, target = folder.architecture(), folder.budget().max_ms
    folder.file("training.pt").touch()
    (tightened,) = tighten_run(folder, 1.2 * target)
    predicted = folder.budget().model.exact_ms
    assert tightened.limit_ms == pytest.approx(0.98 * predicted(first) / 1.2)
    assert tightened.predicted_ms <= tightened.limit_ms < predicted(first)
    assert folder.architecture() == tightened.architecture != first
    rounds = json.loads(folder.file("derivation.json").read_text())["rounds"]
    assert [each["id"] for each in rounds] == [first.id, tightened.architecture.id]
    assert (rounds[0]["measured_ms"], rounds[0]["met"]) == (1.2 * target, False)
    assert not folder.file("training.pt").exists(), "a checkpoint of the other network"
    assert tighten_run(folder, 100 * target) == [], "nothing is that fast"
