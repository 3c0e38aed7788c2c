"""The share of a batch that one worker holds: the same rows of each of the batch's K equal groups.

    group of expert 0          group of expert 1
    [ · · h h · · · ]          [ · · h h · · · ]          h: windows that this worker holds, of `total` in a group

Losses are means over the errors of the whole batch. Every worker can count these, since it samples the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..data.batches import Batch, Window
from .conflict import real_actions
from .distributed import World


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


def _stack(batches: Sequence[Batch]) -> Batch:
    """One batch of K equal groups; always a copy, since numpy's memory may not be aligned for the CPU's vector units."""
    return Batch(
        torch.cat([batch.tasks for batch in batches]),
        _stack_windows([batch.window for batch in batches]),
        _stack_windows([batch.prompt for batch in batches]),
        torch.cat([batch.action_mask for batch in batches]),
        None if all(batch.labels is None for batch in batches) else torch.cat([batch.targets for batch in batches]),
    )


def _stack_windows(windows: Sequence[Window]) -> Window:
    fields = ("states", "actions", "returns_to_go", "timesteps", "mask")
    return Window(*(torch.cat([getattr(window, field) for window in windows]) for field in fields))
