"""Keys of random streams, and what is drawn from them: SplitMix64 of one number, of arrays, of tensors."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

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
    state = _finalise(_tensor(seed) + _signed(GAMMA))
    for part in parts:
        state = _finalise((state ^ _tensor(part)) + _signed(GAMMA))
    return _shift(state, 1).numpy()


def _tensor(value: int | npt.NDArray[np.int64]) -> Tensor:
    return torch.tensor(_signed(value)) if isinstance(value, int) else torch.from_numpy(np.asarray(value, np.int64))


def seed_globally(seed: int, device: torch.device) -> None:
    """Seed torch's global generators: that of the processor, and of the GPU where ``device`` is one.

    ``torch.manual_seed`` seeds those of all kinds of devices, and where CUDA does not run writes down the stack of
    calls for a time when it may: a millisecond.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


class Draws:
    """Random numbers for B images, each a function of its key in ``keys`` (B,) int64: SplitMix64 of key and counter."""

    def __init__(self, keys: Tensor) -> None:
        self._state, self._stream, self._next = _finalise(keys + _signed(GAMMA)), 0, 0

    def child(self, number: int) -> Draws:
        """Return the same images' stream ``number`` below this one, so that no transform shifts another's draws."""
        return self._derive(self._state, mix(self._stream, number))

    def at(self, index: Tensor) -> Draws:
        """Return the streams, from their start, of the images ``index`` (b,) int64."""
        return self._derive(self._state[index], self._stream)

    def bits(self, n: int) -> Tensor:
        """Return the next ``n`` draws of every image, (B, n) int64: 64 random bits each."""
        counter = torch.arange(self._next + 1, self._next + n + 1, device=self._state.device)
        self._next += n
        return _finalise(self._state[:, None] + (counter * _signed(GAMMA) + _signed(self._stream << 1)))

    def uniform(self, n: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return numbers drawn uniformly from [low, high), (B, n) float64."""
        return _shift(self.bits(n), 11).to(torch.float64).mul_((high - low) * 2.0**-53).add_(low)

    def number(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return one number for every image, drawn uniformly from [low, high), (B,) float64."""
        return self.uniform(1, low, high)[:, 0]

    def integer(self, count: Tensor | int) -> Tensor:
        """Return one of 0..count-1 for every image, (B,) int64; ``count`` is one number or one an image."""
        return (self.number() * count).long()

    def normal(self, n: int) -> Tensor:
        """Return numbers from the standard normal distribution, (B, n) float32, by Box and Muller's transform."""
        bits = self.bits((n + 1) // 2)
        radius = _shift(bits, 32).add_(1).to(torch.float32).mul_(2.0**-32).log_().mul_(-2).sqrt_()
        angle = (bits & 0xFFFFFFFF).to(torch.float32).mul_(2 * math.pi * 2.0**-32)
        return torch.cat((radius * angle.cos(), radius * angle.sin()), 1)[:, :n]

    @staticmethod
    def _derive(state: Tensor, stream: int) -> Draws:
        out = Draws.__new__(Draws)
        out._state, out._stream, out._next = state, stream, 0
        return out


def _signed(value: int) -> int:
    value &= MASK
    return value - (1 << 64) if value >> 63 else value


def _shift(x: Tensor, by: int) -> Tensor:
    """Shift int64 to the right, filling with zeros."""
    shifted: Tensor = (x >> by) & ((1 << (64 - by)) - 1)
    return shifted


def _finalise(x: Tensor) -> Tensor:
    """Return SplitMix64's output for its state ``x``, int64 modulo 2**64."""
    x = (x ^ _shift(x, 30)) * _signed(FIRST)
    x = (x ^ _shift(x, 27)) * _signed(SECOND)
    return torch.bitwise_xor(x, _shift(x, 31))
