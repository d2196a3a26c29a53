"""Exported files that somebody else wrote: clear errors, and nothing read from beside them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hwnas.deploy import load
from onnx import TensorProto, helper
from safetensors.torch import save

from hwnas.errors import HwnasError, MeasurementError, RunError
from hwnas.run import RunFolder
from hwnas.steps import trained_network

HOSTILE = '"><script>alert(1)</script>\x1b[2J'


def network(location: str = "", metadata: dict[str, str] | None = None) -> onnx.ModelProto:
    """Adds one to an image; the one lies in another file where there is a location."""
    weight = helper.make_tensor("one", TensorProto.FLOAT, [1, 3, 2, 2], [1.0] * 12)
    if location:
        weight.ClearField("float_data")
        weight.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", "48")):
            weight.external_data.add(key=key, value=value)
    shapes = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 2, 2]) for name in ("image", "logits"))
    image, logits = shapes
    graph = helper.make_graph([helper.make_node("Add", ["image", "one"], ["logits"])], "g", [image], [logits], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, metadata or {})
    return model


def saved(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_metadata_are_text(tmp_path: Path) -> None:
    metadata = {"classes": HOSTILE, HOSTILE: "x" * 1_000_000, "mean": "[" * 10_000, "architecture": "../../etc/passwd"}
    path = saved(tmp_path / "model.onnx", network(metadata=metadata).SerializeToString())
    with load(path) as opened:
        assert opened.metadata == metadata
        assert opened.run(np.zeros((1, 3, 2, 2), np.float32)).max() == 1


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"\x80\x04" + b"(" * 100_000])
def test_what_is_no_network_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(MeasurementError, match="refuses the model"):
        load(saved(tmp_path / "model.onnx", content))


@pytest.mark.parametrize("location", ["../secret", "{absolute}"])
def test_a_network_reads_no_file_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str) -> None:
    secret = saved(tmp_path / "secret", np.ones(12, np.float32).tobytes())
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    content = network(location.format(absolute=secret)).SerializeToString()
    with pytest.raises(MeasurementError, match="External data path"):
        load(saved(tmp_path / "here" / "model.onnx", content))


def test_weights_of_other_shapes_are_refused(finished: Path, tmp_path: Path) -> None:
    run = RunFolder.open(shutil.copytree(finished, tmp_path / "run"))
    metadata = {"architecture": run.architecture().to_json()}
    run.file("weights.safetensors").write_bytes(save({"stem": torch.zeros(2)}, metadata))
    with pytest.raises(RunError, match="does not fit its architecture"):
        trained_network(run)


@pytest.mark.parametrize(
    "document",
    [[], {}, "text", {"flavour": 5}, {"flavour": HOSTILE, "sha256": "0"}, {"sha256": None}, [[[[[[]]]]]] * 3],
)
def test_an_engine_with_a_hostile_document_is_refused(tmp_path: Path, document: Any) -> None:
    path = saved(tmp_path / "model.engine", b"engine")
    (tmp_path / "model.engine.json").write_text(json.dumps(document))
    with pytest.raises(RunError, match=r"model\.engine"):
        load(path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"bytes": ' + "1" * 5000 + "}", "\x00", "NaN"])
def test_an_engine_with_a_document_that_is_no_json_is_refused(tmp_path: Path, text: str) -> None:
    path = saved(tmp_path / "model.engine", b"engine")
    (tmp_path / "model.engine.json").write_text(text)
    with pytest.raises(HwnasError, match="cannot be read as JSON"):
        load(path)
