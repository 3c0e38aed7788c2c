"""`M3DTAgent`: one agent for many tasks, from a bank of experts to actions.

    reset(task)                    act(obs, reward)
        │                              │
        ▼                              ▼
    prompt, statistics,    history of each slot, the last T = context_length steps
    target return          states (N,T,39)  actions (N,T,8)  returns-to-go (N,T,1)  timesteps (N,T)  mask (N,T)
        │                              │
        ▼                              ▼
    prompt keys and values ──────► M3DT.act ──► actions in [-1, 1], padding exactly 0

Per slot, with return scale s and target return G: R̂₀ = G / s, and R̂ₜ = R̂ₜ₋₁ - rₜ₋₁ / s where rewards are given; without
them, or with `rtg_mode="constant"`, R̂ stays G / s. Prompt tokens attend only to each other, so their keys and values are
computed once per reset, exactly; windows are computed anew at every step, because sliding one changes every token in it
(DESIGN section 8).

Shape legend: N slots, T steps in a window; observations and actions of several tasks are zero-padded to 39 and 8.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from .. import training
from ..bank import ExpertBank, is_bank
from ..bank.builtin import folder_to_write
from ..config import ExpertsConfig, ModelConfig, TrainConfig, stage_name
from ..data.prompts import Prompt, prompt_window
from ..data.stats import TaskStatistics
from ..data.task_datasets import TaskDatasets
from ..errors import ConfigError, InvalidValueError, StageError
from ..model import M3DT, PromptCache, Routing, RoutingUsage, faster_precision
from ..scores import EpisodeResult
from ..tasks import TaskSpec, lookup, resolve
from ..training.distributed import joined
from ..training.expert_jobs import Fanout
from ..training.logs import OnLog
from ..training.stage_inputs import create_bank
from .choice import Experts, Precision, RtgMode, default_experts
from .history import Condition, History, Rows
from .inputs import Bools, Floats, flag_rows, observation_rows, require_finite, reward_rows

if TYPE_CHECKING:
    from ..hub.banks import PushedBank


class M3DTAgent:
    """An M3DT model with the prompts, statistics and target returns of its tasks.

    config, tasks: the shape of the model and the tasks it is for; `tasks` takes what `tasks.resolve` takes. device: where the
    model runs. precision: of the products while acting; "auto" measures which of float32 and bfloat16 is faster here.
    Attributes: `model`, `bank` (None before a stage is fitted or a bank loaded), `statistics`, `prompts` by task, `precision`.
    In float64 (`agent.model.double()`) actions do not depend on which slots act beside one, to the last bit of float32.

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
        """The agent of a bank, every file of it verified: a folder, an id on the Hugging Face Hub (`namespace/name`), or a bank
        that comes with the package (`builtin:NAME`).

        Args:
            revision: on the Hub, a branch, a tag (`stage-backbone`, `stage-router`, …) or a sha; None: main.
            experts, tasks: bring only these experts, or those that serve these tasks; no router then, unless they are all.
            device, precision: as the agent takes them. token, endpoint, cache_dir: as `hub.client.HubRepo` takes them.

        Raises:
            HubError: no such repository or revision, no access, or a failing Hub.
            BankError: no bank, or a file of it is missing, damaged or foreign; where no such bank comes with the package, the
                message names those that do.
            ConfigError: a folder with a `revision`, or experts that the bank does not have. Else as `hub.banks.pull_bank`.
        """
        from ..hub.banks import pull_bank  # brings the Hub's client, which acting on a bank at hand does not need

        pulled = pull_bank(
            path,
            revision,
            experts=experts,
            tasks=tasks,
            token=token,
            endpoint=endpoint,
            cache_dir=cache_dir,
            check_folder="sizes",  # all its files are read now, and reading verifies
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
        """Brings a repository on the Hub (or a folder) up to what the agent's bank has; every stage is a tag to resume from.

        rows: evaluated episodes of this bank, for the card. Arguments and errors else as `hub.banks.push_bank` has them.

        Raises:
            StageError: there is no bank, because no stage was fitted.
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
        """An agent around a model that no bank holds: one of your own making with M3DT's `encode_prompt` and `act`.

        experts: what acts; the model decides whether it has them.

        Raises:
            ConfigError: statistics or prompts that are not those of `tasks`.
        """
        agent = cls(model.config, tasks, device=device)
        names = {task.name for task in agent.tasks}
        for what, found in (("statistics", statistics), ("prompts", prompts)):
            if set(found) != names:
                raise ConfigError(f"{what} must be those of the agent's tasks; they differ in {sorted(set(found) ^ names)}")
        agent.statistics, agent.prompts = dict(statistics), dict(prompts)
        agent._use(model, experts)
        return agent

    @classmethod
    def _from_bank(cls, bank: ExpertBank, device: str | torch.device, precision: Precision) -> M3DTAgent:
        agent = cls(bank.config, bank.tasks, device=device, precision=precision)
        agent._load(bank)
        return agent

    def save(self, path: str | Path) -> None:
        """Writes the agent's bank to `path`, a folder that does not exist yet or is empty; whole or not at all.

        Raises:
            StageError: there is no bank, because no stage was fitted.
            BankError: `path` holds something.
        """
        self._require_bank("save").copy_to(path)

    def _require_bank(self, purpose: str) -> ExpertBank:
        if self.bank is None:
            raise StageError(f"nothing to {purpose}: fit_stage('backbone', ...) makes the first weights")
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
        """Trains one stage into `bank` (made if it does not exist) and loads the result; a killed run continues where it was.

        A new bank takes prompts and statistics from `data`; an agent that already has a bank starts the new one as its copy.
        config, experts, fanout, start, progress, on_log: as `training.fit_stage` takes them.

        Raises:
            UnknownTaskError: no such stage. StageError: an earlier stage is not done.
            ConfigError: the agent, `data` and the bank are not of the same tasks and model. Else as `training.fit_stage`.
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
        self._load(ExpertBank.open(opened.path))

    def group_tasks(
        self, data: TaskDatasets, *, bank: str | Path | ExpertBank, config: ExpertsConfig | None = None
    ) -> dict[str, int]:
        """Splits the tasks over the experts, task name → expert, and keeps the split in `bank`; stage 2 does it if nobody has.

        Raises:
            StageError: the backbone is not trained. ConfigError: more experts than tasks, or as for `fit_stage`.
        """
        opened = self._bank_for(data, bank, may_create=False)
        groups = training.group_tasks(data, opened, config)
        if opened.status("backbone") == "done":
            self._load(ExpertBank.open(opened.path))
        return groups

    def _bank_for(self, data: TaskDatasets, bank: str | Path | ExpertBank, *, may_create: bool) -> ExpertBank:
        _require_same_tasks(self.tasks, data.tasks, "the datasets")
        if isinstance(bank, ExpertBank):
            opened = bank
        elif is_bank(folder_to_write(bank)):
            opened = ExpertBank.open(Path(bank))
        elif self.bank is not None:
            opened = self.bank.copy_to(bank)
        elif not may_create:
            raise StageError(f"there is no bank at {bank}; fit_stage('backbone', ...) makes it")
        else:
            opened = create_bank(Path(bank), self.config, data)
        _require_same_tasks(self.tasks, opened.tasks, f"the bank {opened.path}")
        if opened.config != self.config:
            raise ConfigError(f"the bank {opened.path} holds {opened.config}; the agent is {self.config}")
        return opened

    def _load(self, bank: ExpertBank) -> None:
        self.bank, self.statistics, self.prompts = bank, bank.statistics, bank.prompts
        self._use(bank.model(), default_experts(bank))

    def _use(self, model: M3DT, experts: Experts) -> None:
        self.model = model.to(self.device).eval()
        if self.precision == "bfloat16":
            self.model.requires_grad_(False).lower_frozen(torch.bfloat16)
        self._experts = experts
        self._conditions: tuple[Condition, ...] = ()  # distinct ones; empty before reset
        self._slots: npt.NDArray[np.int64] | None = None  # (N,) a slot's condition; None: one task, any number of slots
        self._history: History | None = None
        self._cache: PromptCache | None = None  # of every slot
        self._subset: tuple[torch.Tensor, PromptCache] | None = None  # of the slots that acted last, if not all

    @property
    def experts(self) -> Experts:
        """Which experts act: "mixture" (all, weighed; the default of a complete bank), a `Routing` (each slot's heaviest of
        them; the default, with 0.99 of the weight, where the router was trained to concentrate), "none" (backbone) or one
        expert's index."""
        return self._experts

    @experts.setter
    def experts(self, experts: Experts) -> None:
        self._experts = self.checked_experts(experts)
        if self._conditions:
            self._encoded = self._encode(self._conditions)
        self._cache, self._subset = None, None

    def checked_experts(self, experts: Experts) -> Experts:
        """`experts` itself, if it can act.

        Raises:
            ConfigError: "mixture" without a trained router, or an expert that is not finished; the valid ones are named.
        """
        valid: list[Experts] = ["none"]
        if self.bank is not None:
            valid += ["mixture"] if self.bank.default_experts == "mixture" else []
            valid += self.bank.finished_experts
        sought = "mixture" if isinstance(experts, Routing) else experts
        if isinstance(experts, bool) or sought not in valid:
            shown = [*map(repr, valid), *(["a Routing"] if "mixture" in valid else [])]
            raise ConfigError(f"experts must be one of {', '.join(shown)} for this bank; got {experts!r}")
        return experts

    def routing_usage(self) -> RoutingUsage:
        """How many experts each slot that acted last used in each block, and the share of router weight left out, (L, n) each.

        Raises:
            StageError: `experts` is not a `Routing`, or nothing acted yet.
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
        """Forgets every history and fixes the task of the episodes that follow.

        Args:
            task: a task of the bank (any number of slots, which the first `act` decides), or a list with one task per slot.
            prompt, statistics: instead of `task`, for a task the bank has never seen; the widths are the prompt's.
            target_return: undiscounted and unscaled, for every slot; None is each task's own.
            rtg_mode: "rewards" lowers the return-to-go by the rewards given to `act`, "constant" ignores them.

        Raises:
            UnknownTaskError: a task the bank does not have.
            ConfigError: both or neither of task and prompt, an empty list, or a bad mode.
            StageError: a task by name before any stage was fitted. ShapeError: a prompt that fits neither model nor statistics.
            InvalidValueError: a target return that is not finite.
        """
        if rtg_mode not in ("rewards", "constant"):
            raise ConfigError(f"rtg_mode must be 'rewards' or 'constant'; got {rtg_mode!r}")
        if target_return is not None and not math.isfinite(target_return):
            raise InvalidValueError(f"target_return must be finite; got {target_return!r}")
        if (task is None) == (prompt is None) or (prompt is None) != (statistics is None):
            raise ConfigError(
                "reset takes either task=..., or prompt=... and statistics=... for a task the bank has never seen"
            )
        slots: npt.NDArray[np.int64] | None = None
        conditions: tuple[Condition, ...]
        if prompt is not None and statistics is not None:
            conditions = (_unseen(prompt, statistics, target_return),)
        elif task is None or isinstance(task, str | TaskSpec):
            conditions = (self._condition(task, target_return),)
        else:
            conditions, slots = self._distinct(task, target_return)
        self._encoded = self._encode(conditions)
        self._conditions, self._slots, self._rtg_mode = conditions, slots, rtg_mode
        self._shape: tuple[int, ...] | None = None
        self._history, self._cache, self._subset = None, None, None

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
            obs: one task: (obs_dim,) or (N, obs_dim); after `reset` with a list of N tasks: (N, 39), zero-padded.
            reward: () or (N,), what the previous actions earned; None leaves returns-to-go as they are.
            reset_mask: () or (N,) bool; obs[i] opens an episode, and reward[i] is ignored. The first `act` after `reset` opens
                one in every slot by itself.
            active: () or (N,) bool; where False, obs[i] and reward[i] are ignored, the slot's history stays as it is and its
                action is 0, at no cost (for slots that are frozen). None is every slot.

        Returns:
            float32 in [-1, 1]: (act_dim,) or (N, act_dim) for one task; (N, 8) for a list, the padding exactly 0. An episode
            longer than the model's `max_timesteps` goes on with the last timestep's embedding.

        Raises:
            StageError: no `reset` yet. ShapeError: a shape that does not fit; the message names the valid ones.
            InvalidValueError: a NaN or infinite observation or reward, named by slot and dimension.
        """
        observations = self._checked_observations(obs)
        shape, N = np.shape(obs), len(observations)
        history = self._history or self._new_history(N)
        acting = flag_rows("active", active, shape[:-1], default=True)
        starts = flag_rows("reset_mask", reset_mask, shape[:-1], default=False) | history.pending
        rewards = self._checked_rewards(reward, shape[:-1], acting & ~starts)
        require_finite("observation", observations, history.state_mask[:, : observations.shape[1]] & acting[:, None])
        self._history, self._shape = history, shape
        history.pending = starts & ~acting
        actions = np.zeros((N, self.config.act_dim), np.float32)
        if acting.any():
            actions[acting] = self._step(history, observations[acting], rewards[acting], starts[acting], acting)
        if self._slots is not None:
            return actions
        actions = actions[:, : self._conditions[0].act_dim]
        return actions[0] if len(shape) == 1 else actions

    @torch.inference_mode()
    def _step(self, history: History, observations: Floats, rewards: npt.NDArray[Any], starts: Bools, acting: Bools) -> Floats:
        """(n, D_a) actions of the n slots that act."""
        rows: Rows = slice(None) if acting.all() else torch.from_numpy(np.flatnonzero(acting)).to(self.device)
        padded = np.zeros((len(observations), self.config.state_dim), np.float32)
        padded[:, : observations.shape[1]] = observations
        window = history.observe(
            rows,
            torch.from_numpy(padded).to(self.device, self.dtype),
            torch.from_numpy(rewards).to(self.device),
            torch.from_numpy(starts).to(self.device),
        )
        with self.model.autocast():
            actions = self.model.act(window, self._prompt_cache(history, rows), self._experts)
        return history.record(rows, actions).cpu().numpy()

    # What acting needs

    def _condition(self, task: str | TaskSpec | None, target_return: float | None) -> Condition:
        if not self.statistics:
            raise StageError("this agent knows no task yet: fit_stage('backbone', ...) or reset(prompt=..., statistics=...)")
        name = task.name if isinstance(task, TaskSpec) else str(task)
        spec = lookup({spec.name: spec for spec in self.tasks}, name, "task of this agent")
        statistics = self.statistics[name]
        target = statistics.target_return if target_return is None else float(target_return)
        return Condition(name, spec.obs_dim, spec.act_dim, self.prompts[name][0], statistics, target)

    def _distinct(
        self, tasks: Sequence[str | TaskSpec], target_return: float | None
    ) -> tuple[tuple[Condition, ...], npt.NDArray[np.int64]]:
        """The distinct conditions of a list of tasks, and which of them each slot has."""
        per_slot = [task.name if isinstance(task, TaskSpec) else task for task in tasks]
        if not per_slot:
            raise ConfigError("reset needs at least one task; got an empty list")
        names = list(dict.fromkeys(per_slot))
        slots = np.array([names.index(name) for name in per_slot], np.int64)
        return tuple(self._condition(name, target_return) for name in names), slots

    @torch.inference_mode()
    def _encode(self, conditions: Sequence[Condition]) -> PromptCache:
        window = prompt_window([c.prompt for c in conditions], [c.statistics for c in conditions], self.config)
        dense: Experts = "mixture" if isinstance(self._experts, Routing) else self._experts  # once per reset: exact
        with self.model.autocast():
            return self.model.encode_prompt(window.to(self.device, self.dtype), dense)

    @property
    def dtype(self) -> torch.dtype:
        """Of windows and prompts as the model takes them: float64 where its parameters are, else float32."""
        return torch.promote_types(next(self.model.parameters()).dtype, torch.float32)

    def _slot_conditions(self, N: int) -> npt.NDArray[np.int64]:
        return np.zeros(N, np.int64) if self._slots is None else self._slots

    def _new_history(self, N: int) -> History:
        conditions = [self._conditions[i] for i in self._slot_conditions(N)]
        return History(conditions, self.config, self.device, self.dtype)

    def _prompt_cache(self, history: History, rows: Rows) -> PromptCache:
        """Keys and values of the prompts of the slots `rows`; selected again only when other slots act."""
        if self._cache is None:
            index = torch.from_numpy(self._slot_conditions(history.slots)).to(self.device)
            self._cache = self._encoded.select(index)
        if isinstance(rows, slice):
            return self._cache
        if self._subset is None or not torch.equal(self._subset[0], rows):
            self._subset = (rows, self._cache.select(rows))
        return self._subset[1]

    def _checked_observations(self, obs: npt.ArrayLike) -> Floats:
        """(N, width) float32."""
        if not self._conditions:
            raise StageError("act before reset: call reset(task=...) first")
        first = self._conditions[0]
        if self._slots is not None:
            return observation_rows(obs, f"{len(self._slots)} slots", (len(self._slots), self.config.state_dim))
        if self._shape is not None:
            return observation_rows(obs, f"{first.name}, after the first act,", self._shape)
        return observation_rows(obs, first.name, (None, first.obs_dim))

    def _checked_rewards(self, reward: npt.ArrayLike | None, shape: tuple[int, ...], used: Bools) -> npt.NDArray[np.float64]:
        """(N,) float64, 0 where no reward is used."""
        return np.zeros(used.shape) if reward is None or self._rtg_mode == "constant" else reward_rows(reward, shape, used)


def _unseen(prompt: Prompt, statistics: TaskStatistics, target_return: float | None) -> Condition:
    target = statistics.target_return if target_return is None else float(target_return)
    return Condition("an unseen task", prompt.states.shape[1], prompt.actions.shape[1], prompt, statistics, target)


def _require_same_tasks(ours: Sequence[TaskSpec], theirs: Sequence[TaskSpec], what: str) -> None:
    mine, other = [task.name for task in ours], [task.name for task in theirs]
    if mine != other:
        raise ConfigError(f"{what} hold the tasks {', '.join(other)}; the agent has {', '.join(mine)} (the order counts)")
