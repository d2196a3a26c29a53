"""The FBNet space: nine blocks a layer, some with grouped and shuffled 1x1 convolutions."""

from __future__ import annotations

from hwnas.space.library.chain import Stage, chain_space, check_size, make_divisible
from hwnas.space.search_space import SearchSpace
from hwnas.space.signature import OpSignature, Shape

BLOCKS = {
    f"k{k}_e{e}" + ("_g2" if g == 2 else ""): (k, e, g)
    for k in (3, 5)
    for e, g in ((1, 1), (1, 2), (3, 1), (6, 1))
}  # fmt: skip
"""Name -> kernel, expansion, groups of the 1x1 convolutions."""

WIDTHS_AND_LAYERS = ((16, 1), (24, 4), (32, 4), (64, 4), (112, 4), (184, 4), (352, 1))


def fbnet(*, resolution: int = 224, num_classes: int = 1000, width: float = 1.0, head: int = 1984) -> SearchSpace:
    """FBNet: 22 searched layers of nine blocks, k{3,5} x e{1,1 in 2 groups,3,6} or skip.

    ====== ============ ======== ====== =========
    input  operator     channels layers stride
    ====== ============ ======== ====== =========
    224    conv 3x3     16       1      2
    112    choice       16       1      1
    112    choice       24       4      2
    56     choice       32       4      2
    28     choice       64       4      2
    14     choice       112      4      1
    14     choice       184      4      2
    7      choice       352      1      1
    7      conv 1x1     1984     1      1
    7      classifier   classes  1      -
    ====== ============ ======== ====== =========

    A block is 1x1, channel shuffle if grouped, depthwise, 1x1; ReLU after the first two. The first 1x1 is there
    even where the expansion is 1 (the released final networks drop it). Where the shape changes ``skip`` is a
    strided 1x1 convolution.

    Args:
        resolution: Height and width of the input, at least 16.
        num_classes: Outputs of the classifier, at least 2.
        width: Multiplier of every channel count, rounded to multiples of 8.
        head: Channels of the last convolution; 1504 in FBNet-A.

    Source:
        FBNet, arXiv 1812.03443, tables 1 and 2.
    """
    return _fbnet("fbnet", (1, 2, 2, 2, 1, 2, 1), 2, resolution, num_classes, width, head)


def fbnet_cifar(*, resolution: int = 32, num_classes: int = 100, width: float = 1.0, head: int = 1984) -> SearchSpace:
    """FBNet for small images: the layers of ``fbnet`` with three strides of 2 in place of five.

    Args:
        resolution: Height and width of the input, at least 16.
        num_classes: Outputs of the classifier, at least 2.
        width: Multiplier of every channel count, rounded to multiples of 8.
        head: Channels of the last convolution.

    Source:
        HW-NAS-Bench, arXiv 2103.10584, its FBNet space for CIFAR-100: strides 1, 1, 2, 2, 1, 2, 1 after a stem of
        stride 1.
    """
    return _fbnet("fbnet-cifar", (1, 1, 2, 2, 1, 2, 1), 1, resolution, num_classes, width, head)


def _fbnet(
    name: str, strides: tuple[int, ...], stem_stride: int, resolution: int, num_classes: int, width: float, head: int
) -> SearchSpace:
    check_size(name, resolution=resolution, num_classes=num_classes, width=width)
    image: Shape = (3, resolution, resolution)
    stem = OpSignature.create("conv", image, make_divisible(16 * width), stride=stem_stride, k=3, act="relu")
    return chain_space(
        name,
        [("stem", stem)],
        [Stage(*stage, stride) for stage, stride in zip(WIDTHS_AND_LAYERS, strides, strict=True)],
        _candidates,
        head,
        num_classes=num_classes,
        width=width,
        options={"resolution": resolution, "num_classes": num_classes, "width": width, "head": head},
        activation={"act": "relu"},
    )


def _candidates(shape: Shape, channels: int, stride: int) -> dict[str, OpSignature]:
    same = stride == 1 and shape[0] == channels
    options = {}
    for name, (k, e, g) in BLOCKS.items():
        attributes: dict[str, int | str] = {"k": k, "e": e, "act": "relu"}
        attributes |= {"g": g} if g > 1 else {}
        attributes |= {"r": 1} if same else {}
        attributes |= {"expand": "always"} if e == 1 else {}
        options[name] = OpSignature.create("mbconv", shape, channels, stride=stride, **attributes)
    activation = {} if same else {"act": "relu"}
    return options | {"skip": OpSignature.create("skip", shape, channels, stride=stride, **activation)}
