"""The key of a latency table: one operator on one input shape."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from hwnas.errors import SpaceError

NONE = "none"
"""Operator, and option, of an edge that a network does without."""

SIGNATURE_VERSION = 1
"""Version of the text form; written into every table's sidecar."""

Shape = tuple[int, int, int]
"""Channels, height, width of one image's feature map."""

_ORDER = ("k", "e", "g", "r")
_TEXT = re.compile(
    r"(?P<op>[a-z][a-z0-9_]*)(?P<attributes>(?: [a-z]+(?:=[a-z0-9_]+|N))*) s(?P<stride>N)"
    r" (?P<c>N)x(?P<h>N)x(?P<w>N) -> (?P<oc>N)x(?P<oh>N)x(?P<ow>N)".replace("N", "[0-9]{1,9}")
)
_ATTRIBUTE = re.compile(r"([a-z]+)(?:=([a-z0-9_]+)|([0-9]+))")


def _rank(name: str) -> tuple[int, str]:
    return (_ORDER.index(name) if name in _ORDER else len(_ORDER), name)


@dataclass(frozen=True)
class OpSignature:
    """An operator with everything its latency depends on, except the device.

    Two layers with equal signatures are measured once. The text form is a file format:
    ``op attributes s<stride> CxHxW -> CxHxW``, attributes being ``<name><integer>`` or ``<name>=<word>``
    in a fixed order (``k`` kernel, ``e`` expansion, ``g`` groups, ``r`` residual, then by name). Integers have
    at most nine digits; sizes, stride and groups are positive.

    Args:
        op: Name of the operator family, as known to ``hwnas.ops``.
        in_shape: Channels, height, width of the input.
        out_shape: Channels, height, width of the output.
        stride: Spatial stride.
        attributes: What else distinguishes it, as sorted pairs; use ``OpSignature.create``.

    Example:
        >>> text = "mbconv k5 e6 s2 24x56x56 -> 32x28x28"
        >>> signature = OpSignature.parse(text)
        >>> signature.attribute("k"), signature.stride, str(signature) == text
        (5, 2, True)
    """

    op: str
    in_shape: Shape
    out_shape: Shape
    stride: int = 1
    attributes: tuple[tuple[str, int | str], ...] = ()

    @classmethod
    def create(
        cls, op: str, in_shape: Shape, out_channels: int, *, stride: int = 1, **attributes: int | str
    ) -> OpSignature:
        """Builds a signature whose spatial size shrinks by ``stride``, odd sizes rounded up."""
        height, width = (-(-size // stride) for size in in_shape[1:])
        return cls(op, in_shape, (out_channels, height, width), stride, _canonical(attributes))

    @classmethod
    def parse(cls, text: str) -> OpSignature:
        """Reads the text form.

        Raises:
            SpaceError: The text is not the canonical form of a signature.
        """
        match = _TEXT.fullmatch(text)
        if match is None:
            raise SpaceError(
                f"'{text:.200}' is not an operator signature; expected for example "
                "'mbconv k5 e6 s2 24x56x56 -> 32x28x28'."
            )
        pairs = {name: word or int(number) for name, word, number in _ATTRIBUTE.findall(match["attributes"])}
        c, h, w, oc, oh, ow = (int(match[key]) for key in ("c", "h", "w", "oc", "oh", "ow"))
        parsed = cls(match["op"], (c, h, w), (oc, oh, ow), int(match["stride"]), _canonical(pairs))
        if str(parsed) != text:
            raise SpaceError(f"'{text}' is not in canonical form; write it as '{parsed}'.")
        if 0 in (*parsed.in_shape, *parsed.out_shape, parsed.stride, pairs.get("g")):
            raise SpaceError(f"'{text}' has a size, stride or number of groups of 0; expected 1 or more. Correct it.")
        return parsed

    def attribute(self, name: str, default: int = 0) -> int:
        """Integer attribute, or ``default`` where the signature does not carry it."""
        value = dict(self.attributes).get(name, default)
        if not isinstance(value, int):
            raise SpaceError(f"attribute '{name}' of '{self}' is not an integer.")
        return value

    def __str__(self) -> str:
        words = [f"{name}{value}" if isinstance(value, int) else f"{name}={value}" for name, value in self.attributes]
        shapes = ("x".join(map(str, shape)) for shape in (self.in_shape, self.out_shape))
        return " ".join([self.op, *words, f"s{self.stride}", " -> ".join(shapes)])


def _canonical(attributes: Mapping[str, int | str]) -> tuple[tuple[str, int | str], ...]:
    return tuple(sorted(attributes.items(), key=lambda pair: _rank(pair[0])))
