"""A second model with the weights of another: the same tensors, not copies of them."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

N = TypeVar("N", bound=nn.Module)


def with_same_weights(model: N) -> N:
    """A model with the parameters and buffers of `model`, and modules of its own for what passes keep in them.

    Two threads may use the two at the same time. What changes the weights in place changes both.
    """
    weights = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in weights})
