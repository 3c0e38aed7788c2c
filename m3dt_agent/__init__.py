"""One agent for 160 continuous-control tasks: M3DT (arXiv 2505.24378), a Prompt Decision Transformer with a bank of experts.

Importing this package registers the Gymnasium ids `M3DT/<task>-v0`. It loads no simulator; torch is loaded when a name that
needs it is first used.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from . import tasks
from .config import BackboneConfig, DataConfig, EvalConfig, ExpertsConfig, ModelConfig, RouterConfig, train_preset
from .envs import register as _register_envs
from .errors import M3DTError

if TYPE_CHECKING:
    from .agent import M3DTAgent
    from .bank import ExpertBank
    from .data.task_datasets import TaskDatasets
    from .model import Routing

__version__ = version("m3dt-agent")

__all__ = [
    "BackboneConfig",
    "DataConfig",
    "EvalConfig",
    "ExpertBank",
    "ExpertsConfig",
    "M3DTAgent",
    "M3DTError",
    "ModelConfig",
    "RouterConfig",
    "Routing",
    "TaskDatasets",
    "__version__",
    "tasks",
    "train_preset",
]

_LAZY = {"M3DTAgent": ".agent", "ExpertBank": ".bank", "Routing": ".model", "TaskDatasets": ".data.task_datasets"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


_register_envs()
