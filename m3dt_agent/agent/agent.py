"""`M3DTAgent`: one agent for many tasks, made from a bank of experts. What it does between two trainings is in actor.py.

fit_stage(stage, data) ──► bank ──► model, prompts, statistics ── reset(task) ──► act(obs, reward) ──► actions in [-1, 1]
                            └── save, push_to_hub ──► load, from_pretrained
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .. import training
from ..bank import ExpertBank
from ..bank.adding import AddedTasks, copy_with_tasks, hash_with_tasks
from ..bank.builtin import open_bank
from ..config import ExpertsConfig, TrainConfig, stage_name
from ..config.checks import require_instance
from ..data.prompts import Prompt
from ..data.stats import TaskStatistics
from ..data.task_datasets import TaskDatasets
from ..errors import ConfigError, StageError
from ..model import M3DT
from ..scores import EpisodeResult
from ..system.disk import user_path
from ..system.machine import torch_device
from ..tasks import TaskSpec
from ..training.distributed import joined
from ..training.expert_jobs import Fanout
from ..training.logs import OnLog
from ..training.stage_inputs import require_ungrown
from ..training.tracking.trackers import Trackers
from .actor import Actor
from .choice import Experts, Precision, checked_experts, checked_precision, default_experts
from .fitting import bank_to_fit

if TYPE_CHECKING:
    from ..hub.banks import PushedBank


class M3DTAgent(Actor):
    """An M3DT model with the prompts, statistics and target returns of its tasks: it is trained, saved, loaded, and acts.

    An agent serves one thread; `copy` makes one for another thread, which shares the weights. In float64
    (`agent.model.double()`) a slot's action does not depend on the other slots, to float32 precision.

    Attributes:
        model: what acts, in eval mode.
        bank: where its weights come from; None before a stage is fitted or a bank is loaded.
        statistics, prompts: by task name; empty before that.

    Args:
        config: the shape of the model.
        tasks: what it is for: names of tasks, sets or domains, or specs, as `tasks.resolve` takes them.
        device: where the model runs: "cpu", "cuda", "cuda:1", "mps", …
        precision: of the matrix products while acting; "auto" measures whether float32 or bfloat16 is faster here.

    Raises:
        UnknownTaskError: no such task.
        ConfigError: an unknown precision, or a device that torch cannot use here; the message lists those that it can.
    """

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        revision: str | None = None,
        *,
        experts: Sequence[int] | None = None,
        tasks: Sequence[str | TaskSpec] | None = None,
        device: str | torch.device = "cpu",
        precision: Precision = "float32",
        token: str | None = None,
        endpoint: str | None = None,
        cache_dir: str | Path | None = None,
    ) -> M3DTAgent:
        """Loads a bank and verifies every file of it.

        Args:
            path: a folder, an id on the Hugging Face Hub (`namespace/name`), or a bank of the package (`builtin:NAME`).
            revision: on the Hub, a branch, a tag (`stage-backbone`, `stage-router`, …) or a sha; None is main.
            experts, tasks: load only these experts, or those trained on these tasks; unless that is all of them, without the
                router.
            device, precision: as `M3DTAgent` takes them.
            token, endpoint, cache_dir: as `hub.client.HubRepo` takes them.

        Raises:
            HubError: no such repository or revision, no access, or the Hub fails.
            BankError: no bank, or a file of it is missing, damaged or unexpected; for an unknown `builtin:NAME` the message
                lists the banks of the package.
            ConfigError: a folder with a `revision`, experts that the bank does not have, or as `M3DTAgent`.
            M3DTError: other errors of `hub.banks.pull_bank`.
        """
        from ..hub.banks import pull_bank  # loads the Hub's client

        checked_precision(precision)
        torch_device(device)  # before anything is downloaded
        pulled = pull_bank(
            path,
            revision,
            experts=experts,
            tasks=tasks,
            token=token,
            endpoint=endpoint,
            cache_dir=cache_dir,
            check_folder="sizes",  # all its files are read now, which verifies them
        )
        return cls._from_bank(pulled.bank, device, precision)

    def push_to_hub(
        self,
        repo_id: str | Path,
        *,
        token: str | None = None,
        endpoint: str | None = None,
        private: bool | None = None,
        rows: Sequence[EpisodeResult] = (),
        overwrite: bool = False,
    ) -> PushedBank:
        """Uploads what a repository on the Hub (or a folder) lacks of the agent's bank; each stage gets a tag to resume from.

        Args:
            rows: evaluated episodes of this bank, for the model card.
            repo_id, token, endpoint, private, overwrite: as `hub.banks.push_bank` takes them.

        Raises:
            StageError: there is no bank, because no stage was fitted, or it lacks tasks that the agent has learned.
            M3DTError: errors of `hub.banks.push_bank`.
        """
        from ..hub.banks import push_bank

        return push_bank(
            self._require_bank("push", with_learned=False),
            repo_id,
            token=token,
            endpoint=endpoint,
            private=private,
            rows=rows,
            overwrite=overwrite,
        )

    @classmethod
    def load(cls, path: str | Path, *, device: str | torch.device = "cpu", precision: Precision = "float32") -> M3DTAgent:
        """Loads the bank in a local folder, or one of the package (`builtin:NAME`), and verifies every file. Uses no network.

        Raises:
            BankError: there is no bank, or a file of it is missing, damaged or unexpected.
            ConfigError: as `M3DTAgent`.
        """
        checked_precision(precision)
        torch_device(device)
        return cls._from_bank(open_bank(path, check="sizes"), device, precision)  # its files are read now, which verifies them

    @classmethod
    def from_model(
        cls,
        model: M3DT,
        tasks: Sequence[str | TaskSpec],
        statistics: Mapping[str, TaskStatistics],
        prompts: Mapping[str, tuple[Prompt, ...]],
        *,
        experts: Experts = "none",
        device: str | torch.device = "cpu",
    ) -> M3DTAgent:
        """An agent around a model that no bank holds: an `M3DT`, or a subclass of your own.

        Args:
            tasks, device: as `M3DTAgent` takes them.
            statistics, prompts: by task name, for each of `tasks`; the first prompt is used.
            experts: what acts: "none", the index of one of the model's experts, or "mixture" if it has a router.

        Raises:
            ConfigError: statistics or prompts of other tasks than `tasks`, a task without prompts, experts that the model does
                not have, or as `M3DTAgent`.
        """
        require_instance("model", model, M3DT)
        agent = cls(model.config, tasks, device=device)
        names = {task.name for task in agent.tasks}
        for what, found in (("statistics", statistics), ("prompts", prompts)):
            require_instance(what, found, Mapping)
            if set(found) != names:
                raise ConfigError(f"{what} must be those of the agent's tasks; they differ in {sorted(set(found) ^ names)}")
        for name in names:
            require_instance(f"statistics[{name!r}]", statistics[name], TaskStatistics)
            require_instance(f"prompts[{name!r}]", prompts[name], Sequence)
            require_instance(f"prompts[{name!r}]", next(iter(prompts[name]), None), Prompt)
        agent.statistics, agent.prompts = dict(statistics), {name: tuple(prompts[name]) for name in names}
        agent._use(model, checked_experts(experts, model, None))
        return agent

    @classmethod
    def _from_bank(cls, bank: ExpertBank, device: str | torch.device, precision: Precision) -> M3DTAgent:
        agent = cls(bank.widest, bank.tasks, device=device, precision=precision)
        agent._load(bank)
        return agent

    def save(self, path: str | Path) -> None:
        """Writes the agent's bank to the folder `path`, with the tasks that it has learned, completely or not at all.

        Raises:
            StageError: there is no bank, because no stage was fitted.
            BankError: `path` exists and is not an empty folder.
        """
        bank = self._require_bank("save")
        if self._learned.tasks:
            copy_with_tasks(bank, self._learned, user_path(path))
        else:
            bank.copy_to(path)

    def _require_bank(self, purpose: str, *, with_learned: bool = True) -> ExpertBank:
        if self.bank is None:
            raise StageError(f"there is nothing to {purpose} yet; run fit_stage('backbone', ...) first")
        if self._learned.tasks and not with_learned:
            names = ", ".join(task.name for task in self._learned.tasks)
            raise StageError(
                f"cannot {purpose}: bank {self.bank.path} does not have {names}, which the agent has learned; save the agent, "
                "and load the bank that this makes"
            )
        return self.bank

    def fit_stage(
        self,
        stage: str | int,
        data: TaskDatasets,
        *,
        bank: str | Path | ExpertBank,
        config: TrainConfig | None = None,
        experts: Sequence[int] | None = None,
        fanout: Fanout | None = None,
        start: ExpertBank | None = None,
        progress: bool | None = None,
        on_log: OnLog | None = None,
        trackers: Trackers = (),
    ) -> None:
        """Trains one stage, stores it in `bank` and loads the result. An interrupted run continues where it stopped.

        Args:
            stage: "backbone", "experts" or "router", or 1, 2 or 3.
            bank: if there is none at this path, it starts as a copy of the agent's own bank; if the agent has none either,
                stage "backbone" makes a new one, with prompts and statistics from `data`.
            config, experts, fanout, start, progress, on_log, trackers: as `training.fit_stage` takes them.

        Raises:
            UnknownTaskError: no such stage.
            StageError: an earlier stage is not done, or the agent has learned tasks since.
            ConfigError: the agent, `data` and the bank differ in tasks or model.
            M3DTError: other errors of `training.fit_stage`.
        """
        stage = stage_name(stage)
        with joined(self.device) as world:
            with world.main_first():
                opened = self._bank_for(data, bank, may_create=stage == "backbone")
            training.fit_stage(
                stage,
                data,
                opened,
                config,
                experts=experts,
                fanout=fanout,
                start=start,
                device=self.device,
                progress=progress,
                on_log=on_log,
                trackers=trackers,
            )
        self._load(ExpertBank.open(opened.path, check="sizes"))

    def group_tasks(
        self, data: TaskDatasets, *, bank: str | Path | ExpertBank, config: ExpertsConfig | None = None
    ) -> dict[str, int]:
        """Splits the tasks over the experts, stores the split in `bank` and returns it: task name → expert.

        Stage "experts" does this itself if it has not been done before.

        Raises:
            StageError: the backbone is not trained.
            ConfigError: more experts than tasks; or the agent, `data` and the bank differ in tasks or model.
        """
        opened = self._bank_for(data, bank, may_create=False)
        groups = training.group_tasks(data, opened, config)
        if opened.status("backbone") == "done":
            self._load(ExpertBank.open(opened.path, check="sizes"))
        return groups

    def _bank_for(self, data: TaskDatasets, bank: str | Path | ExpertBank, *, may_create: bool) -> ExpertBank:
        if self.bank is not None:
            require_ungrown(self._require_bank("train", with_learned=False))
        return bank_to_fit(bank, own=self.bank, config=self.config, tasks=self.tasks, data=data, may_create=may_create)

    def _load(self, bank: ExpertBank) -> None:
        self.bank, self.statistics, self.prompts, self._learned = bank, bank.statistics, bank.prompts, AddedTasks()
        model = bank.model()
        self._use(model, default_experts(bank), bank.grown_models(model))

    @property
    def content_hash(self) -> str:
        """The content hash of the agent's bank, or of the one that `save` writes of it; "" without one."""
        if self.bank is None:
            return ""
        return hash_with_tasks(self.bank, self._learned) if self._learned.tasks else self.bank.content_hash
