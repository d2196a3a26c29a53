"""TF-NAS: its latency dictionaries as JSON, milliseconds.

``base`` is stem and head together. Every other key, such as ``MBInvertedResBlock_56_24_48_24_k3_s1_relu``, names height
of the input, input channels, squeeze-excite channels, output channels, kernel, stride and activation, and holds
expanded channels -> latency. hwnas has no such operator, so these are families of their own: ``tfnas_base`` and
``tfnas_mbconv`` with the hidden width ``h`` and the squeeze-excite width ``se``.

The published files hold about 80 entries that are zero or negative: they continue a line below the narrowest width that
was measured. These become failed records that quote the number.

Source:
    ``make_lat_lut_example.py`` and ``layers.py`` of github.com/AberHu/TF-NAS.
"""

from __future__ import annotations

import re

from hwnas.latency.foreign.source import Reading, Source, stated
from hwnas.latency.measurement import failure
from hwnas.space import OpSignature

STATISTIC = "ms is the only number of the file; p50 and p90 repeat it; number of runs and spread are not stated"

BASE = OpSignature("tfnas_base", (3, 224, 224), (1000, 1, 1), 32)
"""First convolution, first block without a choice, last convolution, pooling and classifier."""

_BLOCK = re.compile(r"MBInvertedResBlock_(\d+)_(\d+)_(\d+)_(\d+)_k(\d+)_s([12])_([a-z]+)")


def read(source: Source) -> Reading:
    """Reads the file.

    Raises:
        TableFormatError: A key or a number is malformed; names file and line.
    """
    reading = Reading(source, "ms")
    for key, value in source.json_pairs():
        if key == "base":
            reading.add(key, BASE, stated(source.latency(key, key, value)))
            continue
        match = _BLOCK.fullmatch(key)
        if match is None or not isinstance(value, list):
            raise source.error(
                key,
                f"'{key}' is no block of this format; expected {_BLOCK.pattern} with latencies by expanded channels.",
            )
        for width, text in value:
            name = f"'{key}' with {width} expanded channels"
            latency = source.number(key, name, text)
            reading.add(
                key,
                _signature(source, key, match, source.count(key, f"a width of '{key}'", width)),
                stated(latency) if latency > 0 else failure(f"the file says {text} ms, which is extrapolated"),
            )
    return reading


def _signature(source: Source, key: str, match: re.Match[str], hidden: int) -> OpSignature:
    size, c_in, se, c_out, kernel, stride = (int(group) for group in match.groups()[:6])
    smaller = -(-size // stride)
    attributes: dict[str, int | str] = {"k": kernel, "h": hidden, "se": se, "act": match[7]}
    return source.operator(key, "tfnas_mbconv", (c_in, size, size), (c_out, smaller, smaller), stride, **attributes)
