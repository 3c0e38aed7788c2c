"""How a bank stores its weights: as float32, or as bfloat16 in half the space. Whoever reads them gets float32.

    float32    s eeeeeeee mmmmmmmmmmmmmmmmmmmmmmm
    bfloat16   s eeeeeeee mmmmmmm                     stored: rounded to the nearest, ties to even; read: 16 zero bits appended

Weights are the tensors of backbone, experts and router. Statistics and prompts stay as they are: of a deviation or a timestep,
8 bits are not enough.
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
    """Whether the bank's file of this name, or at this path, holds weights."""
    return Path(file).name not in ("statistics.safetensors", "prompts.safetensors")


def as_stored(file: str | Path, tensors: Mapping[str, Tensor], storage: Storage) -> Mapping[str, Tensor]:
    """What a bank of this storage writes into `file`."""
    if storage == "float32" or not holds_weights(file):
        return tensors
    return {name: tensor.detach().to(torch.bfloat16) for name, tensor in tensors.items()}


def as_used(file: str | Path, tensors: Mapping[str, Tensor], storage: Storage) -> dict[str, Tensor]:
    """What a bank of this storage gives of what `file` holds.

    Raises:
        BankError: weights that are not stored as the bank says.
    """
    if storage == "float32" or not holds_weights(file):
        return dict(tensors)
    if others := sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values() if t.dtype != torch.bfloat16}):
        raise BankError(f"{file} holds {', '.join(others)}; its bank.json says that weights are stored as {storage}")
    return {name: tensor.to(torch.float32) for name, tensor in tensors.items()}
