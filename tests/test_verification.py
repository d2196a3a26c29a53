"""Proofs of exported files: what they compare and measure, and that broken bounds fail."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hwnas.deploy import load
from hwnas.deploy.numerics import BOUNDS, compare

from hwnas.compute import Compute
from hwnas.errors import HwnasError, OtherDeviceError
from hwnas.latency import device
from hwnas.latency.environment import Environment
from hwnas.latency.measurement import Measurement
from hwnas.latency.table import LatencyTable
from hwnas.plugins import PROFILERS, available, create_profiler
from hwnas.run import RunFolder, table_hash
from hwnas.space import SearchSpace, create_space
from hwnas.steps import train_run
from hwnas.training import TrainingOptions

pytestmark = pytest.mark.xdist_group("verification")  # on one worker, so that the run is made once

Run = Callable[..., Any]

ENTRY_MS, TARGET_MS = 5.0, 100.0
"""So slow that any machine keeps the target of this tiny network."""

NAMES = {"fp32": "model.onnx", "fp16": "model-fp16.onnx", "int8": "model-int8.onnx"}


def write_colours(path: Path) -> None:
    """320 training images and 260 held-out ones of ten colours, quick to learn."""
    rng, labels = np.random.default_rng(0), np.arange(580) % 10
    colours = rng.permutation(np.stack(np.meshgrid([40, 128, 215], [40, 128, 215], [40, 215]), -1).reshape(-1, 3))[:10]
    images = (colours[labels][:, None, None] + rng.normal(0, 20, (580, 16, 16, 3))).clip(0, 255).astype(np.uint8)
    arrays: dict[str, Any] = {
        "x_train": images[:320],
        "y_train": labels[:320],
        "x_test": images[320:],
        "y_test": labels[320:],
    }
    np.savez(path, **arrays)


def table_of(space: SearchSpace, ms: float, path: Path, environment: Environment | None = None) -> dict[str, str]:
    """A table of this processor, or elsewhere, in which every operator takes that long, as a run names it."""
    entries = {s: Measurement(ms, ms, ms, 0.01, 100) for s in space.signatures()}
    table = LatencyTable(environment or create_profiler("onnxruntime").environment(), entries).save(path)
    return {"path": str(path), "sha256": table_hash(table)}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, hwnas_once: Run) -> Path:
    """A trained run of this processor with files in three precisions; to be copied, not changed."""
    folder = tmp_path_factory.mktemp("exported")
    space = create_space("tiny-mbconv", resolution=16, width=0.25)
    config = {
        "space": space.describe(),
        "table": table_of(space, ENTRY_MS, folder / "table.csv"),
        "max_ms": TARGET_MS,
        "recipe": {"name": "gates", "arguments": {}},
        "data": f"npz:{folder / 'colours.npz'}",
    } | {"seed": 0, "other_device": False, "classes": None}
    run = RunFolder.create(folder / "run", config, resume=False)
    run.save_architecture(space.architecture([0, len(space.choices[1].options) - 1, *[1] * (len(space.choices) - 2)]))
    write_colours(folder / "colours.npz")
    train_run(run, options=TrainingOptions(num_epochs=10, batch_size=32), compute=Compute(device="cpu"))
    hwnas_once("export", run.path, "--dynamic-batch").done()
    hwnas_once("export", run.path, "--precision", "fp16").done()
    hwnas_once("export", run.path, "--precision", "int8", "--batch", 3, "--opset", 18).done()
    return run.path


@pytest.fixture
def run(exported: Path, tmp_path: Path) -> Path:
    """A copy of that run, to be changed."""
    return Path(shutil.copytree(exported, tmp_path / "run", ignore=shutil.ignore_patterns("*.pt", "tensorboard")))


@pytest.fixture(scope="module")
def verified(exported: Path, tmp_path_factory: pytest.TempPathFactory, hwnas_once: Run) -> tuple[dict[str, Any], str]:
    """What ``hwnas verify`` writes about that run, and prints."""
    run = Path(shutil.copytree(exported, tmp_path_factory.mktemp("verified") / "run"))
    out = hwnas_once("verify", run).done()
    return json.loads((run / "verification.json").read_text()), out


def change_config(run: Path, **changes: Any) -> None:
    document = json.loads((run / "run.json").read_text())
    document["config"] |= changes
    (run / "run.json").write_text(json.dumps(document))


def edit(path: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)


def scale_classifier(model: onnx.ModelProto, factor: float) -> None:
    weight = next(w for w in model.graph.initializer if "classifier" in w.name and len(w.dims) == 2)
    weight.CopyFrom(onnx.numpy_helper.from_array(factor * onnx.numpy_helper.to_array(weight), weight.name))


def test_every_option_of_export_has_its_effect(exported: Path) -> None:
    models = {precision: onnx.load(exported / name) for precision, name in NAMES.items()}
    batches = {name: model.graph.input[0].type.tensor_type.shape.dim[0] for name, model in models.items()}
    assert (batches["fp32"].dim_param, batches["fp16"].dim_value, batches["int8"].dim_value) == ("batch", 1, 3)
    assert models["int8"].opset_import[0].version == 18
    sizes = {name: (exported / NAMES[name]).stat().st_size for name in NAMES}
    assert sizes["fp16"] < 0.7 * sizes["fp32"]


def test_the_metadata_of_every_precision_say_how_to_use_the_file(exported: Path) -> None:
    run = RunFolder.open(exported)
    training = json.loads(run.file("training.json").read_text())
    for precision, name in NAMES.items():
        found = {each.key: each.value for each in onnx.load(exported / name).metadata_props}
        assert found["precision"] == precision
        assert json.loads(found["architecture"]) == json.loads(run.architecture().to_json())
        assert found["architecture_id"] == run.architecture().id
        assert found["classes"].split("\n") == training["classes"]
        assert [float(each) for each in found["mean"].split()] == training["mean"]
        assert [float(each) for each in found["std"].split()] == training["std"]
        assert (found["space"], found["resolution"], found["input_range"]) == ("tiny-mbconv", "16", "0 1")
        assert float(found["predicted_ms"]) == run.budget().model.exact_ms(run.architecture())
        assert (found["latency_table"], found["latency_table_sha256"]) == (
            run.table().name,
            run.config["table"]["sha256"],
        )


def test_all_precisions_are_verified(verified: tuple[dict[str, Any], str], exported: Path) -> None:
    proof, out = verified
    assert [each["file"] for each in proof["files"]] == list(NAMES.values())
    assert all(name in out for name in NAMES.values())
    assert ": met" in out
    assert proof["failures"] == []
    for each, name in zip(proof["files"], NAMES, strict=True):
        numerics, latency = each["numerics"], each["latency"]
        assert (each["precision"], each["bytes"]) == (name, (exported / NAMES[name]).stat().st_size)
        assert each["environment"]["precision"] == name
        assert each["environment"]["batch"] == (3 if name == "int8" else 1)
        assert each["note"] == "" or (name, "no fp16" in each["note"]) == ("fp16", True)
        assert numerics["num_images"] == 256
        assert numerics["accuracy_pytorch"] == proof["numerics"]["accuracy_pytorch"] > 0.9
        assert 0 < latency["p50_ms"] <= latency["p90_ms"] <= latency["p99_ms"]
        assert ("met" in latency) is (name == "fp32"), "the table is in fp32 and says nothing about others"
    errors = [each["numerics"]["mean_difference"] for each in proof["files"]]
    assert 0 < errors[0] < errors[1] < errors[2]
    assert {name: proof[name] for name in proof["files"][0] if name != "failures"} == {
        name: value for name, value in proof["files"][0].items() if name != "failures"
    }


def test_layers_are_timed_apart(verified: tuple[dict[str, Any], str], exported: Path) -> None:
    run = RunFolder.open(exported)
    space, architecture = run.space(), run.architecture()
    for each in verified[0]["files"]:
        rows = each["layers"]
        assert [row["name"] for row in rows] == [*(layer.name for layer in space.layers), "overhead"]
        measured = {row["name"]: row["measured_ms"] for row in rows}
        for layer, operator in zip(space.layers, space.operators(architecture), strict=True):
            idle = operator.op == "skip" and operator.in_shape == operator.out_shape
            assert (measured[layer.name] == 0) is idle, layer.name
        predicted = [row["predicted_ms"] for row in rows]
        if each["precision"] == "fp32":
            assert sum(predicted) == pytest.approx(run.budget().model.exact_ms(architecture))
            # A profiler of nodes slows the network down; on a busy machine the two are not timed in the same moment.
            assert sum(measured.values()) < 20 * each["latency"]["p99_ms"]
        else:
            assert predicted == [None] * len(rows)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_file_that_computes_otherwise_fails(hwnas: Run, run: Path, precision: str) -> None:
    for other in set(NAMES) - {"fp32", precision}:
        (run / NAMES[other]).unlink()
    if precision == "fp32":
        edit(run / "model.onnx", lambda model: scale_classifier(model, 1.001))
        message = f"{run}: model.onnx: outputs differ by 1.0"
    else:
        edit(run / "model-int8.onnx", lambda model: scale_classifier(model, 0))
        message = f"{run}: model-int8.onnx: the mean cosine is"
    hwnas("verify", run).failed(1, message)
    proof = json.loads((run / "verification.json").read_text())
    (failure,) = {each["file"] for each in proof["files"] if each["failures"]}
    assert failure == NAMES[precision]


def test_a_target_that_is_missed_fails(hwnas: Run, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "NUM_TRIES", 1)
    table = table_of(RunFolder.open(run).space(), 1e-3, tmp_path / "quick.csv")
    change_config(run, max_ms=0.0101, table=table)
    for name in ("model-fp16.onnx", "model-int8.onnx"):
        (run / name).unlink()
    hwnas("verify", run).failed(1, "model.onnx: measured ", "exceeds the target of 0.0101 ms")


def test_files_that_do_not_belong_to_the_run(hwnas: Run, run: Path) -> None:
    edit(run / "model-fp16.onnx", lambda model: onnx.helper.set_model_props(model, {"weights_sha256": "0"}))
    again = f"Run 'hwnas export {run} --precision fp16' again"
    hwnas("verify", run).failed(1, "model-fp16.onnx was exported from other weights", again, "or delete it")
    (run / "model-fp16.onnx").write_bytes(b"no network")
    hwnas("verify", run).failed(1, f"{run}/model-fp16.onnx is no network in ONNX", again)
    shutil.copy(run / "model-int8.onnx", run / "model.onnx")
    (run / "model-fp16.onnx").unlink()
    hwnas("verify", run).failed(1, "model.onnx runs 3 images at a time", "--batch 1", "--dynamic-batch")
    assert not (run / "verification.json").exists()


@pytest.mark.tensorrt
@pytest.mark.skipif(bool(available(PROFILERS)["tensorrt-rtx"].missing), reason="needs TensorRT for RTX")
def test_an_engine_is_proven_or_listed_with_the_reason(hwnas: Run, run: Path) -> None:
    for name in ("model-fp16.onnx", "model-int8.onnx"):
        (run / name).unlink()
    flags = "--exporter tensorrt --flavour tensorrt-rtx --precision fp16"
    hwnas("export", run, *flags.split()).done()
    out = hwnas("verify", run, "--images", 20).done()
    proof, path = json.loads((run / "verification.json").read_text()), run / "model-fp16.engine"
    reason = ""
    try:
        load(path).close()
    except OtherDeviceError as error:
        reason = str(error)
    if reason:
        row = {"file": path.name, "precision": "fp16", "bytes": path.stat().st_size, "reason": reason}
        assert proof["not_run"] == [{**row, "failures": []}]
        assert f"not run: {reason}" in out
        assert [each["file"] for each in proof["files"]] == ["model.onnx"]
    else:
        assert proof["not_run"] == []
        engine = proof["files"][1]
        assert (engine["file"], engine["environment"]["runtime"]) == (path.name, "tensorrt-rtx")
        assert engine["numerics"]["num_images"] == 20
        assert 0 < engine["latency"]["p50_ms"] <= engine["latency"]["p99_ms"]
    assert proof["failures"] == []
    document = json.loads((run / "model-fp16.engine.json").read_text())
    document["metadata"]["weights_sha256"] = "0"
    (run / "model-fp16.engine.json").write_text(json.dumps(document))
    again = f"Run 'hwnas export {run} {flags}' again"
    hwnas("verify", run).failed(1, "model-fp16.engine was exported from other weights", again)
    path.write_bytes(path.read_bytes()[:-1])
    hwnas("verify", run).failed(1, "model-fp16.engine is not the engine that", "Build it again")


def test_a_table_of_tensorrt_asks_for_an_engine(hwnas: Run, run: Path, tmp_path: Path) -> None:
    elsewhere = Environment("NVIDIA L4", "tensorrt", "10.13.0", precision="fp16", threads=0, mode="enqueue")
    change_config(run, table=table_of(RunFolder.open(run).space(), 1, tmp_path / "gpu.csv", elsewhere))
    command = f"Run 'hwnas export {run} --exporter tensorrt --flavour tensorrt --precision fp16' first"
    hwnas("verify", run).failed(1, f"{run} has no model-fp16.engine. {command}")


def test_of_a_device_elsewhere_the_numbers_alone_are_proven(hwnas: Run, run: Path, tmp_path: Path) -> None:
    elsewhere = replace(create_profiler("onnxruntime").environment(), device="Raspberry Pi 5")
    change_config(run, table=table_of(RunFolder.open(run).space(), ENTRY_MS, tmp_path / "pi.csv", elsewhere))
    hwnas("verify", run).failed(1, "Raspberry Pi 5")
    change_config(run, other_device=True)
    assert "not measured: this is not the table's device" in hwnas("verify", run).done()
    proof = json.loads((run / "verification.json").read_text())
    assert [each["file"] for each in proof["files"]] == list(NAMES.values())
    assert (proof["latency"]["measured_ms"], proof["latency"]["met"]) == (None, None)
    assert proof["latency"]["predicted_ms"] > 0
    (run / "model.onnx").write_bytes((run / "model-int8.onnx").read_bytes())
    hwnas("verify", run).failed(1, "model.onnx: outputs differ")


def figures(ours: Any, theirs: Any, precision: str) -> dict[str, Any]:
    return compare(np.asarray(ours, float), np.asarray(theirs, float), np.asarray([0, 1]), precision=precision)


def test_figures_of_a_comparison() -> None:
    found = figures([[3, 4], [0, 1]], [[3, 4.5], [1, 0]], "int8")
    assert (found["max_difference"], found["mean_difference"]) == (1, (0.5 + 1 + 1) / 4)
    assert found["max_relative_difference"] == 1 / 4
    # the first image: 27 / (5 * |(3, 4.5)|); the second is orthogonal
    first = 27 / (5 * np.hypot(3, 4.5))
    assert found["min_cosine"] == 0
    assert found["mean_cosine"] == pytest.approx(first / 2)
    assert (found["top1_agreement"], found["accuracy_pytorch"], found["accuracy_exported"]) == (0.5, 0.5, 0)
    assert [failure.split(";")[0] for failure in found["failures"]] == [
        f"the mean cosine is {first / 2:.6f}",
        "top-1 agrees on 50.00%",
    ]


def test_a_device_that_rounds_is_held_to_the_bounds_of_what_it_computes() -> None:
    ours, theirs = [[3, 4], [1, 0]], [[3, 4.004], [1, 0]]  # 0.001 of the largest, about two roundings to ten bits
    broken = {precision: bool(figures(ours, theirs, precision)["failures"]) for precision in BOUNDS}
    assert broken == {"fp32": True, "tf32": False, "fp16": False, "bf16": False, "int8": False}


@pytest.mark.parametrize("precision", BOUNDS)
def test_numbers_that_are_none_break_every_bound(precision: str) -> None:
    found = figures([[3, 4], [0, 1]], [[np.nan, np.nan], [0, 1]], precision)
    assert any("mean cosine is nan" in failure for failure in found["failures"])
    assert not figures([[3, 4], [0, 1]], [[3, 4], [0, 1]], precision)["failures"]


def test_a_phone_or_a_board_proves_its_files_itself(run: Path, hwnas: Run, tmp_path: Path) -> None:
    """Numbers and milliseconds of every file are those of the table's device, here this machine treated like one."""
    try:
        there = create_profiler("onnxruntime", device="local").environment()
    except HwnasError as error:
        pytest.skip(str(error))
    opened = RunFolder.open(run)
    change_config(run, table=table_of(opened.space(), ENTRY_MS, tmp_path / "there.csv", there))
    hwnas("verify", run, "--images", 64).done()
    proof = json.loads((run / "verification.json").read_text())
    files = {each["file"]: each for each in proof["files"]}
    assert proof["file"] == NAMES["fp32"]
    assert set(files) >= {NAMES["fp32"], NAMES["int8"]}
    assert {each["environment"]["mode"] for each in files.values()} == {there.mode}
    assert proof["latency"]["met"]
    assert files[NAMES["fp32"]]["numerics"]["num_images"] == 64
    assert files[NAMES["fp32"]]["numerics"]["max_relative_difference"] < 1e-4
    layers = [each["measured_ms"] for each in proof["layers"]]
    assert sum(ms > 0 for ms in layers) > 3
