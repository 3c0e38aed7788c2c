"""A model whose weights are about to be overwritten: no random numbers are drawn for it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..config import ModelConfig
from .prompt_dt import M3DT


def empty_model(config: ModelConfig) -> M3DT:
    """A model of arbitrary weights, all of which must be overwritten: drawing 174M initial ones takes 2 s on two cores."""
    with torch.device("meta"):
        model = M3DT(config)
    model.load_state_dict({name: _empty_like(parameter) for name, parameter in model.named_parameters()}, assign=True)
    return model


def _empty_like(tensor: Tensor) -> Tensor:
    """Uninitialised float32 memory for a dense tensor of this shape and these strides, aligned to 64 bytes like torch's own.

    It comes from numpy, which asks the kernel for huge pages where it is large: a third of what loading a bank takes is faults
    of small ones.
    """
    memory = np.empty(tensor.numel() + 16, np.float32)
    start = -memory.ctypes.data % 64 // 4
    return torch.from_numpy(memory)[start:].as_strided(tensor.shape, tensor.stride(), start)
