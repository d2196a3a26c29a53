"""The inputs that the runner makes on the device, made again on the host; ``runner/tensor.c`` is the other half."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from hwnas.errors import UsageError

_INPUT_STEP = 0x9E3779B9
"""Between the seeds of two inputs of one model: 2**32 divided by the golden ratio."""


def fixed_input(seed: int, index: int, shape: Sequence[int], dtype: str = "float32") -> np.ndarray:
    """Input number ``index`` of every model of a job with that seed.

    Floating point lies in [-1, 1) and is exact in its type; integers are below 16, 8-bit ones use all their bits.

    Args:
        seed: 1 to 2**32 - 1.
        index: 0 for the first input.
        shape: As the runner reports it.
        dtype: As the runner reports it.

    Raises:
        UsageError: No such element type.

    Source:
        G. Marsaglia, Xorshift RNGs, Journal of Statistical Software 8(14), 2003: shifts 13, 17, 5.
    """
    state = ((seed + _INPUT_STEP * index) & 0xFFFFFFFF) or 1
    bits = _xorshift32(state, math.prod(shape))
    if dtype in ("float32", "float64"):
        values: np.ndarray = ((bits >> 8).astype(np.int32) - (1 << 23)).astype(dtype) / np.array(1 << 23, dtype)
    elif dtype == "float16":
        values = ((bits >> 21).astype(np.int32) - 1024).astype(dtype) / np.float16(1024)
    elif dtype in ("int32", "int64"):
        values = (bits >> 28).astype(dtype)
    elif dtype == "bool":
        values = (bits >> 31).astype(dtype)
    elif dtype in ("int8", "uint8"):
        values = (bits >> 24).astype(np.uint8).view(dtype)
    else:
        raise UsageError(f"the runner makes no inputs of type '{dtype}'; give the model floating point or integers.")
    return values.reshape(tuple(shape))


def _step(states: np.ndarray) -> np.ndarray:
    result = states.copy()
    result ^= result << np.uint32(13)
    result ^= result >> np.uint32(17)
    result ^= result << np.uint32(5)
    return result


def _xorshift32(state: int, count: int) -> np.ndarray:
    """The ``count`` numbers after ``state``.

    A step is linear in the bits of the state, so many steps are one matrix: the known numbers times that matrix are
    as many numbers more, and its square is the matrix of the next doubling.
    """
    known = _step(np.array([state], np.uint32))
    columns = _step(np.uint32(1) << np.arange(32, dtype=np.uint32))  # images of the 32 bits
    while len(known) < count:
        known = np.concatenate([known, _multiply(columns, known)])
        columns = _multiply(columns, columns)
    return known[:count]


def _multiply(columns: np.ndarray, states: np.ndarray) -> np.ndarray:
    result = np.zeros_like(states)
    for bit, column in enumerate(columns):
        result ^= ((states >> np.uint32(bit)) & np.uint32(1)) * column
    return result
