"""M3DT with big experts: each expert is a whole transformer between the shared embedding and the shared head.

    tokens x ─┬─► backbone's blocks ─► h ─► router ─► w (E)
              ├─► expert 0's blocks ─► y₀ ─┐
              ├─► …                        ├─► Σₑ wₑ(h) · yₑ ─► LayerNorm, head ─► action
              └─► expert E-1's blocks ─────┘

An expert starts as a copy of the trained backbone's blocks. It is trained further on its group of tasks, with embedding and
head frozen. The router then sees each output token of the frozen backbone. The sources say only "a whole transformer" and
"token level", so an expert's start and the router's input are our choice. As in M3DT, the second stage starts from the
backbone's function, and the third trains the router alone.

Shape legend: as in `m3dt_agent.model.prompt_dt`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from m3dt_agent.bank import ExpertBank
from m3dt_agent.config import STAGES, ModelConfig
from m3dt_agent.data.batches import Window, derive_seed
from m3dt_agent.model import M3DT, ExpertChoice, PromptCache
from m3dt_agent.model.determinism import seeded
from m3dt_agent.model.moe import INIT_STD, Router
from m3dt_agent.training import group_tasks
from m3dt_agent.training.stage_inputs import StageInputs

from ..records import FINAL, TaskIdUse
from .ablations import mixture_agent
from .base import Curve, Method, Outcome, Phase, Work, outcome_of, phase, train_run
from .m3dt import Grouping, fit_stages, grouping_flop, require_bank, stage_config, stage_phases


class Tower(M3DT):
    """A backbone that returns its last tokens instead of actions. It shares everything but its blocks with `model`."""

    def __init__(self, model: M3DT, blocks: nn.Module) -> None:
        super().__init__(model.config)
        self.embed, self.embed_norm, self.embed_prompt = model.embed, model.embed_norm, model.embed_prompt
        self.final_norm, self.predict_action = model.final_norm, model.predict_action
        self.blocks = blocks  # type: ignore[assignment]

    def _predict(self, x: Tensor) -> Tensor:
        return x


class BigExperts(M3DT):
    """A backbone, the blocks of E experts, and a router. Its config is the backbone's, without experts inside the blocks."""

    def __init__(self, backbone: M3DT, experts: Sequence[M3DT]) -> None:
        super().__init__(backbone.config)
        self.load_state_dict(backbone.state_dict())
        self.towers = nn.ModuleList(Tower(self, blocks) for blocks in (self.blocks, *(expert.blocks for expert in experts)))
        self.router = Router(self.config.embed_dim, len(experts), None)
        for layer in self.router.layers:
            assert isinstance(layer, nn.Linear)
            nn.init.normal_(layer.weight, std=INIT_STD)
            nn.init.zeros_(layer.bias)

    def forward(self, window: Window, prompt: Window, experts: ExpertChoice = "none") -> Tensor:
        """Actions (B, T, act_dim), as `M3DT.forward`. experts: "none" or "mixture"."""
        if experts != "mixture":
            return super().forward(window, prompt, experts)
        return self._mix([tower(window, prompt) for tower in self.towers])

    def encode_prompt(self, prompt: Window, experts: ExpertChoice = "none") -> PromptCache:
        """As `M3DT.encode_prompt`. For "mixture" it has the layers of all transformers: ((E + 1)·L, B, H, 3P, D/H)."""
        if experts != "mixture":
            return super().encode_prompt(prompt, experts)
        caches = [tower.encode_prompt(prompt) for tower in self._towers]
        return PromptCache(torch.cat([c.keys for c in caches]), torch.cat([c.values for c in caches]), prompt.mask.clone())

    def act(self, window: Window, cache: PromptCache, experts: ExpertChoice = "none") -> Tensor:
        """The action (B, act_dim) of the last step of each window; equals `forward(...)[:, -1]`."""
        if experts != "mixture":
            return super().act(window, cache, experts)
        L = self.config.n_layers
        parts = zip(self._towers, torch.split(cache.keys, L), torch.split(cache.values, L), strict=True)
        return self._mix([tower.act(window, PromptCache(keys, values, cache.mask)) for tower, keys, values in parts])

    def router_tensors(self) -> dict[str, nn.Parameter]:
        """Name → parameter of the router; the model's own, not copies."""
        return {name: p for name, p in self.named_parameters() if name.startswith("router.")}

    @property
    def _towers(self) -> list[Tower]:
        return [tower for tower in self.towers if isinstance(tower, Tower)]

    def _mix(self, tokens: Sequence[Tensor]) -> Tensor:
        """Actions (…, act_dim) from the towers' last tokens, (…, D) each. The backbone's tokens come first."""
        h, *experts = tokens
        weights = self.router(self.final_norm(h))  # (…, E)
        mixed = (torch.stack(experts, dim=-1) * weights[..., None, :]).sum(-1)  # (…, D)
        return self._predict(mixed)


@dataclass(frozen=True, slots=True)
class BigM3DT:
    """Trains the three stages with experts that are transformers."""

    grouping: Grouping = "gradient"
    task_id: TaskIdUse = "training"
    fractions: tuple[str, ...] = (FINAL,)

    def train(self, work: Work, fraction: str) -> Outcome:
        agent = fit_stages(work, work.model_config(), self.grouping, STAGES[:1])
        bank = require_bank(agent)
        inputs: StageInputs[Any] = StageInputs(data=work.data, bank=bank, config=stage_config(work, "experts", self.grouping))
        group_tasks(work.data, bank, inputs.config, progress=work.progress)
        experts, curves = [], []
        for e in range(bank.config.n_experts):
            experts.append(_backbone(bank))
            curves.append(_train_expert(work, inputs, experts[-1], e))
        second = phase(work, experts[0], "experts", _blocks(experts[0]), "none", _together(curves))
        second = Phase(second.flop + grouping_flop(work, agent, inputs.config), second.curve)
        with seeded(derive_seed(work.cell.training_seed, "router", 0, 0, "init"), inputs.cpu):
            model = BigExperts(_backbone(bank), experts)
        built_on = inputs.built_on("backbone.safetensors", groups=bank.groups)
        curve = train_run(
            work,
            model,
            model.router_tensors(),
            steps=work.setting("router_steps"),
            choice="mixture",
            name="router",
            stage="router",
            built_on=built_on,
        )
        third = phase(work, model, "router", model.router_tensors(), "mixture", curve)
        phases = [*stage_phases(work, agent, self.grouping, STAGES[:1]), second, third]
        return outcome_of(work, mixture_agent(work, model), model, "mixture", phases)


def _backbone(bank: ExpertBank) -> M3DT:
    config: ModelConfig = dataclasses.replace(bank.config, n_experts=0)
    model = M3DT(config)
    bank.load_backbone(model)
    return model.eval()


def _train_expert(work: Work, inputs: StageInputs[Any], model: M3DT, expert: int) -> Curve:
    """Trains the blocks of `model`, a copy of the backbone, on one group of tasks."""
    groups = inputs.bank.groups or {}
    return train_run(
        work,
        model,
        _blocks(model),
        steps=inputs.config.steps,
        name=f"expert-{expert:03d}",
        stage="experts",
        sampler=inputs.sampler(inputs.data.subset([name for name, e in groups.items() if e == expert]), expert),
        built_on=inputs.built_on("backbone.safetensors", groups=groups),
    )


def _blocks(model: M3DT) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if name.startswith("blocks.")}


def _together(curves: Sequence[Curve]) -> Curve:
    """One curve for runs that saw equally many windows: their windows together, and the mean of their losses."""
    return [(len(rows) * rows[0][0], fmean(loss for _, loss in rows)) for rows in zip(*curves, strict=True)]


METHODS: Mapping[str, Method] = {"m3dt-big-experts": BigM3DT()}
