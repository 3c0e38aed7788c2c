"""A model whose weights are not initialised, for callers that overwrite all of them, such as those that load a bank."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ..config import ModelConfig
from ..errors import ConfigError
from .prompt_dt import M3DT
from .tensors import copy_all


class EmptyModel:
    """A model in the making. Load all of its weights, then take it with `finished`; before that nobody gets hold of it.

    It saves drawing the initial weights: 2 s for 174M of them on two cores (measured). Several threads may load at once.
    """

    def __init__(self, config: ModelConfig) -> None:
        with torch.device("meta"):
            self._model = M3DT(config)
        tensors = {name: _empty_like(parameter) for name, parameter in self._model.named_parameters()}
        self._model.load_state_dict(tensors, assign=True)
        self._stacks = self._model.expert_tensors()  # finding them anew for every expert would take longer than the copies
        numbers = range(config.n_experts)
        self._unwritten = {(name, e) for name in tensors for e in (numbers if name in self._stacks else (None,))}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """As `M3DT.load_tensors`."""
        self._model.load_tensors(tensors)
        self._unwritten.difference_update([part for part in self._unwritten.copy() if part[0] in tensors])

    def load_expert(self, expert: int, tensors: Mapping[str, Tensor]) -> None:
        """As `M3DT.load_expert`."""
        if expert not in range(self._model.config.n_experts):
            raise ConfigError(f"experts must be among the model's {self._model.config.n_experts}; got {expert!r}")
        copy_all(tensors, {name: stack[expert] for name, stack in self._stacks.items()}, f"expert {expert}")
        self._unwritten.difference_update([(name, expert) for name in tensors])

    def finished(self) -> M3DT:
        """The model.

        Raises:
            ConfigError: some of its weights were never loaded; the message names the first of them.
        """
        if self._unwritten:
            name, expert = min(self._unwritten, key=str)
            where = name if expert is None else f"{name} of expert {expert}"
            raise ConfigError(f"{len(self._unwritten)} tensors of the model were never loaded, such as {where}")
        return self._model


def _empty_like(tensor: Tensor) -> Tensor:
    """An uninitialised float32 tensor with this shape and these strides, aligned to 64 bytes like torch's own.

    Its memory comes from NumPy, which asks the kernel for huge pages for large arrays. With small pages, a third of the time to
    load a bank is spent on page faults.
    """
    memory = np.empty(tensor.numel() + 16, np.float32)
    start = -memory.ctypes.data % 64 // 4
    return torch.from_numpy(memory)[start:].as_strided(tensor.shape, tensor.stride(), start)
