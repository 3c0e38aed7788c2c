"""Dropout whose masks depend only on (seed, window), and which costs a tenth of torch's dropout on a CPU.

    with keyed_dropout([WindowGroup(seed, first, last, total), …], device):     one per group of the batch's windows
        model(window, prompt)

    CPU      window i of a group draws from its own stream, SFC64 seeded with (seed, i). Each 64-bit word gives four 16-bit
             numbers, and an entry is dropped if its number is below rate · 2¹⁶
    others   a generator of the device, seeded with `seed`, draws the mask of all `total` windows; the group's part is taken

A window's masks therefore do not depend on the rest of the batch, nor on how the batch is divided among workers: a worker that
holds windows first … last - 1 drops the same entries in them as a worker that holds the whole batch. Outside `keyed_dropout`
masks are drawn from torch's global generator.

On a CPU, torch draws every Bernoulli variable of a mask separately, in one thread; at the paper preset this takes a fifth of a
training step. Here the rate is rounded to a multiple of 2⁻¹⁶, and kept entries are divided by exactly the share that is kept.

Shape legend: B windows held here.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import ShapeError

_LEVELS = 1 << 16


@dataclass(frozen=True, slots=True)
class WindowGroup:
    """A group of windows: numbers `first` … `last` - 1 of `total`. Their masks are drawn with `seed`."""

    seed: int
    first: int
    last: int
    total: int


class _Masks(Protocol):
    """Draws the masks of one forward pass, in the order in which the pass needs them."""

    fused_attention: bool

    def draw(self, shape: Sequence[int], rate: float, dtype: torch.dtype) -> Tensor: ...


_MASKS: contextvars.ContextVar[_Masks | None] = contextvars.ContextVar("dropout masks", default=None)


@contextlib.contextmanager
def keyed_dropout(groups: Sequence[WindowGroup], device: torch.device, *, fused_attention: bool = False) -> Iterator[None]:
    """In the block, one forward pass draws every dropout mask by (seed, window).

    groups: the windows of the batch, group after group.
    fused_attention: on a GPU, attention drops inside torch's fused kernel. That is faster, but its masks come from torch's
        global generator.
    """
    masks = _StreamMasks(groups) if device.type == "cpu" else GeneratorMasks(groups, device, fused_attention=fused_attention)
    token = _MASKS.set(masks)
    try:
        yield
    finally:
        _MASKS.reset(token)


class Dropout(nn.Module):
    """In training, sets entries to 0 with probability `rate` and divides the others by 1 - `rate`."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    @property
    def is_active(self) -> bool:
        """Whether entries are dropped now."""
        return self.training and self.rate > 0

    def needs_mask(self, device: torch.device) -> bool:
        """Whether attention on `device` must apply a mask of this module instead of using torch's fused kernel.

        The fused kernel cannot use keyed masks, and there is none with dropout for a CPU.
        """
        masks = _MASKS.get()
        return self.is_active and (device.type == "cpu" or (masks is not None and not masks.fused_attention))

    def forward(self, x: Tensor) -> Tensor:
        """Drops entries of x (B, …); returns the same shape.

        Raises:
            ShapeError: `keyed_dropout` was given another number of windows than B.
        """
        if not self.is_active:
            return x
        if (masks := _MASKS.get()) is not None:
            return x * masks.draw(x.shape, self.rate, x.dtype)
        if x.device.type != "cpu":
            return F.dropout(x, self.rate)
        return x * dropout_mask(x.shape, self.rate, x.dtype)


def dropout_mask(shape: Sequence[int], rate: float, dtype: torch.dtype) -> Tensor:
    """A mask for dropout on the CPU, to multiply by: 0 or 1 / (1 - rate), where `rate` is rounded to a multiple of 2⁻¹⁶."""
    stream = np.random.SFC64(int(torch.randint(2**63 - 1, ())))
    return _scaled(_kept(stream, math.prod(shape), rate), shape, rate, dtype)


class _StreamMasks:
    """Keyed masks on a CPU: one stream per window. A window's numbers are compared while they are still in the cache."""

    fused_attention = False

    def __init__(self, groups: Sequence[WindowGroup]) -> None:
        self._streams = [_stream(rows.seed, i) for rows in groups for i in range(rows.first, rows.last)]

    def draw(self, shape: Sequence[int], rate: float, dtype: torch.dtype) -> Tensor:
        _check_rows(shape, len(self._streams))
        kept = np.empty((len(self._streams), math.prod(shape[1:])), np.bool_)  # (B, …)
        for row, stream in zip(kept, self._streams, strict=True):
            _kept(stream, len(row), rate, row)
        return _scaled(kept, shape, rate, dtype)


class GeneratorMasks:
    """Keyed masks on other devices, whose generators are fast: draws the masks of all windows and takes the groups' parts."""

    def __init__(self, groups: Sequence[WindowGroup], device: torch.device, *, fused_attention: bool = False) -> None:
        self._groups, self._device, self.fused_attention = groups, device, fused_attention
        self._generators = [torch.Generator(device).manual_seed(rows.seed) for rows in groups]

    def draw(self, shape: Sequence[int], rate: float, dtype: torch.dtype) -> Tensor:
        """The next mask, of the given shape (B, …): 0 or 1 / (1 - rate)."""
        _check_rows(shape, sum(rows.last - rows.first for rows in self._groups))
        parts = []
        for rows, generator in zip(self._groups, self._generators, strict=True):
            whole = torch.empty(rows.total, *shape[1:], dtype=dtype, device=self._device)
            parts.append(whole.bernoulli_(1 - rate, generator=generator)[rows.first : rows.last])
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).div_(1 - rate)


def _stream(seed: int, window: int) -> np.random.SFC64:
    return np.random.SFC64(np.random.SeedSequence(seed, spawn_key=(window,)))


def _kept(stream: np.random.SFC64, count: int, rate: float, out: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
    """Whether each of the next `count` entries of a stream is kept, (count,) bool."""
    numbers = stream.random_raw(-(-count // 4)).view(np.uint16)[:count]
    kept: NDArray[np.bool_] = np.greater_equal(numbers, round(rate * _LEVELS), out=out)
    return kept


def _scaled(kept: NDArray[np.bool_], shape: Sequence[int], rate: float, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(kept).view(*shape).to(dtype).mul_(_LEVELS / (_LEVELS - round(rate * _LEVELS)))


def _check_rows(shape: Sequence[int], expected: int) -> None:
    if shape[0] != expected:
        raise ShapeError(f"dropout was keyed for {expected} windows; got a tensor of shape {tuple(shape)}")
