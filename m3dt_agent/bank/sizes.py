"""What a bank's files must weigh, counted before anything of them is read and before a model is built.

bank.json: ModelConfig ─► tensors of each file, without memory ("meta") ─► bytes = header + elements × bytes of the storage
bank.json: files       ─► recorded bytes, which `ExpertBank.open` has compared with the files themselves
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch

from ..config import ModelConfig
from ..errors import BankError
from .manifest import Manifest
from .tensor_files import MAX_HEADER_BYTES, require_memory

_BYTES = {"float32": 4, "bfloat16": 2}


@functools.lru_cache(maxsize=8)
def element_counts(config: ModelConfig) -> dict[str, int]:
    """Numbers in the backbone, in all experts together, and in the router, of a model that is never built."""
    from ..model import M3DT

    with torch.device("meta"):
        model = M3DT(config)
    parts = {"backbone": model.backbone_tensors(), "experts": model.expert_tensors(), "router": model.router_tensors()}
    return {name: sum(tensor.numel() for tensor in tensors.values()) for name, tensors in parts.items()}


def require_fit(manifest: Manifest, config: ModelConfig, path: Path) -> None:
    """Checks that the files of weights have the sizes that `config` says, and that the model fits into the machine's memory.

    config: the bank's, or the same without experts.

    Raises:
        BankError: a file is of another model, or the model is too large for this machine.
    """
    counts = element_counts(config)
    for name, record in manifest.files.items():
        part, _, _ = name.removesuffix(".safetensors").partition("/")
        if part not in counts or (part != "backbone" and config.n_experts == 0):
            continue
        elements = counts[part] // config.n_experts if part == "experts" else counts[part]
        data = elements * _BYTES[manifest.storage]
        if not data + 8 < record.bytes <= data + 8 + MAX_HEADER_BYTES:
            raise BankError(
                f"{path / name} does not fit this bank's model: it has {record.bytes:,} bytes, and the {elements:,} numbers of "
                f"the model in bank.json take {data:,} and a header"
            )
    require_memory(4 * sum(counts.values()), f"the model of bank {path}")
