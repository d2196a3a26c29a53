"""ProxylessNAS: ``mobile_trim.yaml`` and its kin, milliseconds.

An operator a block: a key such as ``expanded_conv-input:56x56x24-output:56x56x24-expand:3-kernel:5-stride:1-idskip:1:``
followed by ``count``, ``mean`` and ``var``, indented. The blocks are read here and not by a YAML library, which would
neither name lines nor notice a key that stands twice.

Source:
    ``LatencyEstimator`` of github.com/mit-han-lab/proxylessnas; its first convolution is 3x3, ``Conv_1`` is 1x1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from hwnas.latency.foreign.source import Reading, Source, stated
from hwnas.space import OpSignature, Shape

STATISTIC = "ms is the mean; spread is its standard error, relative; p50 and p90 repeat the mean"

_FIELDS = ("count", "mean", "var")
_SHAPE = r"(\d+)x(\d+)x(\d+)"
_MBCONV = re.compile(
    rf"expanded_conv-input:{_SHAPE}-output:{_SHAPE}-expand:(\d+)-kernel:(\d+)-stride:(\d+)-idskip:([01])"
)
_CONV = re.compile(rf"(Conv|Conv_1)-input:{_SHAPE}-output:{_SHAPE}")
_CLASSIFIER = re.compile(rf"Logits-input:{_SHAPE}-output:(\d+)")

Block = tuple[int, str, dict[str, tuple[int, str]]]
"""Line, key, name -> (line, text)."""


def read(source: Source) -> Reading:
    """Reads the file.

    Raises:
        TableFormatError: A block is malformed; names file and line.
    """
    reading = Reading(source, "ms")
    for line, key, fields in _blocks(source):
        missing = [name for name in _FIELDS if name not in fields]
        if missing:
            raise source.error(line, f"'{key}' has no {missing[0]}; expected {', '.join(_FIELDS)}. Complete the block.")
        count, mean = source.count(*_named(fields, "count")), source.latency(*_named(fields, "mean"))
        deviation = math.sqrt(source.deviation(*_named(fields, "var")))
        reading.add(line, _signature(source, line, key), stated(mean, count=count, deviation=deviation))
    return reading


def _named(fields: dict[str, tuple[int, str]], name: str) -> tuple[int, str, str]:
    line, text = fields[name]
    return line, name, text


def _blocks(source: Source) -> Iterator[Block]:
    block: Block | None = None
    for number, line in enumerate(source.text.splitlines(), start=1):
        content = line.split("#")[0].rstrip()
        if not content:
            continue
        if not content[0].isspace():
            if not content.endswith(":"):
                raise source.error(number, f"'{content}' is neither a key that ends in ':' nor an indented field.")
            if block:
                yield block
            block = number, content[:-1], {}
            continue
        name, _, text = (part.strip() for part in content.partition(":"))
        if block is None or name not in _FIELDS or not text:
            raise source.error(number, f"'{content.strip()}' is no field of an operator; expected 'mean: 1.5' or such.")
        if name in block[2]:
            raise source.error(number, f"{name} stands twice under '{block[1]}'. Keep one of the two.")
        block[2][name] = number, text
    if block:
        yield block


def _signature(source: Source, line: int, key: str) -> OpSignature:
    if match := _MBCONV.fullmatch(key):
        numbers = [int(group) for group in match.groups()]
        (e, k, stride, residual), (into, out) = numbers[6:], _shapes(numbers)
        if residual and into != out:
            raise source.error(line, f"'{key}' adds its input to an output of another shape. Correct idskip.")
        return source.operator(line, "mbconv", into, out, stride, k=k, e=e, **({"r": 1} if residual else {}))
    if match := _CONV.fullmatch(key):
        into, out = _shapes([int(group) for group in match.groups()[1:]])
        stride = round(into[1] / out[1]) if out[1] else 0
        return source.operator(line, "conv", into, out, stride, k=3 if match[1] == "Conv" else 1)
    if match := _CLASSIFIER.fullmatch(key):
        height, width, channels, classes = (int(group) for group in match.groups())
        return OpSignature("classifier", (channels, height, width), (classes, 1, 1))
    raise source.error(
        line, f"'{key}' is no operator of this format; expected expanded_conv, Conv, Conv_1 or Logits with shapes."
    )


def _shapes(numbers: list[int]) -> tuple[Shape, Shape]:
    """Input and output, from height, width, channels of each."""
    h, w, c, out_h, out_w, out_c = numbers[:6]
    return (c, h, w), (out_c, out_h, out_w)
