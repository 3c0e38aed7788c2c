"""Dropout whose masks are keyed by (seed, window) and cost a tenth of torch's on a CPU.

    with keyed_dropout([Rows(seed, first, last, total), …], device):     one `Rows` per group of the batch's windows
        model(window, prompt)

    CPU      window i of a group draws from a stream of its own, SFC64 seeded by (seed, i): its 64-bit words are taken as four
             16-bit numbers each, and an entry is dropped where its number is below rate · 2¹⁶
    others   a generator of the device, seeded by `seed`, draws the mask of all `total` windows, of which rows are taken

So a window's masks depend neither on what else is in the batch nor on who holds the rest of it: a worker with rows
first … last - 1 of a batch drops what one worker with all of them drops there. Without `keyed_dropout` masks follow from
torch's global generator.

torch draws every Bernoulli variable of a CPU mask on its own, in one thread: a fifth of a whole training step at the paper
preset. The rate here is a multiple of 2⁻¹⁶, and kept entries are divided by exactly the share that is kept.

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
class Rows:
    """Windows `first` … `last` - 1 of `total` whose masks follow from `seed`."""

    seed: int
    first: int
    last: int
    total: int


class _Masks(Protocol):
    """Where keyed masks come from, in the order of the forward pass."""

    fused_attention: bool

    def draw(self, shape: Sequence[int], rate: float, dtype: torch.dtype) -> Tensor: ...


_MASKS: contextvars.ContextVar[_Masks | None] = contextvars.ContextVar("dropout masks", default=None)


@contextlib.contextmanager
def keyed_dropout(groups: Sequence[Rows], device: torch.device, *, fused_attention: bool = False) -> Iterator[None]:
    """One forward pass whose every mask is keyed by (seed, window); batches are the groups' rows, one group after the other.

    fused_attention: on a GPU, let attention drop in its own kernel, which is faster and follows from torch's global generator.
    """
    masks = _StreamMasks(groups) if device.type == "cpu" else GeneratorMasks(groups, device, fused_attention=fused_attention)
    token = _MASKS.set(masks)
    try:
        yield
    finally:
        _MASKS.reset(token)


class Dropout(nn.Module):
    """In training, entries are 0 with probability `rate`, and divided by 1 - `rate` otherwise."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    @property
    def is_active(self) -> bool:
        """Whether anything would be dropped now."""
        return self.training and self.rate > 0

    def needs_mask(self, device: torch.device) -> bool:
        """Whether attention on `device` has to drop by a mask from here: torch's kernel for it has none that can be keyed, and
        on a CPU there is no kernel."""
        masks = _MASKS.get()
        return self.is_active and (device.type == "cpu" or (masks is not None and not masks.fused_attention))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, …) with the same shape.

        Raises:
            ShapeError: another B than `keyed_dropout` was told.
        """
        if not self.is_active:
            return x
        if (masks := _MASKS.get()) is not None:
            return x * masks.draw(x.shape, self.rate, x.dtype)
        if x.device.type != "cpu":
            return F.dropout(x, self.rate)
        return x * dropout_mask(x.shape, self.rate, x.dtype)


def dropout_mask(shape: Sequence[int], rate: float, dtype: torch.dtype) -> Tensor:
    """What dropout multiplies by, on the CPU: 0 or 1 / (1 - rate), with `rate` rounded to a multiple of 2⁻¹⁶."""
    stream = np.random.SFC64(int(torch.randint(2**63 - 1, ())))
    return _scaled(_kept(stream, math.prod(shape), rate), shape, rate, dtype)


class _StreamMasks:
    """On the CPU. A row is drawn and compared while its numbers are in the cache, so that one stream each costs no time."""

    fused_attention = False

    def __init__(self, groups: Sequence[Rows]) -> None:
        self._streams = [_stream(rows.seed, i) for rows in groups for i in range(rows.first, rows.last)]

    def draw(self, shape: Sequence[int], rate: float, dtype: torch.dtype) -> Tensor:
        _check_rows(shape, len(self._streams))
        kept = np.empty((len(self._streams), math.prod(shape[1:])), np.bool_)  # (B, …)
        for row, stream in zip(kept, self._streams, strict=True):
            _kept(stream, len(row), rate, row)
        return _scaled(kept, shape, rate, dtype)


class GeneratorMasks:
    """On other devices, whose generators are fast: masks of all windows, of which the rows that are held here are taken."""

    def __init__(self, groups: Sequence[Rows], device: torch.device, *, fused_attention: bool = False) -> None:
        self._groups, self._device, self.fused_attention = groups, device, fused_attention
        self._generators = [torch.Generator(device).manual_seed(rows.seed) for rows in groups]

    def draw(self, shape: Sequence[int], rate: float, dtype: torch.dtype) -> Tensor:
        """(B, …): 0 or 1 / (1 - rate)."""
        _check_rows(shape, sum(rows.last - rows.first for rows in self._groups))
        parts = []
        for rows, generator in zip(self._groups, self._generators, strict=True):
            whole = torch.empty(rows.total, *shape[1:], dtype=dtype, device=self._device)
            parts.append(whole.bernoulli_(1 - rate, generator=generator)[rows.first : rows.last])
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).div_(1 - rate)


def _stream(seed: int, window: int) -> np.random.SFC64:
    return np.random.SFC64(np.random.SeedSequence(seed, spawn_key=(window,)))


def _kept(stream: np.random.SFC64, count: int, rate: float, out: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
    """Which of the next `count` entries of a stream are kept."""
    numbers = stream.random_raw(-(-count // 4)).view(np.uint16)[:count]
    kept: NDArray[np.bool_] = np.greater_equal(numbers, round(rate * _LEVELS), out=out)
    return kept


def _scaled(kept: NDArray[np.bool_], shape: Sequence[int], rate: float, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(kept).view(*shape).to(dtype).mul_(_LEVELS / (_LEVELS - round(rate * _LEVELS)))


def _check_rows(shape: Sequence[int], expected: int) -> None:
    if shape[0] != expected:
        raise ShapeError(f"dropout was keyed for {expected} windows; got a tensor of shape {tuple(shape)}")
