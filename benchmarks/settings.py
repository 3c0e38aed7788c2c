"""What the settings of a cell mean: the shape of its model, and the numbers that a stage has to itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from m3dt_agent.config import ModelConfig

_SHAPE = ("embed_dim", "n_layers", "n_heads", "n_experts", "context_length", "prompt_length", "dropout")
_PARTS = ("use_returns", "use_timesteps", "use_embed_norm")
OWN_OF_STAGE: Mapping[tuple[str, str], str] = {
    ("experts", "batch_size"): "expert_batch_size",
    ("router", "learning_rate"): "router_learning_rate",
}
"""(stage, setting) → the setting of a cell that takes its place in this stage, if the cell has it."""


def model_config(settings: Mapping[str, Any], **changes: Any) -> ModelConfig:
    """The model config that a cell's settings describe; `changes` replaces fields.

    Raises:
        KeyError: a part of the shape is missing.
    """
    parts = [name for name in _PARTS if name in settings]
    return ModelConfig(**{**{name: settings[name] for name in (*_SHAPE, *parts)}, **changes})


def stage_setting(settings: Mapping[str, Any], stage: str, name: str) -> Any:
    """A setting of a cell as a stage has it.

    Raises:
        KeyError: the cell has no setting of this name.
    """
    own = OWN_OF_STAGE.get((stage, name), name)
    return settings[own] if own in settings else settings[name]
