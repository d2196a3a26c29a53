"""Loaded files compute what PyTorch computes, and what cannot run here says why and how to build it again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hwnas.deploy import LoadedNetwork, load
from hwnas.deploy.engines import digest, read_engine, require_capability
from onnx import TensorProto, helper

from hwnas.errors import MeasurementError, RunError, UsageError
from hwnas.onnx_precision import to_precision
from hwnas.plugins import PROFILERS, Session, available, create_exporter
from hwnas.supernet.supernet import Network
from hwnas.tensorrt_engine import RTX
from hwnas.testing.contracts import TOLERANCE
from hwnas.testing.toys import toy_space

SPACE = toy_space()
IMAGES = np.random.default_rng(0).standard_normal((3, *SPACE.input_shape), dtype=np.float32)

needs_rtx = pytest.mark.skipif(bool(available(PROFILERS)["tensorrt-rtx"].missing), reason="needs TensorRT for RTX")


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return Network(SPACE, SPACE.architecture([0, 1, 2])).eval()


@pytest.fixture(scope="module")
def exported(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file for any number of images."""
    return create_exporter("onnx", dynamic_batch=True).export(
        network,
        tmp_path_factory.mktemp("exported") / "model.onnx",
        input_shape=SPACE.input_shape,
        metadata={"classes": "a\nb", "mean": "0.5 0.5 0.5"},
    )


@pytest.fixture
def loaded(exported: Path) -> Iterator[LoadedNetwork]:
    with load(exported) as opened:
        yield opened


class TestOnnx:
    """ONNX files on the processor."""

    @pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
    def test_it_computes_what_pytorch_computes(
        self, network: Network, exported: Path, tmp_path: Path, precision: str
    ) -> None:
        model = to_precision(onnx.load(exported), precision, calibration=[IMAGES])
        onnx.save(model, tmp_path / "model.onnx")
        with load(tmp_path / "model.onnx", threads=1) as opened, torch.no_grad():
            for images in (IMAGES, IMAGES[:1]):
                expected, logits = network(torch.from_numpy(images)).numpy(), opened.run(images)
                assert (logits.shape, logits.dtype) == ((len(images), 10), np.float32)
                assert np.abs(logits - expected).max() <= TOLERANCE[precision] * np.abs(expected).max()

    def test_it_says_what_it_is(self, loaded: LoadedNetwork) -> None:
        assert loaded.metadata["classes"].split("\n") == ["a", "b"]
        assert loaded.metadata["mean"] == "0.5 0.5 0.5"
        assert (loaded.input_shape, loaded.batches) == (SPACE.input_shape, (1, None))

    def test_it_is_a_session_and_is_timed_in_milliseconds(self, loaded: LoadedNetwork) -> None:
        assert isinstance(loaded, Session)
        measured = loaded.time()
        assert measured.usable
        assert 0 < measured.ms <= measured.p50_ms <= measured.p90_ms
        assert measured.ms < 100  # a million multiply-adds; a processor does billions a second

    @pytest.mark.parametrize(
        "images",
        [
            np.float32(1),
            IMAGES[0],
            IMAGES[:0],
            IMAGES[:, :, :4],
            IMAGES.transpose(0, 2, 3, 1),
            IMAGES.astype(np.float64),
            np.zeros((1, 3, 8, 8), np.uint8),
            IMAGES.tolist(),
        ],
        ids=["a number", "one image", "none", "height", "channels last", "float64", "uint8", "a list"],
    )
    def test_images_of_another_shape_or_type_are_refused(self, loaded: LoadedNetwork, images: Any) -> None:
        with pytest.raises(UsageError, match=r"takes float32 of shape \(1 or more, 3, 8, 8\): pixels from 0 to 1"):
            loaded.run(images)

    def test_a_fixed_batch_takes_no_other(self, exported: Path, tmp_path: Path) -> None:
        model = onnx.load(exported)
        for value in (model.graph.input[0], model.graph.output[0]):
            value.type.tensor_type.shape.dim[0].dim_value = 2
        onnx.save(model, tmp_path / "two.onnx")
        with load(tmp_path / "two.onnx") as opened:
            assert opened.batches == (2, 2)
            assert opened.run(IMAGES[:2]).shape == (2, 10)
            with pytest.raises(UsageError, match=r"images of type float32 and shape \(3, 3, 8, 8\).*shape \(2, 3"):
                opened.run(IMAGES)

    def test_a_closed_network_does_not_run_and_closes_again(self, exported: Path) -> None:
        with load(exported) as opened:
            pass
        opened.close()
        for call in (lambda: opened.run(IMAGES), opened.time):
            with pytest.raises(UsageError, match=r"is closed\. Load it again"):
                call()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"threads": 0}, "threads 1 to"),
            ({"device": "tpu"}, "no device 'tpu'; the installed package has .*cpu"),
            ({"provider": "CPU"}, "no option 'provider'; it takes device"),
        ],
    )
    def test_options_of_the_runtime_are_checked(self, exported: Path, options: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            load(exported, **options)

    def test_files_that_are_no_networks_are_refused(self, exported: Path, tmp_path: Path) -> None:
        (tmp_path / "damaged.onnx").write_bytes(exported.read_bytes()[:-200])
        shape = [1, 3, 8, 8]
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "abc"]
        graph = helper.make_graph([helper.make_node("Add", ["a", "b"], ["c"])], "sum", ends[:2], ends[2:])
        opset = helper.make_opsetid("", 18)
        onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), tmp_path / "two.onnx")
        with pytest.raises(MeasurementError, match="ONNX Runtime refuses the model"):
            load(tmp_path / "damaged.onnx")
        with pytest.raises(MeasurementError, match=r"inputs of shape .*expected one input \(batch, channels"):
            load(tmp_path / "two.onnx")
        with pytest.raises(RunError, match=r"absent.onnx does not exist. 'hwnas export RUN' writes"):
            load(tmp_path / "absent.onnx")
        with pytest.raises(UsageError, match=r"model.pt is no exported network.*\.onnx, \.engine"):
            load(tmp_path / "model.pt")


Engine = Callable[..., Path]


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    """Writes an engine with a document; what is asked of both comes before anything in it is read."""

    def write(**changes: Any) -> Path:
        path, content = tmp_path / "model-fp16.engine", b"engine"
        document = {
            "flavour": "tensorrt-rtx", "version": "1.0.0", "compute_capabilities": ["8.6", "8.9"], "gpu": "",
            "precision": "fp16", "max_batch": 4, "workspace_mib": 64, "build_seconds": 0.5, "bytes": 6,
            "sha256": digest(content), "layers_of": "network", "layers": [], "metadata": {}, "origin": {},
        }  # fmt: skip
        path.write_bytes(content)
        path.with_name("model-fp16.engine.json").write_text(json.dumps(document | changes))
        return path

    return write


def command(error: pytest.ExceptionInfo[Exception]) -> list[str]:
    """The command that a message ends with."""
    return shlex.split(str(error.value).split("Build it again on the machine it is for: hwnas ")[1])


class TestEngines:
    """Refusals; what engines compute is tested where they are built."""

    def test_an_engine_without_its_document_is_refused(self, engine: Engine) -> None:
        path = engine()
        path.with_name("model-fp16.engine.json").unlink()
        with pytest.raises(RunError, match=r"has no model-fp16.engine.json.*Export it again with 'hwnas export"):
            load(path)

    def test_a_changed_engine_is_refused(self, engine: Engine) -> None:
        path = engine()
        path.write_bytes(b"Engine")
        with pytest.raises(RunError, match=r"changed since.*Build it again") as caught:
            load(path)
        assert "built by tensorrt-rtx 1.0.0 for compute capability 8.6, 8.9" in str(caught.value)

    @needs_rtx
    def test_an_engine_of_another_version_is_refused_with_the_command_that_builds_it(
        self, engine: Engine, hwnas: Callable[..., Any], tmp_path: Path
    ) -> None:
        with pytest.raises(MeasurementError, match=r"1.0.0 for .* 8.9; here is tensorrt-rtx [1-9]") as caught:
            load(engine())
        words = command(caught)
        for flag in ("--precision fp16", "--capability 8.6 --capability 8.9", "--max-batch 4", "--workspace-mib 64"):
            assert flag in " ".join(words)
        hwnas(*words).failed(1, f"{tmp_path} is not a run folder")  # every word was understood

    def test_an_engine_for_other_gpus_is_refused_with_the_command_for_this_one(self, engine: Engine) -> None:
        path = engine()
        document, _ = read_engine(path)
        require_capability(path, document, "8.9")
        with pytest.raises(MeasurementError, match=r"capability 8.6, 8.9; the GPU here has .*12.0") as caught:
            require_capability(path, document, "12.0")
        assert " ".join(command(caught)).count("--capability") == 1
        assert "--capability 12.0" in " ".join(command(caught))

    def test_a_classic_engine_names_the_gpu_it_was_built_on(self, engine: Engine) -> None:
        path = engine(flavour="tensorrt", gpu="NVIDIA L4", compute_capabilities=["8.9"])
        document, _ = read_engine(path)
        with pytest.raises(MeasurementError, match=r"NVIDIA L4 \(compute capability 8.9\)") as caught:
            require_capability(path, document, "9.0")
        assert "--capability" not in command(caught)  # it builds for the GPU at hand

    @needs_rtx
    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_without_a_gpu_an_engine_says_what_it_is_for(self, engine: Engine) -> None:
        path = engine(version=RTX.load().__version__)
        with pytest.raises(MeasurementError, match=r"capability 8.6, 8.9, cannot run here: .*no CUDA device"):
            load(path)

    @pytest.mark.parametrize(
        "changes",
        [
            {"flavour": "tensorflow"},
            {"flavour": {}},
            {"compute_capabilities": "8.9"},
            {"compute_capabilities": [8.9]},
            {"max_batch": -1},
            {"sha256": None},
            {"metadata": {"classes": ["a"]}},
            {"metadata": [[[[[]]]]]},
        ],
    )
    def test_a_damaged_document_is_refused(self, engine: Engine, changes: dict[str, Any]) -> None:
        with pytest.raises(RunError, match=rf"{next(iter(changes))}.* Export it again"):
            load(engine(**changes))
