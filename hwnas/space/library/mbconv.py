"""Chains of inverted residuals (MBConv) with a kernel and an expansion to choose in every layer."""

from __future__ import annotations

from collections.abc import Sequence

from hwnas.errors import UsageError
from hwnas.space.search_space import Choice, LayerSpec, SearchSpace
from hwnas.space.signature import OpSignature, Shape

Stage = tuple[int, int, int]
"""Output channels, number of layers, stride of the first layer."""


def tiny_mbconv(*, resolution: int = 32, num_classes: int = 10, width: float = 1.0) -> SearchSpace:
    """Seven searched layers for small images: MBConv k{3,5} x e{3,6}, or no block where shapes allow it.

    ====== ============ ======== ====== =========
    input  operator     channels layers stride
    ====== ============ ======== ====== =========
    32     conv 3x3     16       1      2
    16     choice       24       2      1
    16     choice       40       3      2
    8      choice       80       2      2
    4      conv 1x1     160      1      1
    4      classifier   classes  1      -
    ====== ============ ======== ====== =========

    Args:
        resolution: Height and width of the input, at least 16.
        num_classes: Outputs of the classifier, at least 2.
        width: Multiplier of every channel count, rounded to multiples of 8.

    Source:
        The layout of ProxylessNAS, arXiv 1812.00332, section 4 and appendix, cut down to 32x32 images.
    """
    stages = ((24, 2, 1), (40, 3, 2), (80, 2, 2))
    return _chain(
        "tiny-mbconv",
        stages,
        stem=16,
        head=160,
        kernels=(3, 5),
        expansions=(3, 6),
        resolution=resolution,
        num_classes=num_classes,
        width=width,
    )


def make_divisible(channels: float, divisor: int = 8) -> int:
    """Nearest multiple of ``divisor``, never below it and never below 90 % of ``channels``.

    Source:
        MobileNetV2, arXiv 1801.04381, released code.
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def _chain(
    name: str,
    stages: Sequence[Stage],
    *,
    stem: int,
    head: int,
    kernels: Sequence[int],
    expansions: Sequence[int],
    resolution: int,
    num_classes: int,
    width: float,
) -> SearchSpace:
    if resolution < 16 or num_classes < 2 or not 0.1 <= width <= 10:
        raise UsageError(
            f"space '{name}' needs resolution >= 16, at least 2 classes and a width from 0.1 to 10; "
            f"got resolution {resolution}, {num_classes} classes, width {width}."
        )
    input_shape: Shape = (3, resolution, resolution)
    stem_op = OpSignature.create("conv", input_shape, make_divisible(stem * width), stride=2, k=3)
    layers, choices, shape = [LayerSpec("stem", (stem_op,))], [], stem_op.out_shape
    for stage, (channels, count, stride) in enumerate(stages, start=1):
        for index in range(count):
            layer_name = f"stage{stage}_layer{index + 1}"
            options = _options(
                shape, make_divisible(channels * width), stride if index == 0 else 1, kernels, expansions
            )
            choices.append(Choice(layer_name, tuple(options)))
            layers.append(LayerSpec(layer_name, tuple(options.values()), (layer_name,)))
            shape = layers[-1].signatures[0].out_shape
    head_op = OpSignature.create("conv", shape, make_divisible(head * width), k=1)
    classifier = OpSignature("classifier", head_op.out_shape, (num_classes, 1, 1))
    layers += [LayerSpec("head", (head_op,)), LayerSpec("classifier", (classifier,))]
    return SearchSpace(
        name,
        input_shape,
        num_classes,
        tuple(choices),
        tuple(layers),
        {"resolution": resolution, "num_classes": num_classes, "width": width},
    )


def _options(
    shape: Shape, channels: int, stride: int, kernels: Sequence[int], expansions: Sequence[int]
) -> dict[str, OpSignature]:
    same = stride == 1 and shape[0] == channels
    residual = {"r": 1} if same else {}
    options = {
        f"k{k}_e{e}": OpSignature.create("mbconv", shape, channels, stride=stride, k=k, e=e, **residual)
        for k in kernels
        for e in expansions
    }
    return options | ({"skip": OpSignature.create("skip", shape, channels)} if same else {})
