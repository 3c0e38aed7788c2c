"""Measures in which precision matrix products are fastest on this machine.

It depends on the CPU, and the CPU's name does not tell: with AMX, bfloat16 is several times as fast as float32; with AVX-512
BF16 about twice as fast; a CPU with neither emulates it slowly.
"""

from __future__ import annotations

import statistics
import time
from typing import Literal

import torch

_ROUNDS = 7
_WORTHWHILE = 1.3
"""How many times as fast products must be in bfloat16 to be worth it: it also costs conversions, which are not measured."""


def faster_precision(n_tokens: int, embed_dim: int, device: str | torch.device) -> Literal["float32", "bfloat16"]:
    """bfloat16 if a feed-forward product of `n_tokens` tokens is clearly faster in it, else float32. Takes milliseconds."""
    device = torch.device(device)
    lower, full = (_seconds(n_tokens, embed_dim, device, dtype) for dtype in (torch.bfloat16, torch.float32))
    return "bfloat16" if full > _WORTHWHILE * lower else "float32"


def _seconds(n_tokens: int, embed_dim: int, device: torch.device, dtype: torch.dtype) -> float:
    """Median time of a product (n_tokens, D) x (D, 4D), in seconds."""
    a = torch.ones(n_tokens, embed_dim, device=device, dtype=dtype)
    b = torch.ones(embed_dim, 4 * embed_dim, device=device, dtype=dtype)
    taken = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)
