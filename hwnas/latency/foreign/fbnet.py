"""FBNet of AnnaAraslanova: ``lookup_table.txt``, MICROSECONDS.

A row of operator names, then a row for each of the 22 layers of the space ``fbnet`` at 224, the first layer first;
``_s2`` in a name are two groups (one expansion). Stem, head and classifier are not in the file and stay missing.

The same operator stands at several layers with different numbers, up to twice as large, as each was timed once. It is
one entry here: the mean over its layers, the quantiles over them, their number as ``num_samples`` and the standard
error of the mean as ``spread``. Sums over layers therefore differ from sums over the file's own positions.

Source:
    ``lookup_table_builder.py`` of github.com/AnnaAraslanova/FBNet; FBNet, arXiv 1812.03443, tables 1 and 2.
"""

from __future__ import annotations

from collections import defaultdict

from hwnas.latency.foreign.source import Reading, Source, pooled
from hwnas.space import OpSignature, create_space

STATISTIC = "ms is the mean over the layers with that operator, p50 and p90 their quantiles, spread the standard error"


def read(source: Source) -> Reading:
    """Reads the file.

    Raises:
        TableFormatError: Rows or columns are not those of the space, or a number is malformed; names file and line.
    """
    lines = [(number, line.split()) for number, line in enumerate(source.text.splitlines(), start=1) if line.strip()]
    layers = [layer for layer in create_space("fbnet").layers if layer.choices]
    options = create_space("fbnet").choices[0].options
    header = lines[0][1] if lines else []
    names = [name.removeprefix("ir_").replace("_s2", "_e1_g2") for name in header]
    if sorted(names) != sorted(options):
        raise source.error(1, f"the operators are {' '.join(names) or 'missing'}; expected {' '.join(options)}.")
    if len(lines) - 1 != len(layers):
        raise source.error(
            lines[-1][0],
            f"{len(lines) - 1} rows of latencies; space 'fbnet' has {len(layers)} layers. Is the file cut?",
        )
    found: dict[OpSignature, list[float]] = defaultdict(list)
    for layer, (number, cells) in zip(layers, lines[1:], strict=True):
        if len(cells) != len(names):
            raise source.error(number, f"{len(cells)} numbers where {len(names)} were expected. Is the row cut?")
        for name, column, cell in zip(names, header, cells, strict=True):
            found[layer.signatures[options.index(name)]].append(source.latency(number, column, cell))
    return Reading(source, "us", {signature: pooled(latencies) for signature, latencies in found.items()})
