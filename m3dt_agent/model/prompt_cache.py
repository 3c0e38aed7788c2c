"""Keys and values of prompts, computed once per reset so that `M3DT.act` need not compute them at every step.

Shape legend: B prompts, P prompt steps, L layers, D embed_dim, H heads, K tokens per step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ShapeError


@dataclass(frozen=True, slots=True)
class PromptCache:
    """Keys and values of B prompts in every layer. They are exact until the weights or the choice of experts change."""

    keys: Tensor  # (L, B, H, KP, D/H)
    values: Tensor  # (L, B, H, KP, D/H)
    mask: Tensor  # (B, P) bool

    def select(self, indices: Tensor | Sequence[int]) -> PromptCache:
        """A new cache of the prompts at `indices`, in that order; an index may repeat."""
        index = torch.as_tensor(indices, device=self.mask.device)
        return PromptCache(self.keys[:, index], self.values[:, index], self.mask[index])

    def update(self, indices: Tensor | Sequence[int], other: PromptCache) -> PromptCache:
        """Overwrites the prompts at `indices` with those of `other`, in place; returns this cache.

        indices: integers, or a bool mask (B,).

        Raises:
            ShapeError: `other` does not have as many prompts as there are indices, or its prompts have another length.
        """
        index = torch.as_tensor(indices, device=self.mask.device)
        count = int(index.sum()) if index.dtype == torch.bool else index.numel()
        if other.mask.shape != (count, self.mask.shape[1]):
            raise ShapeError(f"update needs {count} prompts of {self.mask.shape[1]} steps; got {tuple(other.mask.shape)}")
        self.keys[:, index] = other.keys
        self.values[:, index] = other.values
        self.mask[index] = other.mask
        return self
