"""Exported files: they compute what PyTorch computes, and carry what is needed to use them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from hwnas.errors import OutputError, UsageError
from hwnas.onnx_graph import export_many, export_onnx, join
from hwnas.ops.blocks import build_op
from hwnas.ops.wiring import Wired
from hwnas.plugins import EXPORTERS, available, create_exporter, create_profiler
from hwnas.space import SearchSpace, create_space
from hwnas.supernet.supernet import Network
from hwnas.testing.contracts import check_exporter
from hwnas.testing.toys import toy_space


@pytest.mark.parametrize("name", available(EXPORTERS))
def test_registered_exporters_keep_the_contract(name: str, tmp_path: Path) -> None:
    check_exporter(create_exporter(name), tmp_path)


def test_onnx_file_carries_metadata_and_no_batch_norm(tmp_path: Path) -> None:
    space = toy_space()
    network = Network(space, space.architecture([0, 1, 2])).eval()
    metadata = {"space": "toy", "classes": "a\nb", "mean": "0.5 0.5 0.5"}
    path = create_exporter("onnx").export(
        network, tmp_path / "m.onnx", input_shape=space.input_shape, precision="fp32", metadata=metadata
    )
    model = onnx.load(path)
    assert {p.key: p.value for p in model.metadata_props} == metadata
    operators = {node.op_type for node in model.graph.node}
    assert "Conv" in operators
    assert "BatchNormalization" not in operators
    assert [x.name for x in model.graph.input] == ["images"]
    assert [y.name for y in model.graph.output] == ["logits"]


def test_export_refuses_other_precisions_and_unwritable_paths(tmp_path: Path) -> None:
    space, exporter = toy_space(), create_exporter("onnx")
    network = Network(space, space.architecture([2, 2, 2])).eval()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="no precision 'fp7'; it takes fp32"):
        exporter.export(network, tmp_path / "m.onnx", input_shape=space.input_shape, precision="fp7", metadata={})
    with pytest.raises(OutputError, match="cannot write"):
        exporter.export(
            network, tmp_path / "file" / "m.onnx", input_shape=space.input_shape, precision="fp32", metadata={}
        )


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
    modules = [build_op(s).eval() for s in operators]
    # Running statistics other than 0 and 1, so that wrongly folded batch-norm would show.
    for module in modules:
        for norm in (m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            torch.nn.init.normal_(norm.running_mean, std=0.1)  # type: ignore[arg-type]
            torch.nn.init.uniform_(norm.running_var, 0.5, 2.0)  # type: ignore[arg-type]
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
