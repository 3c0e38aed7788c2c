"""How wide Prompt-DT must be to have M3DT's parameters, and how long it must train to see its windows or spend its FLOP.

    windows of the three stages        B · (backbone + E · expert + router steps)
    FLOP of the three stages           backbone steps · F₁ + E · expert steps · F₂ + router steps · F₃
    FLOP of Prompt-DT                  steps · F

B is the batch size and E the number of experts. F is the FLOP of the matrix products of one step, forward and backward, with
everything frozen that the stage freezes. FLOP and parameters are counted on torch's meta device, where tensors have shapes but
no numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from m3dt_agent.config import ModelConfig
from m3dt_agent.data.batches import Window
from m3dt_agent.errors import ConfigError
from m3dt_agent.model import M3DT, ExpertChoice

from ..settings import model_config, stage_setting

_WIDEST = 8192
_STAGES = ("backbone", "experts", "router")


@functools.cache
def parameter_count(config: ModelConfig) -> int:
    """How many parameters a model has."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in M3DT(config).parameters())


@functools.cache
def step_flop(config: ModelConfig, stage: str, batch_size: int) -> float:
    """FLOP of the matrix products of one training step of a stage; for "experts", of one expert.

    Raises:
        ConfigError: no such stage, or the model has no tensors for it.
    """
    if stage not in _STAGES or (stage != "backbone" and config.n_experts == 0):
        raise ConfigError(
            f"stage must be one of {', '.join(_STAGES)}, and the model must have experts for the last two; got {stage!r}"
        )
    choice: ExpertChoice = {"backbone": "none", "experts": 0, "router": "mixture"}[stage]  # type: ignore[assignment]
    with torch.device("meta"):
        model = M3DT(config)
        window, prompt = (_window(config, batch_size, steps) for steps in (config.context_length, config.prompt_length))
    parts = {"backbone": model.backbone_tensors, "experts": model.expert_tensors, "router": model.router_tensors}
    model.requires_grad_(False)
    for parameter in parts[stage]().values():
        parameter.requires_grad_(True)
    with FlopCounterMode(display=False) as counter:
        model(window, prompt, choice).sum().backward()
    return float(counter.get_total_flops())


def three_stage_windows(settings: Mapping[str, Any]) -> int:
    """How many windows the three stages of a cell see."""
    return sum(steps * int(stage_setting(settings, stage, "batch_size")) for stage, steps in _stage_steps(settings).items())


def three_stage_flop(settings: Mapping[str, Any]) -> float:
    """Training FLOP of the three stages of a cell."""
    config = model_config(settings)
    return sum(
        steps * step_flop(config, stage, stage_setting(settings, stage, "batch_size"))
        for stage, steps in _stage_steps(settings).items()
    )


def prompt_dt_for(parameters: int, settings: Mapping[str, Any]) -> int:
    """The width D at which the Prompt-DT of `settings` has nearest to `parameters` parameters; a multiple of its heads.

    Raises:
        ConfigError: no width up to 8192 reaches that number.
    """
    heads = settings["n_heads"]

    def count(multiple: int) -> int:
        return parameter_count(model_config(settings, embed_dim=multiple * heads, n_experts=0))

    low, high = 1, _WIDEST // heads
    if not count(low) <= parameters <= count(high):
        raise ConfigError(
            f"a Prompt-DT with these settings has {count(low):,} to {count(high):,} parameters; asked for were {parameters:,}"
        )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) <= parameters else (low, middle)
    nearest = min((low, high), key=lambda multiple: abs(count(multiple) - parameters))
    return int(heads * nearest)


def steps_for_flop(flop: float, settings: Mapping[str, Any], *, wide: bool = False) -> int:
    """How many steps cost the Prompt-DT of `settings` this FLOP. wide: its feed-forward layers are as wide as all experts."""
    inner = {"ffn_multiple": 4 * (settings["n_experts"] + 1)} if wide else {}
    config = model_config(settings, n_experts=0, **inner)
    return max(1, round(flop / step_flop(config, "backbone", settings["batch_size"])))


def _stage_steps(settings: Mapping[str, Any]) -> dict[str, int]:
    """Stage → steps; for "experts", of all experts together."""
    expert_steps = settings["n_experts"] * settings["expert_steps"]
    return {"backbone": settings["backbone_steps"], "experts": expert_steps, "router": settings["router_steps"]}


def _window(config: ModelConfig, B: int, T: int) -> Window:
    return Window(
        states=torch.zeros(B, T, config.state_dim),
        actions=torch.zeros(B, T, config.act_dim),
        returns_to_go=torch.zeros(B, T, 1),
        timesteps=torch.zeros(B, T, dtype=torch.int64),
        mask=torch.ones(B, T, dtype=torch.bool),
    )
