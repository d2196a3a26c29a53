"""A network as somebody wrote it down."""

from __future__ import annotations

import os
import re

from hwnas.errors import ArchitectureError
from hwnas.files import read_text
from hwnas.space.alive import whole
from hwnas.space.architecture import Architecture
from hwnas.space.genotype import Genotype, nas_bench_201_name
from hwnas.space.search_space import SearchSpace


def read_network(written: str, space: SearchSpace) -> Architecture:
    """A network of a space, from a text or a file with one.

    Args:
        written: What ``architecture.json`` or ``genotype.json`` of a run holds; a printed ``Genotype(...)``; the name
            of a cell in NAS-Bench-201; or the path of a file that holds one of these.
        space: Which network it is, depends on its size.

    Raises:
        ArchitectureError: It is none of these, or no network of that space.

    Example:
        >>> from hwnas.space import create_space
        >>> name = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|none~1|nor_conv_1x1~2|"
        >>> read_network(name, create_space("nas-bench-201"))["edge01"]
        'nor_conv_3x3'
    """
    text = _content(written).strip()
    if text.startswith("|"):
        found = _of_nas_bench_201(text, space)
    elif text.startswith("Genotype"):
        found = Genotype.parse(text).architecture(space)
    elif '"normal_concat"' in text:
        found = Genotype.from_json(text).architecture(space)
    else:
        given = Architecture.from_json(text)
        space.indices(given)  # which refuses one of another space
        found = space.architecture(dict(given.options))
    if not whole(space.indices(found), space):
        raise ArchitectureError(
            "parts of that network change nothing, as no image reaches them or nothing reads them. Make its operators "
            "'none' where that is so."
        )
    return found


def _content(written: str) -> str:
    if os.path.isfile(written):  # which takes any text, however long
        try:
            return read_text(written)
        except (OSError, ValueError) as error:
            raise ArchitectureError(f"{written}: {error}") from error
    if not written.lstrip().startswith(("{", "|", "Genotype")):
        raise ArchitectureError(
            f"'{written:.80}' is neither a file nor a network; expected architecture.json or genotype.json of a run, "
            "Genotype(...), or the |name| of a cell in NAS-Bench-201."
        )
    return written


def _of_nas_bench_201(text: str, space: SearchSpace) -> Architecture:
    operators = re.findall(r"(\w+)~\d", text)
    options = dict(zip(space.choice_names, operators, strict=False))
    if len(operators) != 6 or len(space.choices) != 6 or nas_bench_201_name(options) != text:
        raise ArchitectureError(
            f"'{text:.100}' names no network of space '{space.name}'; expected a cell of nas-bench-201 such as "
            "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|none~1|nor_conv_1x1~2|."
        )
    return space.architecture(options)
