"""Dropout whose masks cost a tenth of torch's on a CPU.

torch draws every Bernoulli variable of a CPU mask on its own, in one thread: a fifth of a whole training step at the paper
preset. Here one number of torch's global generator seeds NumPy's SFC64, whose raw 64-bit words are taken as four 16-bit
numbers each; an entry is dropped where its number is below rate · 2¹⁶. So the rate is a multiple of 2⁻¹⁶, kept entries are
divided by exactly the share that is kept, and everything still follows from `torch.manual_seed`. Other devices have fast
generators of their own, which are used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

_LEVELS = 1 << 16


class Dropout(nn.Module):
    """In training, entries are 0 with probability `rate`, and divided by 1 - `rate` otherwise."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    @property
    def is_active(self) -> bool:
        """Whether anything would be dropped now."""
        return self.training and self.rate > 0

    def forward(self, x: Tensor) -> Tensor:
        """x (…) with the same shape."""
        if not self.is_active:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.rate)
        return x * dropout_mask(x.shape, self.rate, x.dtype)


def dropout_mask(shape: Sequence[int], rate: float, dtype: torch.dtype) -> Tensor:
    """What dropout multiplies by, on the CPU: 0 or 1 / (1 - rate), with `rate` rounded to a multiple of 2⁻¹⁶."""
    count = math.prod(shape)
    words = np.random.SFC64(int(torch.randint(2**63 - 1, ()))).random_raw(-(-count // 4))
    dropped = round(rate * _LEVELS)
    kept = words.view(np.uint16)[:count] >= dropped
    return torch.from_numpy(kept).view(*shape).to(dtype).mul_(_LEVELS / (_LEVELS - dropped))
