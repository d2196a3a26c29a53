"""Search spaces as plain data; standard library only."""

from hwnas.space.alive import tidied, whole, without_dead
from hwnas.space.architecture import Architecture
from hwnas.space.cost import macs, parameters
from hwnas.space.library import SPACES, create_space, listed, spelled
from hwnas.space.search_space import Choice, Joined, LayerSpec, Node, SearchSpace, Wiring, chained
from hwnas.space.signature import NONE, SIGNATURE_VERSION, OpSignature, Shape

__all__ = [
    "NONE",
    "SIGNATURE_VERSION",
    "SPACES",
    "Architecture",
    "Choice",
    "Joined",
    "LayerSpec",
    "Node",
    "OpSignature",
    "SearchSpace",
    "Shape",
    "Wiring",
    "chained",
    "create_space",
    "listed",
    "macs",
    "parameters",
    "spelled",
    "tidied",
    "whole",
    "without_dead",
]
