"""Engines: built for real by TensorRT for RTX on any machine, and run where there is a GPU."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hwnas.deploy import load
from hwnas.deploy.engines import EngineDocument, digest, read_engine
from safetensors import safe_open
from torch import Tensor, nn

from hwnas.errors import MeasurementError, MissingPackageError, UsageError
from hwnas.plugins import PROFILERS, available, create_exporter, create_profiler
from hwnas.supernet.supernet import Network
from hwnas.tensorrt_engine import CLASSIC, RTX, EngineBuilder
from hwnas.testing.contracts import TOLERANCE, check_exporter
from hwnas.testing.toys import toy_space

Run = Callable[..., Any]
SPACE = toy_space()
METADATA = {"space": "toy", "classes": "a\nb"}

needs_rtx = [
    pytest.mark.tensorrt,
    pytest.mark.skipif(bool(available(PROFILERS)["tensorrt-rtx"].missing), reason="needs TensorRT for RTX"),
]


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return Network(SPACE, SPACE.architecture([0, 1, 2])).eval()


@pytest.fixture(scope="module")
def half(network: Network, tmp_path_factory: pytest.TempPathFactory) -> tuple[EngineDocument, bytes]:
    """An engine in half precision for batches up to 4 on two kinds of GPUs."""
    path = tmp_path_factory.mktemp("half") / "model-fp16.engine"
    exporter = create_exporter(
        "tensorrt", flavour="tensorrt-rtx", precision="fp16", capabilities=("8.6", "8.9"), max_batch=4, workspace_mib=64
    )
    assert exporter.export(network, path, input_shape=SPACE.input_shape, metadata=METADATA) == path
    assert {each.name for each in path.parent.iterdir()} == {"model-fp16.engine", "model-fp16.engine.json"}
    return read_engine(path)


class TestEngines:
    """What is written on any machine."""

    pytestmark = needs_rtx

    def test_the_document_says_what_the_engine_is(self, half: tuple[EngineDocument, bytes]) -> None:
        document, engine = half
        assert document["flavour"] == "tensorrt-rtx"
        assert document["version"] == RTX.load().__version__
        assert (document["compute_capabilities"], document["gpu"]) == (["8.6", "8.9"], "")
        assert (document["precision"], document["max_batch"], document["workspace_mib"]) == ("fp16", 4, 64)
        assert (document["bytes"], document["sha256"]) == (len(engine), digest(engine))
        assert 0 < document["build_seconds"] < 600
        assert document["metadata"] == {**METADATA, "precision": "fp16"}

    def test_the_engine_computes_in_the_precision_of_the_graph(self, half: tuple[EngineDocument, bytes]) -> None:
        document, _ = half
        if document["layers_of"] != "network":
            pytest.skip("a GPU here read the layers from the engine, fused")
        outputs = {layer["name"]: layer["outputs"] for layer in document["layers"] if layer["type"] == "convolution"}
        # A stem and two blocks of three; the skip has none. Every one in half precision, on a batch that may vary.
        assert len(outputs) == 7
        assert {name.split("/")[0] for name in outputs} == {"stem", "layer1", "layer2"}
        assert all(output.startswith("half -1x") for (output,) in outputs.values())
        assert document["layers"][-1]["outputs"] == ["float -1x10"]

    def test_a_run_becomes_an_engine_in_int8(self, hwnas: Run, run: Path, noise: str) -> None:
        hwnas("train", run, "--data", noise, "--epochs", 1, "--batch-size", 64).done()
        flags = ["--exporter", "tensorrt", "--flavour", "tensorrt-rtx", "--precision", "int8", "--capability", "8.9"]
        assert f"exported {run}/model-int8.engine" in hwnas("export", run, *flags).done()
        document, _ = read_engine(run / "model-int8.engine")
        assert document["compute_capabilities"] == ["8.9"]
        assert document["metadata"]["architecture"] == (run / "architecture.json").read_text().strip()
        if document["layers_of"] == "network":
            kinds = [layer["type"] for layer in document["layers"]]
            assert kinds.count("quantize") >= kinds.count("convolution") > 0

    def test_without_capabilities_it_is_for_ampere_and_later(self) -> None:
        # TensorRT for RTX, "CPU-only AOT": 8.0 and later, unless 7.5 is asked for.
        built_for = EngineBuilder(RTX).capabilities
        assert {"8.0", "8.6", "8.9", "12.0"} <= set(built_for)
        assert "7.5" not in built_for

    def test_a_workspace_that_is_too_small_is_refused_by_tensorrt(self, tmp_path: Path) -> None:
        exporter = create_exporter("tensorrt", flavour="tensorrt-rtx", capabilities=("8.9",), workspace_mib=1)
        with pytest.raises(MeasurementError, match="workspace"):
            exporter.export(
                nn.Conv2d(256, 256, 3, padding=1), tmp_path / "m.engine", input_shape=(256, 8, 8), metadata={}
            )

    def test_an_operator_that_the_parser_lacks_is_named_and_nothing_is_written(self, tmp_path: Path) -> None:
        class Determinant(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return torch.linalg.det(x)

        path = tmp_path / "m.engine"
        exporter = create_exporter("tensorrt", flavour="tensorrt-rtx")
        with pytest.raises(MeasurementError, match=r"refuses operator 'Det' \(node '\S+'\): UNSUPPORTED_NODE"):
            exporter.export(nn.Sequential(Determinant()), path, input_shape=(3, 4, 4), metadata={})
        assert not [*tmp_path.iterdir()]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"timing_cache": "cache"}, "tensorrt-rtx times nothing while it builds, so a timing cache has no effect"),
            ({"capabilities": ["9.0"]}, r"no compute capability '9.0'; it builds for 7.5, .*8.9"),
            ({"precision": "bf16"}, "no precision 'bf16'; it takes fp32, fp16, int8"),
            ({"max_batch": 0}, "max_batch and workspace_mib must be at least 1; got 0"),
            ({"workspace_mib": 0}, "must be at least 1; got 1 and 0"),
            ({"flavour": "tensorrt-rt"}, "unknown flavour 'tensorrt-rt'.*Did you mean 'tensorrt-rtx'"),
            ({"batch": 8}, "exporter 'tensorrt' has no option 'batch'; it takes flavour, .*max_batch"),
        ],
    )
    def test_what_cannot_be_built_or_has_no_effect_is_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            create_exporter("tensorrt", **{"flavour": "tensorrt-rtx", **options})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_classic_tensorrt_does_not_build_without_a_gpu() -> None:
    with pytest.raises(UsageError, match=r"on the GPU that the engine is for.*Export on that machine, or use flavour"):
        create_exporter("tensorrt", flavour="tensorrt")


def test_the_documented_exporter_of_another_package_plugs_in_with_one_entry_point(
    packages: Any, hwnas: Run, run: Path, noise: str, tmp_path: Path
) -> None:
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    example = next(each for each in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "hwnas.exporters" in each)
    assert len(example.splitlines()) <= 20
    point = re.search(r'"(hwnas\.exporters)": \["(\S+) = (my_format):(\w+)"\]', example)
    assert point is not None
    group, name, module, attribute = point.groups()
    packages.add(module, {name: f"{module}:{attribute}"}, group=group, source=example)
    assert name in hwnas("list", "exporters").done()
    hwnas("train", run, "--data", noise, "--epochs", 1, "--batch-size", 64).done()
    hwnas("export", run, "--exporter", name).done()
    with safe_open(run / "model.safetensors", "pt") as written:
        assert written.metadata()["space"] == "tiny-mbconv"
        assert [10] in [list(written.get_tensor(each).shape) for each in written.keys()]  # noqa: SIM118, the classifier
    hwnas("export", run, "--exporter", name, "--opset", 18).failed(2, f"exporter '{name}' has no option 'opset'")
    hwnas("export", run, "--exporter", name, "--precision", "fp16").failed(2, "no precision 'fp16'; it takes fp32")
    made: dict[str, Any] = {}
    exec(example, made)
    check_exporter(made[attribute](), tmp_path)


@pytest.mark.gpu
@pytest.mark.tensorrt
@pytest.mark.parametrize("flavour", [CLASSIC.name, RTX.name])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_engine_computes_what_pytorch_computes(
    network: Network, tmp_path: Path, flavour: str, precision: str
) -> None:
    try:
        create_profiler(flavour)
    except (MissingPackageError, UsageError) as error:
        pytest.skip(str(error))
    images = np.random.default_rng(0).standard_normal((4, *SPACE.input_shape), dtype=np.float32)
    path, caches = tmp_path / "model.engine", {CLASSIC.name: {"timing_cache": tmp_path / "kernels"}}
    for _ in range(2):  # the second starts from what the first timed
        create_exporter(
            "tensorrt", flavour=flavour, precision=precision, max_batch=4, **caches.get(flavour, {})
        ).export(network, path, input_shape=SPACE.input_shape, metadata=METADATA, calibration=[images])
    assert read_engine(path)[0]["layers_of"] == "engine"
    with load(path) as loaded, torch.no_grad():
        assert (loaded.input_shape, loaded.batches, loaded.metadata["space"]) == (SPACE.input_shape, (1, 4), "toy")
        for batch in (4, 1, 3):
            expected = network(torch.from_numpy(images[:batch])).numpy()
            difference = np.abs(loaded.run(images[:batch]) - expected).max()
            assert difference <= TOLERANCE[precision] * np.abs(expected).max()
        assert 0 < loaded.time().ms < 100
        with pytest.raises(UsageError, match=r"shape \(1 to 4, 3, 8, 8\)"):
            loaded.run(np.zeros((5, *SPACE.input_shape), np.float32))
