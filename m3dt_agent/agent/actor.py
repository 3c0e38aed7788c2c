"""`Actor`: the half of `M3DTAgent` that acts. It turns observations into actions.

    model, prompts, statistics ── reset(task) ──► `Acting` ── act(obs, reward) ──► actions in [-1, 1]

Per slot, with return scale s and target return G, the return-to-go is R̂₀ = G / s, then R̂ₜ = R̂ₜ₋₁ - rₜ₋₁ / s. Without
rewards, or with `rtg_mode="constant"`, R̂ stays G / s. Prompt tokens attend only to each other, so their keys and values are
computed once per reset, exactly. The tokens of the last T = context_length steps are computed anew at every step, because
sliding the window changes every token in it.

Shape legend: N slots; observations and actions of several tasks are zero-padded to widths 39 and 8.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Self

import numpy.typing as npt
import torch

from ..bank import ExpertBank
from ..bank.adding import AddedTasks
from ..config import DataConfig, ModelConfig
from ..config.checks import require_instance
from ..data.episodes import Episode
from ..data.prompts import Prompt
from ..data.stats import TaskStatistics
from ..data.task_datasets import TaskDatasets
from ..errors import ConfigError, StageError
from ..model import M3DT, RoutingUsage, faster_precision, with_same_weights
from ..system.machine import torch_device
from ..tasks import TaskSpec, lookup, resolve
from .acting import Acting
from .choice import Experts, Precision, RtgMode, checked_experts, checked_precision
from .conditions import KnownTasks
from .inputs import Float32Array
from .learning import learned
from .one_thread import OneThread
from .parts import window_dtype


class Actor:
    """A model with the prompts and statistics of its tasks, and its state between two calls of `act`. See `M3DTAgent`."""

    def __init__(
        self,
        config: ModelConfig,
        tasks: Sequence[str | TaskSpec],
        *,
        device: str | torch.device = "cpu",
        precision: Precision = "float32",
    ) -> None:
        require_instance("config", config, ModelConfig)
        precision = checked_precision(precision)
        self.config = config
        self.tasks = resolve(tasks)
        fitting = config.for_tasks(self.tasks)
        if (fitting.state_dim, fitting.act_dim) != (config.state_dim, config.act_dim):
            raise ConfigError(
                f"the tasks have observations and actions of up to {fitting.state_dim} + {fitting.act_dim}; the model takes "
                f"{config.state_dim} + {config.act_dim}; use config.for_tasks(tasks)"
            )
        self.device = torch_device(device)
        if precision == "auto":
            precision = faster_precision(config.n_tokens, config.embed_dim, self.device)
        self.precision = precision
        self.bank: ExpertBank | None = None
        self.statistics: Mapping[str, TaskStatistics] = {}
        self.prompts: Mapping[str, tuple[Prompt, ...]] = {}
        self._learned = AddedTasks()  # by `learn_task`
        self._thread = OneThread()
        self._use(M3DT(dataclasses.replace(config, n_experts=0, top_k=None)), "none")

    def _use(self, model: M3DT, experts: Experts, grown: Mapping[str, M3DT] | None = None) -> None:
        """Lets a model act from now on; grown: task → the model of a new expert, in whose tasks that acts instead."""
        self.model, self._grown = model.to(self.device).eval(), dict(grown or {})
        for one in (model, *self._grown.values()):  # in this order, since these share its memory
            one.to(self.device)
            if self.precision == "bfloat16":
                one.requires_grad_(False).lower_frozen(torch.bfloat16)
        self._experts = experts
        self._acting: Acting | None = None  # None before `reset`

    def copy(self) -> Self:
        """A second agent with the same weights in the same memory, for another thread or for other episodes beside these.

        It takes a millisecond and hardly any memory. The copy has `experts` of its own and no episodes; call its `reset`. What
        changes the weights in place, such as `agent.model.double()`, changes both; training one leaves the other as it was.
        """
        other = copy.copy(self)
        other.model = with_same_weights(self.model)
        other._acting, other._thread = None, OneThread()
        return other

    @property
    def experts(self) -> Experts:
        """Which experts act; may be set at any time, even within an episode.

        "none" is the backbone alone, an index one expert, "mixture" all experts weighed by the router, and a `Routing` the
        heaviest of them for each slot. A complete bank starts with "mixture", or with a `Routing` of 0.99 of the weight where
        the router was trained to concentrate. On tasks by which the bank has grown, their own expert acts in any case.
        """
        return self._experts

    @experts.setter
    def experts(self, experts: Experts) -> None:
        experts = self.checked_experts(experts)
        with self._thread:
            if self._acting is not None:
                self._acting.use(experts)
            self._experts = experts

    def checked_experts(self, experts: Experts) -> Experts:
        """`experts` as the agent keeps them, if they can act: a NumPy integer becomes one of Python.

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

    def acts_with(self, task: str | TaskSpec) -> tuple[M3DT, Experts]:
        """The model that acts on a task of the agent, and which of its experts do.

        If the bank has grown by the task, it is another model than `model`, of one expert; it shares the backbone's memory.

        Raises:
            UnknownTaskError: a task the agent does not have. StageError: its expert is not trained yet.
        """
        name = task.name if isinstance(task, TaskSpec) else task
        lookup({spec.name: spec for spec in self.tasks}, name, "task of this agent")
        self._require_trained(name)
        return (self._grown[name], 0) if name in self._grown else (self.model, self._experts)

    def _require_trained(self, task: str) -> None:
        grown = () if self.bank is None else self.bank.growths
        if task not in self._grown and any(task in growth.tasks for growth in grown):
            raise StageError(
                f"bank {self.bank and self.bank.path} has grown by task {task!r}, but its expert is not trained yet; continue "
                "with training.fit_growth, or with the `m3dt grow` that began it"
            )

    @property
    def dtype(self) -> torch.dtype:
        """Of the windows and prompts that the model takes: float64 where its parameters are, else float32."""
        return window_dtype(self.model)

    def learn_task(self, task: str | TaskSpec, episodes: Iterable[Episode] | TaskDatasets) -> None:
        """Shows the agent a task that it was not trained on, by one demonstration or more. No weight changes.

        From then on `reset`, `act`, `evaluate` and `play` take the task as they take the agent's own. The demonstrations give
        its statistics, prompts and target return, made as those of the agent's own tasks were. A task that is learned again has
        the new ones. `save` keeps it in a bank, as `ExpertBank.with_tasks` does.

        Expect a new goal of tasks that the agent knows, such as another velocity of cheetah-vel, to be reached as well as they
        are. Expect nothing of a new body: it takes training (docs/own-tasks.md has figures of both).

        The experts act as in the agent's own tasks: the mixture if there is a router, although it was not trained to weigh
        them for this task, else the backbone; or the single expert that `experts` names.

        Args:
            task: its name or spec. An environment is made only of a task that is registered (`envs.make.make_env`).
            episodes: episodes of this task, with actions in [-1, 1]; or datasets that have it, for a few episodes opened with
                `TaskDatasets.open(…, few=True)`.

        Raises:
            UnknownTaskError: no such task, or the datasets do not have it.
            ConfigError: the agent was trained on this task; it is too wide or too long for the model; `episodes` is something
                else; or the datasets hold another task of this name.
            DatasetError: there are no episodes, or one does not fit the task; the message names the step.
            StageError: no stage was fitted yet, or another thread is using the agent.
        """
        if not self.statistics:
            raise StageError("an untrained agent learns no task from demonstrations; run fit_stage('backbone', ...) first")
        trained = [one for one in self.tasks if one.name not in self._learned.statistics]
        config = DataConfig() if self.bank is None else self.bank.data_config
        new = self._learned | learned(task, episodes, known=trained, model=self.model.config, data=config)
        with self._thread:
            self.tasks, self._learned = (*trained, *new.tasks), new
            self.statistics = {**self.statistics, **new.statistics}
            self.prompts = {**self.prompts, **new.prompts}

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
            ConfigError: both or neither of task and prompt, an empty list, an unknown mode, or arguments of other types.
            StageError: a task by name before any stage was fitted, or another thread is using the agent.
            ShapeError: a prompt that does not fit the model or the statistics.
            InvalidValueError: a target return that is not finite, or not once it is scaled for the model; a prompt of which the
                model makes no finite numbers.
        """
        if not isinstance(rtg_mode, str) or rtg_mode not in ("rewards", "constant"):
            raise ConfigError(f"rtg_mode must be 'rewards' or 'constant'; got {rtg_mode!r}")
        known = KnownTasks(self.tasks, self.prompts, self.statistics)
        conditions = known.requested(task, prompt, statistics, target_return)
        for condition in conditions if isinstance(conditions, list) else [conditions]:
            self._require_trained(condition.name)
        if self.dtype is torch.float64:  # what is not shared with the model follows it
            for one in self._grown.values():
                one.double()
        with self._thread:
            self._acting = Acting(
                self.model, conditions, experts=self._experts, rtg_mode=rtg_mode, grown=self._grown, config=self.config
            )

    def act(
        self,
        obs: npt.ArrayLike,
        *,
        reward: npt.ArrayLike | None = None,
        reset_mask: npt.ArrayLike | None = None,
        active: npt.ArrayLike | None = None,
    ) -> Float32Array:
        """The actions for the current observations. If it fails, the agent stays as it was.

        An agent serves one thread: its episodes go on with every call. Give each thread its own with `copy`.

        Args:
            obs: for one task (obs_dim,) or (N, obs_dim); after `reset` with a list of N tasks (N, 39), zero-padded.
            reward: () or (N,), what the previous actions earned; None leaves returns-to-go as they are.
            reset_mask: () or (N,) bool; where True, obs[i] is the first of an episode and reward[i] is ignored. The first
                `act` after `reset` opens an episode in every slot anyway.
            active: () or (N,) bool; where False, obs[i] and reward[i] are ignored, the slot's history stays as it is and its
                action is 0; the model does not compute it. None is every slot.

        Returns:
            float32 in [-1, 1], always finite: (act_dim,) or (N, act_dim) for one task; (N, 8) for a list, with padding of
            exactly 0. From step `max_timesteps` of an episode on, the last timestep's embedding is used.

        Raises:
            StageError: `reset` was not called yet, or another thread is using the agent.
            ShapeError: not numbers, or a shape that does not fit; the message names the valid ones.
            InvalidValueError: a NaN or infinite observation or reward; a return-to-go that leaves float32's range; or values,
                or weights, from which the model computes no finite action. The message names the slot.
        """
        with self._thread:
            if self._acting is None:
                raise StageError("act before reset: call reset(task=...) first")
            return self._acting.act(obs, reward=reward, reset_mask=reset_mask, active=active)
