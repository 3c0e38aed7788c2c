"""What one worker holds of a step's batch: of each of its K equal groups the same rows.

    group of expert 0          group of expert 1
    [ · · h h · · · ]          [ · · h h · · · ]          h: windows first … last - 1 of `total`, held here

Losses are means over the errors of the whole batch, which every worker can count, since it samples all of it.
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
    """The windows held here. counts (K,): how many errors each group of the whole batch has."""

    batch: Batch
    rows: range
    total: int
    counts: Tensor

    @property
    def weight(self) -> float:
        """What a mean over the windows held here counts in the mean over all."""
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
    batch = _stack([of_expert.rows(rows) for of_expert in whole])
    return Share(batch.to(device, dtype), rows, total, counts.to(device))


def _stack(batches: Sequence[Batch]) -> Batch:
    """One batch of K equal groups. It always copies, into memory aligned for the CPU's vector units whatever numpy gave."""
    return Batch(
        torch.cat([batch.tasks for batch in batches]),
        _stack_windows([batch.window for batch in batches]),
        _stack_windows([batch.prompt for batch in batches]),
        torch.cat([batch.action_mask for batch in batches]),
    )


def _stack_windows(windows: Sequence[Window]) -> Window:
    fields = ("states", "actions", "returns_to_go", "timesteps", "mask")
    return Window(*(torch.cat([getattr(window, field) for window in windows]) for field in fields))
