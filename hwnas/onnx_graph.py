"""PyTorch modules to ONNX graphs, one at a time or many in one pass, and graphs joined to networks."""

from __future__ import annotations

import ast
import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hwnas.errors import MissingPackageError, UsageError
from hwnas.space import Joined

if TYPE_CHECKING:
    import onnx

    from hwnas.space import Shape, Wiring

INPUT, OUTPUT = "images", "logits"

BATCH = "batch"
"""Name of a dimension that is open."""

OLDEST = 18
"""Oldest version of ONNX's operators that ``torch.onnx`` writes; older ones are converted from it."""

SCOPES = "pkg.torch.onnx.name_scopes"
"""Where ``torch.onnx`` notes the modules that a node comes from, outermost first."""


def export_onnx(
    module: nn.Module, input_shape: Shape, *, batch: int = 1, dynamic_batch: bool = False, opset: int | None = None
) -> onnx.ModelProto:
    """One module as a graph ``images -> logits`` with batch-norm folded into convolutions.

    Nodes and what they compute are named ``LAYER/...`` after the child of the module that they come from.

    Args:
        module: In evaluation mode.
        input_shape: Channels, height, width.
        batch: Images a run.
        dynamic_batch: Whether the graph takes any number of images, and ``batch`` does not matter.
        opset: Version of ONNX's operators; the exporter's own if not given.

    Raises:
        UsageError: The graph cannot be written with that version.
        MissingPackageError: onnx or onnxscript is not installed.
    """
    (model,) = _exported([module], [input_shape], batch, dynamic_batch, None if opset is None else max(opset, OLDEST))
    _name_by_layer(model.graph)
    return model if opset is None else with_opset(model, opset)


def export_many(
    modules: Sequence[nn.Module], input_shapes: Sequence[Shape], *, batch: int = 1
) -> list[onnx.ModelProto]:
    """Many modules in one pass, which is several times faster than one call each.

    The exporter's cost is mostly per call, so all modules become one graph that is then split.

    Raises:
        MissingPackageError: onnx or onnxscript is not installed.
    """
    return _exported(modules, input_shapes, batch, False, None)


def _exported(
    modules: Sequence[nn.Module], input_shapes: Sequence[Shape], batch: int, dynamic_batch: bool, opset: int | None
) -> list[onnx.ModelProto]:
    try:
        from onnx.utils import Extractor
    except ImportError as error:
        raise MissingPackageError("exporting needs the package onnx. Run: pip install onnx onnxscript") from error
    bundle = _Bundle(modules).eval()
    # An example of one image would make the exporter take the number for a constant.
    examples = tuple(torch.zeros(2 if dynamic_batch else batch, *shape) for shape in input_shapes)
    shapes = {"inputs": ({0: torch.export.Dim(BATCH)},) * len(modules)} if dynamic_batch else None
    names = [f"{INPUT}_{i}" for i in range(len(modules))], [f"{OUTPUT}_{i}" for i in range(len(modules))]
    with _quiet():
        program: Any = torch.onnx.export(
            bundle,
            examples,
            dynamo=True,
            input_names=names[0],
            output_names=names[1],
            dynamic_shapes=shapes,
            opset_version=opset,
            verbose=False,
        )
    whole = program.model_proto
    extractor = Extractor(whole)
    parts = [extractor.extract_model([x], [y]) for x, y in zip(*names, strict=True)]
    return [_renamed(part) for part in parts]


def join(models: Sequence[onnx.ModelProto], wiring: Wiring) -> onnx.ModelProto:
    """One model that runs the given ones in order, each on the outputs that the wiring names, added up or joined."""
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
            feeding, inputs = f"sum{position}", [names[s] for s in sources]
            if isinstance(sources, Joined):
                node = onnx.helper.make_node("Concat", inputs, [feeding], axis=1)
            else:
                node = onnx.helper.make_node("Sum", inputs, [feeding])
            result.graph.node.append(node)
        _rename(part, {part.input[0].name: feeding, part.output[0].name: names[position]})
        result.graph.node.extend(part.node)
        result.graph.initializer.extend(part.initializer)
    result.graph.output.extend(part.output)
    return result


def with_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """A graph with another version of ONNX's operators, for older runtimes.

    Raises:
        UsageError: ONNX's converter lacks an operator in that version, or there is no such version.
    """
    from onnx import checker, helper, version_converter

    model = copy.deepcopy(model)
    for node in model.graph.node:
        # The converter keeps this attribute, which means nothing at 0, in versions that do not know it.
        kept = [each for each in node.attribute if each.name != "noop_with_empty_axes" or each.i]
        del node.attribute[:]
        node.attribute.extend(kept)
    try:
        if model.opset_import[0].version != opset:
            model = version_converter.convert_version(model, opset)
        model.ir_version = helper.find_min_ir_version_for(model.opset_import)
        checker.check_model(model, full_check=True)
    except (RuntimeError, ValueError, checker.ValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f"this network cannot be written with ONNX opset {opset} ({reason}). Use {OLDEST} or newer, as far as "
            "the installed onnx knows it, or leave it out."
        ) from error
    return model


class _Bundle(nn.Module):
    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(part(x) for part, x in zip(self.parts, inputs, strict=True))


def _renamed(model: onnx.ModelProto) -> onnx.ModelProto:
    _rename(model.graph, {model.graph.input[0].name: INPUT, model.graph.output[0].name: OUTPUT})
    return model


def _name_by_layer(graph: onnx.GraphProto) -> None:
    """Puts the layer before the names of nodes and values; runtimes name what they make of them after either."""
    ends = {value.name for value in (*graph.input, *graph.output)}
    names = {}
    for node in graph.node:
        scopes: list[str] = next((ast.literal_eval(p.value) for p in node.metadata_props if p.key == SCOPES), [])
        layer = next((scope.removeprefix("parts.0.") for scope in scopes if scope.startswith("parts.0.")), "")
        if layer:
            node.name = f"{layer}/{node.name}"
            names.update({name: f"{layer}/{name}" for name in node.output if name not in ends})
        del node.metadata_props[:]  # whole stack traces, with paths of this machine
    _rename(graph, names)


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
        loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
        levels = [logger.level for logger in loggers]
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
