"""Chains of inverted residuals (MBConv) with a kernel and an expansion to choose in every layer."""

from __future__ import annotations

from collections.abc import Sequence

from hwnas.space.library.chain import Candidates, Stage, chain_space, check_size, make_divisible
from hwnas.space.search_space import SearchSpace
from hwnas.space.signature import OpSignature, Shape


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
    options = {"resolution": resolution, "num_classes": num_classes, "width": width}
    check_size("tiny-mbconv", resolution=resolution, num_classes=num_classes, width=width)
    stem = OpSignature.create("conv", (3, resolution, resolution), make_divisible(16 * width), stride=2, k=3)
    return chain_space(
        "tiny-mbconv",
        [("stem", stem)],
        (Stage(24, 2), Stage(40, 3, 2), Stage(80, 2, 2)),
        mbconv_candidates((3, 5), (3, 6)),
        160,
        num_classes=num_classes,
        width=width,
        options=options,
        activation={},
    )


def proxylessnas(*, resolution: int = 224, num_classes: int = 1000, width: float = 1.0) -> SearchSpace:
    """ProxylessNAS: 21 searched layers, MBConv k{3,5,7} x e{3,6}, or no block where shapes allow it.

    ====== ============ ======== ====== =========
    input  operator     channels layers stride
    ====== ============ ======== ====== =========
    224    conv 3x3     32       1      2
    112    MBConv k3 e1 16       1      1
    112    choice       24       4      2
    56     choice       40       4      2
    28     choice       80       4      2
    14     choice       96       4      1
    14     choice       192      4      2
    7      choice       320      1      1
    7      conv 1x1     1280     1      1
    7      classifier   classes  1      -
    ====== ============ ======== ====== =========

    Args:
        resolution: Height and width of the input, at least 16.
        num_classes: Outputs of the classifier, at least 2.
        width: Multiplier of every channel count, rounded to multiples of 8.

    Source:
        ProxylessNAS, arXiv 1812.00332, section 4 and appendix; widths of the released search code.
    """
    return _wide_chain(
        "proxylessnas",
        (Stage(24, 4, 2), Stage(40, 4, 2), Stage(80, 4, 2), Stage(96, 4), Stage(192, 4, 2), Stage(320, 1)),
        resolution,
        num_classes,
        width,
    )


def mobilenetv2(*, resolution: int = 224, num_classes: int = 1000, width: float = 1.0) -> SearchSpace:
    """MobileNetV2's layout: 16 searched layers, MBConv k{3,5,7} x e{3,6}, or no block where shapes allow it.

    MobileNetV2 itself is ``k3_e6`` everywhere.

    ====== ============ ======== ====== =========
    input  operator     channels layers stride
    ====== ============ ======== ====== =========
    224    conv 3x3     32       1      2
    112    MBConv k3 e1 16       1      1
    112    choice       24       2      2
    56     choice       32       3      2
    28     choice       64       4      2
    14     choice       96       3      1
    14     choice       160      3      2
    7      choice       320      1      1
    7      conv 1x1     1280     1      1
    7      classifier   classes  1      -
    ====== ============ ======== ====== =========

    Args:
        resolution: Height and width of the input, at least 16.
        num_classes: Outputs of the classifier, at least 2.
        width: Multiplier of every channel count, rounded to multiples of 8.

    Source:
        MobileNetV2, arXiv 1801.04381, table 2; the choices are those of ProxylessNAS, arXiv 1812.00332.
    """
    return _wide_chain(
        "mobilenetv2",
        (Stage(24, 2, 2), Stage(32, 3, 2), Stage(64, 4, 2), Stage(96, 3), Stage(160, 3, 2), Stage(320, 1)),
        resolution,
        num_classes,
        width,
    )


def _wide_chain(name: str, stages: Sequence[Stage], resolution: int, num_classes: int, width: float) -> SearchSpace:
    """Those stages between the ends that MobileNetV2 and ProxylessNAS share."""
    options = {"resolution": resolution, "num_classes": num_classes, "width": width}
    check_size(name, resolution=resolution, num_classes=num_classes, width=width)
    stem = OpSignature.create("conv", (3, resolution, resolution), make_divisible(32 * width), stride=2, k=3)
    first = OpSignature.create("mbconv", stem.out_shape, make_divisible(16 * width), k=3, e=1)
    return chain_space(
        name,
        [("stem", stem), ("first", first)],
        stages,
        mbconv_candidates((3, 5, 7), (3, 6)),
        1280,
        num_classes=num_classes,
        width=width,
        options=options,
        activation={},
    )


def mbconv_candidates(kernels: Sequence[int], expansions: Sequence[int]) -> Candidates:
    """Every kernel with every expansion; ``skip``, no block at all, where input and output agree."""

    def candidates(shape: Shape, channels: int, stride: int) -> dict[str, OpSignature]:
        same = stride == 1 and shape[0] == channels
        residual = {"r": 1} if same else {}
        options = {
            f"k{k}_e{e}": OpSignature.create("mbconv", shape, channels, stride=stride, k=k, e=e, **residual)
            for k in kernels
            for e in expansions
        }
        return options | ({"skip": OpSignature.create("skip", shape, channels)} if same else {})

    return candidates
