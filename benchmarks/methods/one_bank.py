"""One bank, several actors: all cells of a run that need the same bank share it, and it is trained once.

    <run>/shared/<id>/    a bank with stage 1, for every seed of the later stages
    <run>/shared/<id>/    a bank with all three stages
    <run>/shared/<id>/    the same bank with its weights in the cell's `storage`; this one acts

An id is a hash of what the bank depends on. Only these methods use two settings of a cell. `later_seed` is the seed of stages 2
and 3 (default: the training seed); it separates their luck from the backbone's. `acting` is the precision of the agent that
acts. The banks stay when the cells' own folders are removed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from m3dt_agent.agent import ROUTED_MASS, Experts, M3DTAgent
from m3dt_agent.bank import ExpertBank, is_bank
from m3dt_agent.config import STAGES, Stage
from m3dt_agent.evaluation import AgentPolicy, VectorPolicy
from m3dt_agent.jobs import LocalProcesses
from m3dt_agent.model import ExpertChoice, Routing
from m3dt_agent.system.disk import file_lock
from m3dt_agent.training import Fanout

from ..records import FINAL, TaskIdUse
from ..settings import OWN_OF_STAGE
from .base import Method, Outcome, Work, bank_of, outcome_of
from .costs import active_parameters
from .m3dt import Grouping, OraclePolicy, stage_config, stage_phases

_EVALUATION = ("episodes", "eval_seed", "stop_on_success", "slots", "acting")
_STAGES_2_AND_3 = (
    *("later_seed", "expert_steps", "router_steps", *OWN_OF_STAGE.values(), "domain_experts"),
    *("grouping", "grouping_batches", "grouping_runs", "skip_below", "concentrate", "guide"),
)
_DOES_NOT_MATTER: Mapping[str, Sequence[str]] = {
    "backbone": (*_EVALUATION, "storage", *_STAGES_2_AND_3),
    "bank": (*_EVALUATION, "storage"),
    "stored": _EVALUATION,
}


@dataclass(frozen=True, slots=True)
class Actor:
    """Acts with the shared bank. experts: those the agent uses; "oracle": on every task the expert that was trained on it."""

    experts: Experts | Literal["oracle"]
    task_id: TaskIdUse = "training"
    fractions: tuple[str, ...] = (FINAL,)

    def train(self, work: Work, fraction: str) -> Outcome:
        bank = shared_bank(work)
        agent = M3DTAgent.load(bank, device=work.device)
        stages, choice, experts = self._uses(agent)
        phases = stage_phases(work, agent, _grouping(work), stages, _logs(work))
        # loaded again, because `agent` counts training FLOP, which needs its weights in float32
        acting = M3DTAgent.load(bank, device=work.device, precision=work.cell.settings.get("acting", "float32"))
        outcome = outcome_of(work, self._policy(acting, work.cell.method), agent.model, choice, phases)
        active = active_parameters(agent.model, experts, routed=stages == STAGES)
        return dataclasses.replace(outcome, active_parameters=active)

    def _uses(self, agent: M3DTAgent) -> tuple[Sequence[Stage], ExpertChoice, int]:
        """The stages it needs, the experts whose FLOP are counted, and the most experts that a token uses."""
        if self.experts == "none":
            return STAGES[:1], "none", 0
        if self.experts == "oracle":
            return STAGES[:2], 0, 1
        return STAGES, "mixture", agent.config.n_experts

    def _policy(self, agent: M3DTAgent, name: str) -> VectorPolicy:
        if self.experts == "oracle":
            return OraclePolicy(agent, name)
        agent.experts = self.experts
        return AgentPolicy(agent, name=name)


def shared_bank(work: Work) -> Path:
    """The bank that acts. Its training continues from what is there; if another process is training it, this one waits."""
    return _made(work, "stored", _store)


def _made(work: Work, kind: str, make: Callable[[Work, Path], None]) -> Path:
    folder = _folder(work, kind)
    with file_lock(folder.with_suffix(".lock")):
        make(work, folder)
    return folder


def _folder(work: Work, kind: str) -> Path:
    settings = {name: value for name, value in work.cell.settings.items() if name not in _DOES_NOT_MATTER[kind]}
    return (work.shared or work.folder) / dataclasses.replace(work.cell, method=f"one-bank-{kind}", settings=settings).id


def _grouping(work: Work) -> Grouping:
    found: Grouping = work.cell.settings.get("grouping", "gradient")
    return found


def _logs(work: Work) -> dict[Stage, Path]:
    """Stage → the bank where it was trained, which has its logs; copies of banks have none."""
    return {stage: _folder(work, "backbone" if stage == "backbone" else "bank") for stage in STAGES}


def _train_backbone(work: Work, folder: Path) -> None:
    config = work.model_config()
    _fit(work, M3DTAgent(config, work.data.tasks, device=work.device), STAGES[:1], bank_of(work, config, folder=folder))


def _train_bank(work: Work, folder: Path) -> None:
    _fit(work, M3DTAgent.load(_made(work, "backbone", _train_backbone), device=work.device), STAGES[1:], folder)


def _store(work: Work, folder: Path) -> None:
    if not is_bank(folder):
        ExpertBank.open(_made(work, "bank", _train_bank)).copy_to(folder, storage=work.cell.settings.get("storage"))


def _fit(work: Work, agent: M3DTAgent, stages: Sequence[Stage], bank: Path | ExpertBank) -> None:
    spread = Fanout(LocalProcesses(work.workers)) if work.workers != 0 and work.device == "cpu" else None
    for stage in stages:
        agent.fit_stage(
            stage,
            work.data,
            bank=bank,
            config=stage_config(work, stage, _grouping(work)),
            fanout=spread if stage == "experts" else None,
            progress=work.progress,
            on_log=work.on_log,
        )


METHODS: Mapping[str, Method] = {
    "bank-mixture": Actor("mixture"),
    "bank-routed": Actor(Routing(mass=ROUTED_MASS)),
    "bank-oracle": Actor("oracle", task_id="acting"),
    "bank-backbone": Actor("none", task_id="none"),
}
