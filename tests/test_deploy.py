"""Exported files: they compute what PyTorch computes, and carry what is needed to use them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hwnas.deploy.loading import load

from hwnas.errors import MeasurementError, OutputError, UsageError
from hwnas.onnx_graph import export_many, export_onnx, join
from hwnas.ops.blocks import build_op
from hwnas.ops.wiring import Wired
from hwnas.plugins import EXPORTERS, available, create_exporter, create_profiler
from hwnas.space import SearchSpace, create_space
from hwnas.supernet.supernet import Network
from hwnas.testing.contracts import TOLERANCE, check_exporter
from hwnas.testing.toys import toy_space

METADATA = {"space": "toy", "classes": "a\nb", "mean": "0.5 0.5 0.5"}
IMAGES = np.random.default_rng(0).standard_normal((10, 3, 8, 8), dtype=np.float32)


@pytest.fixture(scope="module")
def network() -> Network:
    """Of the toy space, with running statistics other than 0 and 1, so that wrongly folded batch-norm would show."""
    torch.manual_seed(0)
    space = toy_space()
    return disturbed(Network(space, space.architecture([0, 1, 2])))


def disturbed(module: Any) -> Any:
    for norm in (m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        torch.nn.init.normal_(norm.running_mean, std=0.1)  # type: ignore[arg-type]
        torch.nn.init.uniform_(norm.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    return module.eval()


def logits(network: Network, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(network(torch.from_numpy(images)).numpy())


def exported(network: Network, path: Path, *, calibration: list[np.ndarray] | None = None, **options: Any) -> Path:
    shape = network.space.input_shape
    exporter = create_exporter("onnx", **options)
    return exporter.export(network, path, input_shape=shape, metadata=METADATA, calibration=calibration)


def differ(path: Path, network: Network, images: np.ndarray) -> float:
    """By how much the file computes otherwise, relative to the largest logit."""
    expected = logits(network, images)
    with load(path) as session:
        return float(np.abs(session.run(images) - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", available(EXPORTERS))
def test_registered_exporters_keep_the_contract(name: str, tmp_path: Path) -> None:
    check_exporter(create_exporter(name), tmp_path)


def test_onnx_file_carries_metadata_and_no_batch_norm(network: Network, tmp_path: Path) -> None:
    path = exported(network, tmp_path / "m.onnx")
    model = onnx.load(path)
    assert {p.key: p.value for p in model.metadata_props} == {**METADATA, "precision": "fp32"}
    operators = {node.op_type for node in model.graph.node}
    assert "Conv" in operators
    assert "BatchNormalization" not in operators
    assert [x.name for x in model.graph.input] == ["images"]
    assert [y.name for y in model.graph.output] == ["logits"]
    layers = {name.split("/")[0] for node in model.graph.node for name in (node.name, *node.output)} - {"logits"}
    assert layers == {name for name, child in network.named_children() if not isinstance(child, torch.nn.Identity)}
    assert str(Path(__file__).parent.parent).encode() not in path.read_bytes(), "stack traces of the exporter"
    assert differ(path, network, IMAGES[:1]) <= TOLERANCE["fp32"]
    with load(path) as session, pytest.raises(UsageError, match="float32 of shape"):
        session.run(IMAGES[:2])


def test_dynamic_batch_and_older_operators(network: Network, tmp_path: Path) -> None:
    path = exported(network, tmp_path / "m.onnx", dynamic_batch=True, opset=17)
    model = onnx.load(path)
    assert model.opset_import[0].version == 17
    assert model.ir_version == onnx.helper.find_min_ir_version_for(model.opset_import)
    for batch in (1, 5):
        assert differ(path, network, IMAGES[:batch]) <= TOLERANCE["fp32"]


@pytest.mark.parametrize("opset", [13, 99])
def test_operators_that_cannot_be_had(network: Network, tmp_path: Path, opset: int) -> None:
    with pytest.raises(UsageError, match=f"cannot be written with ONNX opset {opset} .*Use 18 or newer"):
        exported(network, tmp_path / "m.onnx", opset=opset)
    assert not list(tmp_path.iterdir())


def test_half_precision_keeps_inputs_and_outputs_unless_told_otherwise(network: Network, tmp_path: Path) -> None:
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    for half_io, ends in ((False, single), (True, half)):
        path = exported(network, tmp_path / "m.onnx", precision="fp16", batch=2, half_io=half_io)
        graph = onnx.load(path).graph
        assert {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)} == {ends}
        assert {w.data_type for w in graph.initializer if len(w.dims) == 4} == {half}
        assert 0 < differ(path, network, IMAGES[:2]) <= TOLERANCE["fp16"]


@pytest.mark.parametrize("signed", [False, True])
def test_8_bit_ranges_are_those_of_the_given_images(network: Network, tmp_path: Path, signed: bool) -> None:
    images = [5 * IMAGES[:1], 5 * IMAGES[1:6], 5 * IMAGES[6:]]  # of any batch sizes
    path = exported(network, tmp_path / "m.onnx", precision="int8", batch=5, signed=signed, calibration=images)
    model = onnx.load(path)
    assert {p.key: p.value for p in model.metadata_props} == {**METADATA, "precision": "int8"}
    values = {w.name: onnx.numpy_helper.to_array(w) for w in model.graph.initializer}
    quantise = next(node for node in model.graph.node if node.input[0] == "images")
    scale, zero = values[quantise.input[1]], values[quantise.input[2]]
    # 255 steps from the least to the largest pixel; signed ones have 0 in the middle and 127 steps to either side
    largest = 5 * np.abs(IMAGES).max()
    span = largest / 127 if signed else 5 * (IMAGES.max() - IMAGES.min()) / 255
    assert scale == pytest.approx(span, rel=0.01)
    assert zero.dtype == (np.int8 if signed else np.uint8)
    per_channel = [values[node.input[1]].size for node in model.graph.node if node.op_type == "DequantizeLinear"]
    assert max(per_channel) > 1
    assert 0 < differ(path, network, 5 * IMAGES[:5]) <= TOLERANCE["int8"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp7"}, "no precision 'fp7'; it takes fp32, fp16, int8"),
        ({"batch": 0}, "at least 1; got 0"),
        ({"batch": 2, "dynamic_batch": True}, "batch 2 has no effect"),
        ({"half_io": True}, "half_io has no effect in fp32. Use precision fp16"),
        ({"precision": "fp16", "signed": True}, "signed has no effect in fp16. Use precision int8"),
        ({"colour": "red"}, "exporter 'onnx' has no option 'colour'; it takes precision, batch"),
    ],
)
def test_options_without_effect_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        create_exporter("onnx", **options)


def test_what_cannot_be_exported(network: Network, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="int8 needs images"):
        exported(network, tmp_path / "m.onnx", precision="int8")
    with pytest.raises(UsageError, match="3 images to calibrate with are fewer than a batch of 4"):
        exported(network, tmp_path / "m.onnx", precision="int8", batch=4, calibration=[IMAGES[:3]])
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        exported(network, tmp_path / "file" / "m.onnx")


def test_numbers_that_are_not_finite(network: Network, tmp_path: Path) -> None:
    state = {name: value.clone() for name, value in network.state_dict().items()}
    broken = Network(network.space, network.architecture).eval()
    broken.load_state_dict({name: value * 1e30 if "weight" in name else value for name, value in state.items()})
    with pytest.raises(MeasurementError, match="not finite"):
        exported(broken, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("space", "options"),
    [
        (create_space("tiny-mbconv", resolution=16), [0, 4, 1, 4, 2, 3, 0]),
        (create_space("nas-bench-201", resolution=16, width=0.5, num_cells=1), [3, 1, 4, 2, 0, 3]),
        (create_space("nas-bench-macro", resolution=16, width=0.25), [0, 2, 0, 1, 0, 0, 2, 1]),
    ],
    ids=["chain", "graph", "strided skips"],
)
def test_exported_operators_joined_are_the_exported_network(space: SearchSpace, options: list[int]) -> None:
    torch.manual_seed(0)
    operators = space.operators(space.architecture(options))
    modules = [disturbed(build_op(s)) for s in operators]
    joined = join(export_many(modules, [s.in_shape for s in operators]), space.wiring)
    onnx.checker.check_model(joined, full_check=True)
    network = Wired(*modules, wiring=space.wiring).eval()
    whole = export_onnx(network, space.input_shape)
    images = np.random.default_rng(0).standard_normal((1, *space.input_shape), dtype=np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(images)).numpy()
    profiler = create_profiler("onnxruntime")
    for model in (joined, whole):
        session = profiler.prepare(model.SerializeToString(), space.input_shape)
        np.testing.assert_allclose(session.run(images), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
