"""PyTorch modules to ONNX graphs, one at a time or many in one pass, and graphs joined to networks."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hwnas.errors import MissingPackageError

if TYPE_CHECKING:
    import onnx

    from hwnas.space import Shape, Wiring

INPUT, OUTPUT = "images", "logits"


def export_onnx(module: nn.Module, input_shape: Shape, *, batch: int = 1) -> onnx.ModelProto:
    """One module as a graph ``images -> logits`` with batch-norm folded into convolutions."""
    return export_many([module], [input_shape], batch=batch)[0]


def export_many(
    modules: Sequence[nn.Module], input_shapes: Sequence[Shape], *, batch: int = 1
) -> list[onnx.ModelProto]:
    """Many modules in one pass, which is several times faster than one call each.

    The exporter's cost is mostly per call, so all modules become one graph that is then split.

    Raises:
        MissingPackageError: onnx or onnxscript is not installed.
    """
    try:
        from onnx.utils import Extractor
    except ImportError as error:
        raise MissingPackageError("exporting needs the package onnx. Run: pip install onnx onnxscript") from error
    bundle = _Bundle(modules).eval()
    examples = tuple(torch.zeros(batch, *shape) for shape in input_shapes)
    names = [f"{INPUT}_{i}" for i in range(len(modules))], [f"{OUTPUT}_{i}" for i in range(len(modules))]
    with _quiet():
        program: Any = torch.onnx.export(
            bundle, examples, dynamo=True, input_names=names[0], output_names=names[1], verbose=False
        )
    whole = program.model_proto
    extractor = Extractor(whole)
    parts = [extractor.extract_model([x], [y]) for x, y in zip(*names, strict=True)]
    return [_renamed(part) for part in parts]


def join(models: Sequence[onnx.ModelProto], wiring: Wiring) -> onnx.ModelProto:
    """One model that runs the given ones in order, each on the sum of the outputs that the wiring names."""
    import onnx
    from onnx.compose import add_prefix

    result = onnx.ModelProto()
    result.CopyFrom(models[0])
    del result.graph.node[:], result.graph.initializer[:], result.graph.value_info[:], result.graph.output[:]
    names = {-1: INPUT}
    for position, (model, sources) in enumerate(zip(models, wiring, strict=True)):
        part = add_prefix(model, f"part{position}_").graph
        names[position] = OUTPUT if position == len(models) - 1 else f"border{position}"
        feeding = names[sources[0]]
        if len(sources) > 1:
            feeding = f"sum{position}"
            result.graph.node.append(onnx.helper.make_node("Sum", [names[s] for s in sources], [feeding]))
        _rename(part, {part.input[0].name: feeding, part.output[0].name: names[position]})
        result.graph.node.extend(part.node)
        result.graph.initializer.extend(part.initializer)
    result.graph.output.extend(part.output)
    return result


class _Bundle(nn.Module):
    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(part(x) for part, x in zip(self.parts, inputs, strict=True))


def _renamed(model: onnx.ModelProto) -> onnx.ModelProto:
    _rename(model.graph, {model.graph.input[0].name: INPUT, model.graph.output[0].name: OUTPUT})
    return model


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's progress prints and its internal deprecations off the user's screen."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logger = logging.getLogger("torch.onnx")
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
