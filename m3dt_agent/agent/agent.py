"""`M3DTAgent`: one agent for many tasks, made from a bank of experts, that turns observations into actions.

    bank ──► model, prompts, statistics ── reset(task) ──► `Acting` ── act(obs, reward) ──► actions in [-1, 1]

Per slot, with return scale s and target return G, the return-to-go is R̂₀ = G / s, then R̂ₜ = R̂ₜ₋₁ - rₜ₋₁ / s. Without
rewards, or with `rtg_mode="constant"`, R̂ stays G / s. Prompt tokens attend only to each other, so their keys and values are
computed once per reset, exactly. The tokens of the last T = context_length steps are computed anew at every step, because
sliding the window changes every token in it.

Shape legend: N slots; observations and actions of several tasks are zero-padded to widths 39 and 8.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy.typing as npt
import torch

from .. import training
from ..bank import ExpertBank
from ..config import ExpertsConfig, ModelConfig, TrainConfig, stage_name
from ..data.prompts import Prompt
from ..data.stats import TaskStatistics
from ..data.task_datasets import TaskDatasets
from ..errors import ConfigError, InvalidValueError, StageError
from ..model import M3DT, RoutingUsage, faster_precision
from ..scores import EpisodeResult
from ..tasks import TaskSpec, resolve
from ..training.distributed import joined
from ..training.expert_jobs import Fanout
from ..training.logs import OnLog
from .acting import Acting, window_dtype
from .choice import Experts, Precision, RtgMode, checked_experts, default_experts
from .conditions import KnownTasks
from .fitting import bank_to_fit
from .inputs import Floats

if TYPE_CHECKING:
    from ..hub.banks import PushedBank


class M3DTAgent:
    """An M3DT model with the prompts, statistics and target returns of its tasks.

    Attributes: `model`, `bank` (None before a stage is fitted or a bank is loaded), `statistics` and `prompts` by task name.
    In float64 (`agent.model.double()`) a slot's action does not depend on the other slots, to float32 precision.

    Args:
        config, tasks: the shape of the model, and the tasks it is for, as `tasks.resolve` takes them.
        device: where the model runs.
        precision: of the matrix products while acting; "auto" measures whether float32 or bfloat16 is faster here.

    Raises:
        ConfigError: an unknown precision.
    """

    def __init__(
        self,
        config: ModelConfig,
        tasks: Sequence[str | TaskSpec],
        *,
        device: str | torch.device = "cpu",
        precision: Precision = "float32",
    ) -> None:
        if precision not in ("float32", "bfloat16", "auto"):
            raise ConfigError(f"precision must be 'float32', 'bfloat16' or 'auto'; got {precision!r}")
        self.config = config
        self.tasks = resolve(tasks)
        self.device = torch.device(device)
        self.precision = faster_precision(config.n_tokens, config.embed_dim, device) if precision == "auto" else precision
        self.bank: ExpertBank | None = None
        self.statistics: Mapping[str, TaskStatistics] = {}
        self.prompts: Mapping[str, tuple[Prompt, ...]] = {}
        self._use(M3DT(dataclasses.replace(config, n_experts=0, top_k=None)), "none")

    # Banks and training

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
            ConfigError: a folder with a `revision`, or experts that the bank does not have.
            M3DTError: other errors of `hub.banks.pull_bank`.
        """
        from ..hub.banks import pull_bank  # loads the Hub's client

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
            StageError: there is no bank, because no stage was fitted.
            M3DTError: errors of `hub.banks.push_bank`.
        """
        from ..hub.banks import push_bank

        return push_bank(
            self._require_bank("push"),
            repo_id,
            token=token,
            endpoint=endpoint,
            private=private,
            rows=rows,
            overwrite=overwrite,
        )

    @classmethod
    def load(cls, path: str | Path, *, device: str | torch.device = "cpu", precision: Precision = "float32") -> M3DTAgent:
        """`from_pretrained` of a local folder."""
        return cls.from_pretrained(path, device=device, precision=precision)

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
            statistics, prompts: by task name, for each of `tasks`; the first prompt is used.
            experts: what acts: "none", the index of one of the model's experts, or "mixture" if it has a router.

        Raises:
            ConfigError: statistics or prompts of other tasks than `tasks`, or experts that the model does not have.
        """
        agent = cls(model.config, tasks, device=device)
        names = {task.name for task in agent.tasks}
        for what, found in (("statistics", statistics), ("prompts", prompts)):
            if set(found) != names:
                raise ConfigError(f"{what} must be those of the agent's tasks; they differ in {sorted(set(found) ^ names)}")
        agent.statistics, agent.prompts = dict(statistics), dict(prompts)
        agent._use(model, checked_experts(experts, model, None))
        return agent

    @classmethod
    def _from_bank(cls, bank: ExpertBank, device: str | torch.device, precision: Precision) -> M3DTAgent:
        agent = cls(bank.config, bank.tasks, device=device, precision=precision)
        agent._load(bank)
        return agent

    def save(self, path: str | Path) -> None:
        """Writes the agent's bank to the folder `path`, completely or not at all.

        Raises:
            StageError: there is no bank, because no stage was fitted.
            BankError: `path` exists and is not an empty folder.
        """
        self._require_bank("save").copy_to(path)

    def _require_bank(self, purpose: str) -> ExpertBank:
        if self.bank is None:
            raise StageError(f"there is nothing to {purpose} yet; run fit_stage('backbone', ...) first")
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
    ) -> None:
        """Trains one stage, stores it in `bank` and loads the result. An interrupted run continues where it stopped.

        Args:
            stage: "backbone", "experts" or "router", or 1, 2 or 3.
            bank: if there is none at this path, it starts as a copy of the agent's own bank; if the agent has none either,
                stage "backbone" makes a new one, with prompts and statistics from `data`.
            config, experts, fanout, start, progress, on_log: as `training.fit_stage` takes them.

        Raises:
            UnknownTaskError: no such stage.
            StageError: an earlier stage is not done.
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
        return bank_to_fit(bank, own=self.bank, config=self.config, tasks=self.tasks, data=data, may_create=may_create)

    def _load(self, bank: ExpertBank) -> None:
        self.bank, self.statistics, self.prompts = bank, bank.statistics, bank.prompts
        self._use(bank.model(), default_experts(bank))

    def _use(self, model: M3DT, experts: Experts) -> None:
        self.model = model.to(self.device).eval()
        if self.precision == "bfloat16":
            self.model.requires_grad_(False).lower_frozen(torch.bfloat16)
        self._experts = experts
        self._acting: Acting | None = None  # None before `reset`

    @property
    def experts(self) -> Experts:
        """Which experts act; may be set at any time, even within an episode.

        "none" is the backbone alone, an index one expert, "mixture" all experts weighed by the router, and a `Routing` the
        heaviest of them for each slot. A complete bank starts with "mixture", or with a `Routing` of 0.99 of the weight where
        the router was trained to concentrate.
        """
        return self._experts

    @experts.setter
    def experts(self, experts: Experts) -> None:
        experts = self.checked_experts(experts)
        if self._acting is not None:
            self._acting.use(experts)
        self._experts = experts

    def checked_experts(self, experts: Experts) -> Experts:
        """`experts` itself, if they can act.

        Raises:
            ConfigError: "mixture" or a `Routing` without a trained router, or an expert that is not trained or does not exist;
                the message names the valid ones.
        """
        return checked_experts(experts, self.model, self.bank)

    def routing_usage(self) -> RoutingUsage:
        """What the last `act` used in each of L blocks: how many experts, and the share of router weight left out, (L, n) each.

        n: the slots that acted.

        Raises:
            StageError: `experts` is not a `Routing`, or nothing has acted yet.
        """
        return self.model.routing_usage()

    @property
    def content_hash(self) -> str:
        """The content hash of the agent's bank; "" without one."""
        return "" if self.bank is None else self.bank.content_hash

    # Acting

    def reset(
        self,
        task: str | TaskSpec | Sequence[str | TaskSpec] | None = None,
        *,
        prompt: Prompt | None = None,
        statistics: TaskStatistics | None = None,
        target_return: float | None = None,
        rtg_mode: RtgMode = "rewards",
    ) -> None:
        """Forgets all histories and fixes the task of the episodes that follow. If it fails, the agent stays as it was.

        Args:
            task: a task of the agent, for any number of slots (the first `act` decides), or a list with one task per slot.
            prompt, statistics: instead of `task`, for a task the agent was not trained on; the widths are the prompt's.
            target_return: undiscounted and unscaled, for every slot; None is each task's own.
            rtg_mode: "rewards" lowers the return-to-go by the rewards given to `act`, "constant" ignores them.

        Raises:
            UnknownTaskError: a task the agent does not have.
            ConfigError: both or neither of task and prompt, an empty list, or an unknown mode.
            StageError: a task by name before any stage was fitted.
            ShapeError: a prompt that does not fit the model or the statistics.
            InvalidValueError: a target return that is not finite.
        """
        if rtg_mode not in ("rewards", "constant"):
            raise ConfigError(f"rtg_mode must be 'rewards' or 'constant'; got {rtg_mode!r}")
        if target_return is not None and not math.isfinite(target_return):
            raise InvalidValueError(f"target_return must be finite; got {target_return!r}")
        known = KnownTasks(self.tasks, self.prompts, self.statistics)
        conditions = known.requested(task, prompt, statistics, target_return)
        self._acting = Acting(self.model, conditions, experts=self._experts, rtg_mode=rtg_mode)

    def act(
        self,
        obs: npt.ArrayLike,
        *,
        reward: npt.ArrayLike | None = None,
        reset_mask: npt.ArrayLike | None = None,
        active: npt.ArrayLike | None = None,
    ) -> Floats:
        """The actions for the current observations.

        Args:
            obs: for one task (obs_dim,) or (N, obs_dim); after `reset` with a list of N tasks (N, 39), zero-padded.
            reward: () or (N,), what the previous actions earned; None leaves returns-to-go as they are.
            reset_mask: () or (N,) bool; where True, obs[i] is the first of an episode and reward[i] is ignored. The first
                `act` after `reset` opens an episode in every slot anyway.
            active: () or (N,) bool; where False, obs[i] and reward[i] are ignored, the slot's history stays as it is and its
                action is 0; the model does not compute it. None is every slot.

        Returns:
            float32 in [-1, 1]: (act_dim,) or (N, act_dim) for one task; (N, 8) for a list, with padding of exactly 0. From
            step `max_timesteps` of an episode on, the last timestep's embedding is used.

        Raises:
            StageError: `reset` was not called yet.
            ShapeError: a shape that does not fit; the message names the valid ones.
            InvalidValueError: a NaN or infinite observation or reward; the message names slot and dimension.
        """
        if self._acting is None:
            raise StageError("act before reset: call reset(task=...) first")
        return self._acting.act(obs, reward=reward, reset_mask=reset_mask, active=active)

    @property
    def dtype(self) -> torch.dtype:
        """Of the windows and prompts that the model takes: float64 where its parameters are, else float32."""
        return window_dtype(self.model)
