"""Keys of random streams: SplitMix64, one number at a time and over arrays."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

MASK = (1 << 64) - 1
GAMMA, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # SplitMix64


def mix(seed: int, *parts: int) -> int:
    """Return a 63-bit hash of ``seed`` and ``parts``, in this order: SplitMix64 chained over them."""
    state = _step(seed & MASK)
    for part in parts:
        state = _step(state ^ (part & MASK))
    return state >> 1


def _step(x: int) -> int:
    x = (x + GAMMA) & MASK
    x = ((x ^ (x >> 30)) * FIRST) & MASK
    x = ((x ^ (x >> 27)) * SECOND) & MASK
    return x ^ (x >> 31)


def mix_array(seed: int | npt.NDArray[np.int64], *parts: int | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return :func:`mix` of every element of ``seed`` and ``parts`` broadcast together, int64."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is meant
        state = _step_array(_bits(seed))
        for part in parts:
            state = _step_array(state ^ _bits(part))
    return np.asarray(state >> np.uint64(1)).astype(np.int64)


def _bits(value: int | npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    bits: npt.NDArray[np.uint64] = np.asarray(value & MASK if isinstance(value, int) else value).astype(np.uint64)
    return bits


def _step_array(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = np.asarray(x + np.uint64(GAMMA))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(FIRST)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(SECOND)
    return np.asarray(x ^ (x >> np.uint64(31)))
