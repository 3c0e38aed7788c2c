"""The share of a batch that one worker holds: the same rows of each of the batch's K equal groups.

    group of expert 0          group of expert 1
    [ · · h h · · · ]          [ · · h h · · · ]          h: windows that this worker holds, of `total` in a group

Losses are means over the errors of the whole batch. Every worker can count these, since it samples the whole batch.

Many windows may have the same prompt: a task has two, and an expert a few tasks. `distinct_prompts` finds each of them once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ..data.batches import Batch, Window
from .conflict import real_actions
from .distributed import World

_FIELDS = tuple(field.name for field in dataclasses.fields(Window))
_MOST_DISTINCT, _FEWEST_SAVED = 0.5, 64
"""Prompts are computed apart if the distinct ones are at most this share of the windows, and this many are saved: with 176 of
256 distinct, or 16 windows, a step took longer than with a prompt per window (one core, width 128)."""


class Sampler(Protocol):
    """Where batches come from: a pure function of the step."""

    def sample(self, step: int) -> Batch: ...


class Share(NamedTuple):
    """The windows of one worker. counts: (K,) number of errors in each group of the whole batch."""

    batch: Batch
    rows: range
    total: int
    counts: Tensor

    @property
    def weight(self) -> float:
        """The weight of a mean over this worker's windows in the mean over all windows."""
        return len(self.rows) / self.total


def share_of(samplers: Sequence[Sampler], step: int, world: World, device: torch.device, dtype: torch.dtype) -> Share:
    """This worker's share of the batch of `step`, on `device`.

    Raises:
        ConfigError: fewer windows in a group than workers.
    """
    whole = [sampler.sample(step) for sampler in samplers]
    total = len(whole[0].tasks)
    rows = world.rows(total)
    counts = torch.cat([real_actions(batch.action_mask, 1) for batch in whole])
    batch = _stack([of_expert.part(rows) for of_expert in whole])
    return Share(batch.to(device, dtype), rows, total, counts.to(device))


class Prompts(NamedTuple):
    """The prompts of a batch, each once: P for every one of K groups of windows."""

    prompts: Window  # (K P, …)
    of: Tensor  # (B,) int64: which of them a window has


def distinct_prompts(batch: Batch, n_groups: int) -> Prompts | None:
    """The distinct prompts of a batch of `n_groups` equal groups; None if they are not known, or too many to be worth it.

    A group with fewer than the others has its last one more than once.
    """
    if batch.prompt_ids is None:
        return None
    groups = batch.prompt_ids.numpy().reshape(n_groups, -1)  # (K, B / K)
    found = [np.unique(ids, return_index=True, return_inverse=True) for ids in groups]
    P = max(len(ids) for ids, _, _ in found)
    if _MOST_DISTINCT * groups.shape[1] < P or groups.size - n_groups * P < _FEWEST_SAVED:
        return None
    rows = np.zeros((n_groups, P), np.int64)
    for k, (_, first, _) in enumerate(found):
        rows[k] = k * groups.shape[1] + first[np.minimum(np.arange(P), len(first) - 1)]
    of = np.concatenate([k * P + inverse for k, (_, _, inverse) in enumerate(found)])
    device = batch.tasks.device
    at = torch.from_numpy(rows.ravel()).to(device)
    return Prompts(Window(*(getattr(batch.prompt, name)[at] for name in _FIELDS)), torch.from_numpy(of).to(device))


def _stack(batches: Sequence[Batch]) -> Batch:
    """One batch of K equal groups; always a copy, since numpy's memory may not be aligned for the CPU's vector units."""
    return Batch(
        torch.cat([batch.tasks for batch in batches]),
        _stack_windows([batch.window for batch in batches]),
        _stack_windows([batch.prompt for batch in batches]),
        torch.cat([batch.action_mask for batch in batches]),
        None if all(batch.labels is None for batch in batches) else torch.cat([batch.targets for batch in batches]),
        _stack_ids([batch.prompt_ids for batch in batches]),
    )


def _stack_ids(ids: Sequence[Tensor | None]) -> Tensor | None:
    known = [one for one in ids if one is not None]
    return torch.cat(known) if len(known) == len(ids) else None


def _stack_windows(windows: Sequence[Window]) -> Window:
    return Window(*(torch.cat([getattr(window, name) for window in windows]) for name in _FIELDS))
