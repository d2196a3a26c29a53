"""What the chain-like spaces share: a stem, stages of searched layers, a head and a classifier."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hwnas.errors import UsageError
from hwnas.space.search_space import Choice, LayerSpec, SearchSpace
from hwnas.space.signature import OpSignature, Shape


@dataclass(frozen=True)
class Stage:
    """Searched layers of equal width.

    Args:
        channels: Output channels of every layer.
        num_layers: How many.
        stride: Of the first layer; the others keep the resolution.
    """

    channels: int
    num_layers: int
    stride: int = 1


Candidates = Callable[[Shape, int, int], Mapping[str, OpSignature]]
"""Input shape, output channels, stride -> the options of a layer, by name."""


def make_divisible(channels: float, divisor: int = 8) -> int:
    """Nearest multiple of ``divisor``, never below it and never below 90 % of ``channels``.

    Source:
        MobileNetV2, arXiv 1801.04381, released code.
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def check_size(name: str, *, resolution: int, num_classes: int, width: float = 1.0) -> None:
    """Refuses what no network of a space can be built from.

    Raises:
        UsageError: Names the space and the three values.
    """
    if resolution < 16 or num_classes < 2 or not 0.1 <= width <= 10:
        raise UsageError(
            f"space '{name}' needs resolution >= 16, at least 2 classes and a width from 0.1 to 10; "
            f"got resolution {resolution}, {num_classes} classes, width {width}."
        )


def chain_space(
    name: str,
    fixed: Sequence[tuple[str, OpSignature]],
    stages: Sequence[Stage],
    candidates: Candidates,
    head: int,
    *,
    num_classes: int,
    width: float,
    options: Mapping[str, int | float],
    activation: Mapping[str, Any],
) -> SearchSpace:
    """A space whose layers follow one another.

    Args:
        name: Its registered name.
        fixed: Name and operator of the layers before the first searched one, widths already scaled.
        stages: The searched layers, widths before scaling.
        candidates: Makes the options of one layer.
        head: Channels of the last 1x1 convolution, before scaling.
        num_classes: Outputs of the classifier.
        width: Multiplier of the stages' and the head's channels.
        options: The arguments that the space was created with.
        activation: Attributes of the head's convolution that say which activation follows.
    """
    layers = [LayerSpec(layer, (signature,)) for layer, signature in fixed]
    choices, shape = list[Choice](), fixed[-1][1].out_shape
    for number, stage in enumerate(stages, start=1):
        for index in range(stage.num_layers):
            layer = f"stage{number}_layer{index + 1}"
            found = candidates(shape, make_divisible(stage.channels * width), stage.stride if index == 0 else 1)
            choices.append(Choice(layer, tuple(found)))
            layers.append(LayerSpec(layer, tuple(found.values()), (layer,)))
            shape = layers[-1].signatures[0].out_shape
    head_op = OpSignature.create("conv", shape, make_divisible(head * width), k=1, **activation)
    classifier = OpSignature("classifier", head_op.out_shape, (num_classes, 1, 1))
    layers += [LayerSpec("head", (head_op,)), LayerSpec("classifier", (classifier,))]
    return SearchSpace(name, fixed[0][1].in_shape, num_classes, tuple(choices), tuple(layers), options)
