"""A network as somebody wrote it down."""

from __future__ import annotations

import os
import re

from hwnas.errors import ArchitectureError
from hwnas.files import read_text
from hwnas.space.alive import tidied
from hwnas.space.architecture import Architecture
from hwnas.space.genotype import Genotype, nas_bench_201_name, printed
from hwnas.space.search_space import SearchSpace


def read_network(written: str, space: SearchSpace) -> Architecture:
    """A network of a space, from a text or a file with one.

    Args:
        written: What ``architecture.json`` or ``genotype.json`` of a run holds; a printed ``Genotype(...)``, with or
            without ``NAME =`` before it; the name of a cell in NAS-Bench-201; or the path of a file that holds one.
        space: Which network it is, depends on its size.

    Raises:
        ArchitectureError: It is none of these, no network of that space, or has operators that change nothing; then
            the message has the same network without them.

    Example:
        >>> from hwnas.space import create_space
        >>> name = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|none~1|nor_conv_1x1~2|"
        >>> read_network(name, create_space("nas-bench-201"))["edge01"]
        'nor_conv_3x3'
    """
    if not os.path.isfile(written):  # which takes any text, however long
        return _network(written, space, "neither a file nor a network")
    try:
        return _network(read_text(written), space, "no network")
    except (OSError, ValueError, ArchitectureError) as error:
        raise ArchitectureError(f"{written}: {error}") from error


def _network(written: str, space: SearchSpace, otherwise: str) -> Architecture:
    text = re.sub(r"^\w+\s*=\s*(?=Genotype)", "", written.strip())
    if text.startswith("|"):
        found = _of_nas_bench_201(text, space)
    elif text.startswith("Genotype"):
        found = Genotype.parse(text).architecture(space)
    elif text.startswith("{") and '"normal_concat"' in text:
        found = Genotype.from_json(text).architecture(space)
    elif text.startswith("{"):
        given = Architecture.from_json(text)
        space.indices(given)  # which refuses one of another space
        found = space.architecture(dict(given.options))
    else:
        raise ArchitectureError(
            f"'{text:.80}' is {otherwise}; expected architecture.json or genotype.json of a run, Genotype(...), or the "
            "|name| of a cell in NAS-Bench-201."
        )
    _check(found, space)
    return found


def _check(found: Architecture, space: SearchSpace) -> None:
    """Refuses a network that is smaller than it says."""
    indices = space.indices(found)
    same, connected = tidied(indices, space)
    if not connected:
        raise ArchitectureError("in that network no image reaches the output. Correct it.")
    if tuple(same) != indices:
        plain = space.architecture(same)
        raise ArchitectureError(
            "parts of that network change nothing, as no image reaches them or nothing reads them. Without them it is "
            f"{printed(plain) or plain.to_json()}"
        )


def _of_nas_bench_201(text: str, space: SearchSpace) -> Architecture:
    operators = re.findall(r"(\w+)~\d", text)
    options = dict(zip(space.choice_names, operators, strict=False))
    if len(operators) != 6 or len(space.choices) != 6 or nas_bench_201_name(options) != text:
        raise ArchitectureError(
            f"'{text:.100}' names no network of space '{space.name}'; expected a cell of nas-bench-201 such as "
            "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|none~1|nor_conv_1x1~2|."
        )
    return space.architecture(options)
