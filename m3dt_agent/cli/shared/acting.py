"""Who acts in `m3dt eval` and `m3dt play`: from what was typed to a bank's agent or a behavior policy.

WHO                                          ─► find_policy ─► a bank, or a behavior policy's level
--experts, --routing-mass, --precision, …    ─► Acting      ─► how a bank's agent acts
--prompt-from, --source                      ─►             ─► tasks that it has to learn before
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import BankError, ConfigError
from ...tasks import TaskSpec, resolve

if TYPE_CHECKING:
    from ...agent import Experts, M3DTAgent, Precision
    from ...bank import ExpertBank


@dataclass(frozen=True, slots=True)
class Acting:
    """How a bank's agent acts.

    experts: None leaves the choice to the bank. prompt_from: Minari root with demonstrations of tasks that it does not have, if
    there are any. source: which dataset, where a task has several.
    """

    experts: Experts | None
    precision: Precision
    device: str
    prompt_from: Path | None = None
    source: str | None = None

    @classmethod
    def from_options(
        cls,
        experts: str | None,
        routing_mass: float | None,
        max_experts: int | None,
        precision: Precision,
        device: str,
        prompt_from: Path | None = None,
        source: str | None = None,
    ) -> Acting:
        """What the options of these names ask for.

        Raises:
            ConfigError: --routing-mass or --max-experts without the mixture, or out of range; --source without --prompt-from.
        """
        if source is not None and prompt_from is None:
            raise ConfigError(f"--source {source} names a dataset under --prompt-from ROOT, which is not given")
        return cls(_chosen_experts(experts, routing_mass, max_experts), precision, device, prompt_from, source)

    def load(self, bank: ExpertBank, tasks: Sequence[str | TaskSpec] = ()) -> M3DTAgent:
        """The bank's agent, which acts so, and has learned what it lacks of `tasks`.

        Raises:
            ConfigError: experts that the bank does not have, or it has all of the tasks that it is to learn.
            StageError: they are not trained yet. M3DTError: errors of `TaskDatasets.open` and `M3DTAgent.learn_task`.
        """
        from ...agent import M3DTAgent

        agent = M3DTAgent.load(bank.path, device=self.device, precision=self.precision)
        if self.experts is not None:
            agent.experts = self.experts
        if self.prompt_from is not None:
            self._show(agent, [task for task in resolve(tasks, first=agent.tasks) if task not in agent.tasks])
        return agent

    def _show(self, agent: M3DTAgent, tasks: Sequence[TaskSpec]) -> None:
        from ...data.task_datasets import TaskDatasets

        if not tasks:
            raise ConfigError("the bank has all of these tasks, so --prompt-from has nothing to show; leave it out")
        assert self.prompt_from is not None
        data = TaskDatasets.open(self.prompt_from, tasks, self.source, few=True)
        for task in tasks:
            agent.learn_task(task, data)


def find_policy(who: str) -> ExpertBank | str:
    """The bank called `who`, or `who` itself if it is a behavior policy's level.

    Raises:
        BankError: it is neither, or the bank is damaged.
    """
    from ...bank.builtin import is_builtin, open_bank
    from ...data.behavior import SNAPSHOT_LEVELS, parse_level

    if is_builtin(who) or Path(who).is_dir():
        return open_bank(who, check="sizes")
    if parse_level(who)[0] in ("random", "zero", "scripted", *SNAPSHOT_LEVELS):
        return who
    raise BankError(
        f"{who!r} is neither a bank (a folder, or builtin:NAME) nor a behavior policy (random, zero, novice, medium, expert)"
    )


def _chosen_experts(experts: str | None, routing_mass: float | None, max_experts: int | None) -> Experts | None:
    if routing_mass is not None or max_experts is not None:
        from ...model import Routing

        if experts not in (None, "mixture"):
            raise ConfigError(f"--routing-mass and --max-experts go with --experts mixture; got --experts {experts}")
        return Routing(1.0 if routing_mass is None else routing_mass, max_experts)
    return int(experts) if experts is not None and experts.isdigit() else experts  # type: ignore[return-value]
