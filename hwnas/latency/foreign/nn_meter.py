"""nn-Meter: block tables of its hybrid transformer branch as JSON, milliseconds.

A flat object, key -> latency. hwnas has no such blocks, so each kind is a family of its own, ``nnmeter_<kind>``, with
every number of the key in its signature:

=========== ==============================================================================================
kind        key
=========== ==============================================================================================
firstconv   input height, input channels, output channels, stride, kernel
conv        input height, input channels, output channels, expansion, stride, activation, kernel, se or nose
transds     input height, input channels, output channels, stride, expansion
transattn   height, channels, activation, value scale, norm
transffn    height, channels, expansion, activation, norm
mbpool      height, input channels, output channels, expansion, activation
=========== ==============================================================================================

Source:
    ``examples/test_transformer/build_lut/build_lut.py`` of github.com/microsoft/nn-Meter.
"""

from __future__ import annotations

import re

from hwnas.latency.foreign.source import Reading, Source, stated
from hwnas.space import OpSignature

STATISTIC = "ms is the only number of the file; p50 and p90 repeat it; number of runs and spread are not stated"

_ACT = r"(?P<act>(?:hard_)?[a-z]+)"
_KEYS = [
    re.compile(r"(?P<kind>firstconv)_(?P<size>\d+)_(?P<c_in>\d+)_(?P<c_out>\d+)_(?P<stride>\d+)_(?P<k>\d+)"),
    re.compile(
        r"(?P<kind>conv)_(?P<size>\d+)_(?P<c_in>\d+)_(?P<c_out>\d+)_(?P<e>\d+)_(?P<stride>\d+)"
        rf"_{_ACT}_(?P<k>\d+)_(?P<se>se|nose)"
    ),
    re.compile(r"(?P<kind>transds)_(?P<size>\d+)_(?P<c_in>\d+)_(?P<c_out>\d+)_(?P<stride>\d+)_(?P<e>\d+)"),
    re.compile(rf"(?P<kind>transattn)_(?P<size>\d+)_(?P<c_in>\d+)_{_ACT}_(?P<v>\d+)_(?P<norm>[a-z]+)"),
    re.compile(rf"(?P<kind>transffn)_(?P<size>\d+)_(?P<c_in>\d+)_(?P<e>\d+)_{_ACT}_(?P<norm>[a-z]+)"),
    re.compile(rf"(?P<kind>mbpool)_(?P<size>\d+)_(?P<c_in>\d+)_(?P<c_out>\d+)_(?P<e>\d+)_{_ACT}"),
]
_SHAPES = ("kind", "size", "c_in", "c_out", "stride")


def read(source: Source) -> Reading:
    """Reads the file.

    Raises:
        TableFormatError: A key or a number is malformed; names file and line.
    """
    reading = Reading(source, "ms")
    for key, value in source.json_pairs():
        reading.add(key, _signature(source, key), stated(source.latency(key, f"'{key}'", value)))
    return reading


def _signature(source: Source, key: str) -> OpSignature:
    match = next(filter(None, (pattern.fullmatch(key) for pattern in _KEYS)), None)
    if match is None:
        raise source.error(key, f"'{key}' is no block of this format; expected for example 'firstconv_224_3_16_2_3'.")
    parts = match.groupdict()
    op, size, c_in = f"nnmeter_{parts['kind']}", int(parts["size"]), int(parts["c_in"])
    c_out, stride = int(parts.get("c_out", c_in)), int(parts.get("stride", 1))
    attributes = {name: int(text) if text.isdecimal() else text for name, text in parts.items() if name not in _SHAPES}
    if parts["kind"] == "mbpool":  # pools over the whole feature map
        return source.operator(key, op, (c_in, size, size), (c_out, 1, 1), size, **attributes)
    smaller = -(-size // stride) if stride else 0
    return source.operator(key, op, (c_in, size, size), (c_out, smaller, smaller), stride, **attributes)
