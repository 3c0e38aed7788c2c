"""Makes a model without initialising its weights, for callers that overwrite all of them, such as those that load a bank."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..config import ModelConfig
from .prompt_dt import M3DT


def empty_model(config: ModelConfig) -> M3DT:
    """A model with arbitrary weights, all of which the caller must overwrite.

    It saves drawing the initial weights: 2 s for 174M of them on two cores (measured).
    """
    with torch.device("meta"):
        model = M3DT(config)
    model.load_state_dict({name: _empty_like(parameter) for name, parameter in model.named_parameters()}, assign=True)
    return model


def _empty_like(tensor: Tensor) -> Tensor:
    """An uninitialised float32 tensor with this shape and these strides, aligned to 64 bytes like torch's own.

    Its memory comes from NumPy, which asks the kernel for huge pages for large arrays. With small pages, a third of the time to
    load a bank is spent on page faults.
    """
    memory = np.empty(tensor.numel() + 16, np.float32)
    start = -memory.ctypes.data % 64 // 4
    return torch.from_numpy(memory)[start:].as_strided(tensor.shape, tensor.stride(), start)
