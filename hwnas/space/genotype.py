"""Cells as the literature prints them; those of DARTS as JSON, too."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from hwnas.errors import ArchitectureError
from hwnas.space.architecture import Architecture
from hwnas.space.library.darts import EDGES, KINDS, NUM_INPUTS, NUM_NODES, edge_name
from hwnas.space.search_space import SearchSpace
from hwnas.space.signature import NONE

Edges = tuple[tuple[str, int], ...]
"""Operator and source of every edge that is kept, node by node."""

CHOICE = re.compile(r"(?:(normal|reduce|cell\d+)_)?edge([0-4])([1-5])(?:_\w+)?")
"""Name of the choice of an edge: kind of the cell, where there are several, source and target."""

ONLY = "cell"
"""The kind of cell where there is but one."""

CONCAT = tuple(range(NUM_INPUTS, NUM_NODES))


def kept_edges(architecture: Architecture) -> dict[str, list[tuple[int, int, str]]]:
    """Kind of a cell -> source, target and operator of every edge that is kept, by target; empty without such cells.

    Cells that share nothing, as those of ``gold-nas``, are ``cell0`` and so on, and that of ``nas-bench-201`` is
    ``cell``; an edge of two operators comes twice.
    """
    found: dict[str, list[tuple[int, int, str]]] = {}
    for name, option in architecture.options:
        parts = CHOICE.fullmatch(name)
        if parts and option != NONE:
            found.setdefault(parts[1] or ONLY, []).append((int(parts[2]), int(parts[3]), option))
    return {kind: sorted(edges, key=lambda edge: (edge[1], edge[0])) for kind, edges in found.items()}


@dataclass(frozen=True)
class Genotype:
    """A normal and a reducing cell of four nodes with two edges each, all joined.

    Args:
        normal: Edges of the normal cell.
        normal_concat: Its nodes that are joined: 2 to 5.
        reduce: Edges of the reducing cell.
        reduce_concat: Its nodes that are joined: 2 to 5.

    Raises:
        ArchitectureError: A cell has not two edges a node, from different nodes before it, or other nodes are joined.

    Example:
        >>> text = str(DARTS_V2)
        >>> text[:60]
        "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ("
        >>> Genotype.parse(text) == Genotype.from_json(DARTS_V2.to_json()) == DARTS_V2
        True

    Source:
        DARTS, arXiv 1806.09055, released code.
    """

    normal: Edges
    normal_concat: tuple[int, ...]
    reduce: Edges
    reduce_concat: tuple[int, ...]

    def __post_init__(self) -> None:
        for kind in KINDS:
            edges, joined = getattr(self, kind), getattr(self, f"{kind}_concat")
            if len(edges) != 2 * len(CONCAT) or tuple(joined) != CONCAT:
                raise ArchitectureError(
                    f"the {kind} cell has {len(edges)} edges and joins nodes {list(joined)}; expected "
                    f"{2 * len(CONCAT)} edges and nodes {list(CONCAT)}. Only cells of the DARTS space can be read."
                )
            for target in CONCAT:
                sources = [source for _, source in _into(edges, target)]
                if len(set(sources)) != 2 or not all(0 <= source < target for source in sources):
                    raise ArchitectureError(
                        f"node {target} of the {kind} cell reads {sources}; expected two different nodes before it. "
                        "Two operators on one edge have no place in this space."
                    )

    @classmethod
    def of(cls, architecture: Architecture) -> Genotype:
        """The cells of an architecture.

        Raises:
            ArchitectureError: It is none of such cells, or a node has not two inputs.
        """
        kept = kept_edges(architecture)
        normal, reduce = (tuple((option, source) for source, _, option in kept.get(kind, ())) for kind in KINDS)
        return cls(normal, CONCAT, reduce, CONCAT)

    def architecture(self, space: SearchSpace) -> Architecture:
        """The same as an architecture of a space of shared cells, of any size.

        Raises:
            ArchitectureError: The space has no such cells, or not these operators.
        """
        options = {f"{kind}_{edge_name(*edge)}": NONE for kind in KINDS for edge in EDGES}
        for kind in KINDS:
            for target in CONCAT:
                for option, source in _into(getattr(self, kind), target):
                    options[f"{kind}_{edge_name(source, target)}"] = option
        return space.architecture(options)

    def __str__(self) -> str:
        parts = (f"{field.name}={list(getattr(self, field.name))}" for field in fields(self))
        return f"Genotype({', '.join(parts)})"

    @classmethod
    def parse(cls, text: str) -> Genotype:
        """Reads the printed form; the joined nodes may be a list or a range.

        Raises:
            ArchitectureError: The text is something else.
        """
        try:
            call = ast.parse(text.strip(), mode="eval").body
            if not isinstance(call, ast.Call) or ast.unparse(call.func) != "Genotype" or call.args:
                raise ValueError("no Genotype(...)")
            found = _read({str(word.arg): _value(word.value) for word in call.keywords})
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
            raise _no_genotype(error) from error
        return cls(*found)

    def to_json(self) -> str:
        """JSON of the same four names."""
        return json.dumps({field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def from_json(cls, text: str) -> Genotype:
        """Reads the JSON.

        Raises:
            ArchitectureError: The text is something else.
        """
        try:
            found = _read(json.loads(text))
        except (ValueError, TypeError, RecursionError) as error:
            raise _no_genotype(error) from error
        return cls(*found)


def printable(architecture: Architecture) -> Genotype | None:
    """The cells of an architecture; None where it has none, or nodes with other than two edges."""
    try:
        return Genotype.of(architecture)
    except ArchitectureError:
        return None


def printed(architecture: Architecture) -> str | None:
    """Cells as the literature prints them: a genotype, or the name that NAS-Bench-201 has; None where it has none."""
    if set(kept_edges(architecture)) == {ONLY}:
        return nas_bench_201_name(dict(architecture.options))
    genotype = printable(architecture)
    return str(genotype) if genotype else None


def nas_bench_201_name(options: Mapping[str, str]) -> str:
    """The name of a cell of NAS-Bench-201: ``|op~0|+|op~0|op~1|+|op~0|op~1|op~2|``.

    Args:
        options: Choice name -> operator, in the order of the space.
    """
    names = iter(options.values())
    return "+".join(
        "|" + "|".join(f"{next(names)}~{source}" for source in range(target)) + "|" for target in range(1, 4)
    )


def _read(found: Any) -> tuple[Edges, tuple[int, ...], Edges, tuple[int, ...]]:
    names = [field.name for field in fields(Genotype)]
    if not isinstance(found, dict) or sorted(found) != sorted(names):
        raise ValueError(f"it has not the four names {', '.join(names)}")
    normal, reduce = (tuple((str(option), _node(source)) for option, source in found[kind]) for kind in KINDS)
    normal_concat, reduce_concat = (tuple(map(_node, found[f"{kind}_concat"])) for kind in KINDS)
    return normal, normal_concat, reduce, reduce_concat


def _node(number: Any) -> int:
    if type(number) is not int:
        raise ValueError(f"{number!r} is no number of a node")
    return number


def _into(edges: Edges, target: int) -> Edges:
    first = 2 * (target - NUM_INPUTS)
    return edges[first : first + 2]


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "range":
        bounds = [ast.literal_eval(each) for each in node.args]
        if len(bounds) == 2 and all(isinstance(each, int) and 0 <= each <= 100 for each in bounds):
            return range(*bounds)
    return ast.literal_eval(node)


def _no_genotype(error: BaseException) -> ArchitectureError:
    return ArchitectureError(
        f"not a genotype: {error}; expected Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=[2, 3, 4, 5], "
        "reduce=[...], reduce_concat=[2, 3, 4, 5]), or JSON of the same names."
    )


DARTS_V2 = Genotype.parse(
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), "
    "('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], normal_concat=range(2, 6), "
    "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0), "
    "('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=range(2, 6))"
)
"""The cells that DARTS of second order found. Source: arXiv 1806.09055, figures 4 and 5, and released code."""
