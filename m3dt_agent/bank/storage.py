"""How a bank stores its weights: as float32, or as bfloat16 in half the space. They are always read as float32.

    float32    s eeeeeeee mmmmmmmmmmmmmmmmmmmmmmm
    bfloat16   s eeeeeeee mmmmmmm                     stored: rounded to the nearest, ties to even; read: 16 zero bits appended

Weights are the tensors of the backbone, experts and router. Statistics and prompts are not converted: the 8 significant bits of
bfloat16 are too few for a standard deviation or a timestep.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import BankError

Storage = Literal["float32", "bfloat16"]
STORAGES: tuple[Storage, ...] = get_args(Storage)


def holds_weights(file: str | Path) -> bool:
    """Whether the bank's file of this name or path holds weights."""
    return not Path(file).name.endswith(("statistics.safetensors", "prompts.safetensors"))


def as_stored(file: str | Path, tensors: Mapping[str, Tensor], storage: Storage) -> Mapping[str, Tensor]:
    """The tensors as a bank with this storage writes them into `file`."""
    if storage == "float32" or not holds_weights(file):
        return tensors
    return {name: tensor.detach().to(torch.bfloat16) for name, tensor in tensors.items()}


def as_used(file: str | Path, tensors: Mapping[str, Tensor], storage: Storage) -> dict[str, Tensor]:
    """The tensors of `file` as they are used: weights as float32.

    Raises:
        BankError: weights that are not stored as the bank says.
    """
    if storage == "float32" or not holds_weights(file):
        return dict(tensors)
    if others := sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values() if t.dtype != torch.bfloat16}):
        raise BankError(f"{file} holds {', '.join(others)}; its bank.json says that weights are stored as {storage}")
    return {name: tensor.to(torch.float32) for name, tensor in tensors.items()}
