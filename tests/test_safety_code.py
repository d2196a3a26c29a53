"""Files that somebody else wrote run no code."""

import ast
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from hwnas.checkpoint import load_checkpoint
from hwnas.data.arrays import read_npz
from hwnas.errors import HwnasError, RunError
from hwnas.run import RunFolder
from hwnas.steps import trained_network

ROOT = Path(__file__).parent.parent

FORBIDDEN = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}
"""Modules whose readers run code; ``UnpicklingError`` may be caught."""


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keyword(call: ast.Call, name: str) -> object:
    return next((ast.literal_eval(each.value) for each in call.keywords if each.arg == name), None)


@pytest.mark.parametrize("folder", ["hwnas", "profilers", "deploy"])
def test_no_source_reads_what_could_run_code(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for name, call in calls(tree):
            where = f"{path}:{call.lineno}: {name}"
            assert name.split(".")[0] not in FORBIDDEN, where
            assert name not in ("eval", "exec", "compile", "torch.jit.load", "torch.hub.load", "pd.read_pickle"), where
            if name == "torch.load":
                assert keyword(call, "weights_only") is True, where
            if name in ("np.load", "numpy.load"):
                assert keyword(call, "allow_pickle") is False, where
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom | ast.Import)
                    for alias in node.names}  # fmt: skip
        assert not imported & (FORBIDDEN - {"pickle"}), path


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_checkpoint_runs_no_code(tmp_path: Path, how: str) -> None:
    path, trace = tmp_path / "search.pt", tmp_path / "trace"
    with path.open("wb") as file:
        torch.save({"step": Bomb(trace)}, file) if how == "torch" else pickle.dump(Bomb(trace), file)
    with pytest.raises(RunError, match="cannot be read"):
        load_checkpoint(path)
    assert not trace.exists()


def test_weights_and_images_run_no_code(finished: Path, tmp_path: Path) -> None:
    run = RunFolder.open(shutil.copytree(finished, tmp_path / "run"))
    trace = tmp_path / "trace"
    torch.save({"stem": Bomb(trace)}, run.file("weights.safetensors"))
    with pytest.raises(RunError, match="cannot be read"):
        trained_network(run)
    bombs = np.array([Bomb(trace)], dtype=object)
    np.savez(tmp_path / "images.npz", x_train=bombs, y_train=bombs, x_test=bombs, y_test=bombs)
    with pytest.raises(HwnasError, match="cannot be read"):
        read_npz(tmp_path / "images.npz")
    assert not trace.exists()
    pickle.loads(pickle.dumps(Bomb(trace)))
    assert trace.exists(), "the bomb works"


@pytest.mark.parametrize("state", [[1, 2], {"step": 1}, {"space": "other", "supernet": {}}])
def test_a_checkpoint_of_something_else_is_an_error(finished: Path, tmp_path: Path, state: object) -> None:
    from hwnas.steps.inputs import supernet_weights

    run = shutil.copytree(finished, tmp_path / "run")
    torch.save(state, run / "search.pt")
    with pytest.raises(RunError, match=r"search\.pt|another space"):
        supernet_weights(RunFolder.open(run).space(), run)
