"""What an agent knows between two calls of `reset`: conditions, histories and the encoded prompts.

    act(obs, reward)
        │ checked by inputs.py
        ▼
    History: the last T steps of each slot ──► window ──┐
                                                        ├──► model.act ──► actions in [-1, 1], padding exactly 0
    prompts, encoded once ──► keys and values per slot ─┘              each slot by the model that its task has (parts.py)

Shape legend: N slots, n slots that act now, D_s state_dim, D_a act_dim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from ..config import ModelConfig
from ..model import M3DT
from .choice import Experts, RtgMode
from .conditions import Condition
from .history import History, Slots
from .inputs import LARGEST, Bools, Float32Array, Float64Array, flag_rows, observation_rows, require_finite, reward_rows
from .parts import Parts, window_dtype

_ADVICE = "; the model's weights are not finite, or an observation, reward or target return is too large for them"


class Acting:
    """A model that acts on fixed tasks. `M3DTAgent.reset` makes one, and the next `reset` replaces it.

    model: in eval mode, where it is to run. experts: which of them act.
    conditions: one for any number of slots (the first `act` decides how many), or a list with one per slot.
    grown: task → the model of a new expert, which acts on it instead. config: as wide and as long as the widest of all; None:
        that of `model`.
    rtg_mode: "rewards" lowers the return-to-go by the rewards given to `act`, "constant" ignores them.

    Raises:
        ShapeError: a prompt that fits neither model nor statistics.
        InvalidValueError: a prompt of which the model makes no finite numbers.
    """

    def __init__(
        self,
        model: M3DT,
        conditions: Condition | Sequence[Condition],
        *,
        experts: Experts,
        rtg_mode: RtgMode,
        grown: Mapping[str, M3DT] | None = None,
        config: ModelConfig | None = None,
    ) -> None:
        self._config, self._rtg_mode = config or model.config, rtg_mode
        self._device, self._dtype = next(model.parameters()).device, window_dtype(model)
        self._per_slot = None if isinstance(conditions, Condition) else list(conditions)
        self._distinct = [conditions] if isinstance(conditions, Condition) else list(dict.fromkeys(conditions))
        self._parts = Parts(model, dict(grown or {}), self._distinct, experts)
        numbers = {condition: i for i, condition in enumerate(self._distinct)}
        self._numbers = np.array([numbers[condition] for condition in self._per_slot or ()], np.int64)  # (N,) of the conditions
        self._shape: tuple[int, ...] | None = None  # of the observations; None before the first `act`
        self._history: History | None = None  # None before the first `act`

    def use(self, experts: Experts) -> None:
        """Lets `experts` act from now on; histories stay as they are."""
        self._parts.use(experts)

    def act(
        self,
        obs: npt.ArrayLike,
        *,
        reward: npt.ArrayLike | None = None,
        reset_mask: npt.ArrayLike | None = None,
        active: npt.ArrayLike | None = None,
    ) -> Float32Array:
        """As `M3DTAgent.act`. Nothing changes if an argument is refused, or if there is no finite action."""
        observations = self._checked_observations(obs)
        shape, N = np.shape(obs), len(observations)
        history = self._history or self._new_history(N)
        acting = flag_rows("active", active, shape[:-1], default=True)
        starts = flag_rows("reset_mask", reset_mask, shape[:-1], default=False) | history.pending
        rewards = self._checked_rewards(reward, shape[:-1], acting & ~starts)
        require_finite("observation", observations, history.state_mask[:, : observations.shape[1]] & acting[:, None])
        actions = np.zeros((N, self._config.act_dim), np.float32)
        if acting.any():
            self._step(history, observations, rewards, starts, acting, actions)
        self._history, self._shape = history, shape
        history.pending = starts & ~acting
        if self._per_slot is not None:
            return actions
        actions = actions[:, : self._distinct[0].act_dim]
        return actions[0] if len(shape) == 1 else actions

    @torch.inference_mode()
    def _step(
        self,
        history: History,
        observations: Float32Array,
        rewards: Float64Array,
        starts: Bools,
        acting: Bools,
        actions: Float32Array,
    ) -> None:
        """One step of the slots where `acting` (N,) is True: writes their rows of `actions` (N, D_a)."""
        slots = Slots.of(acting, self._device)
        padded = np.zeros((int(acting.sum()), self._config.state_dim), np.float32)
        padded[:, : observations.shape[1]] = observations[acting]
        step = history.observe(slots, padded, self._returns_to_go(history, slots, rewards, starts), starts[acting])
        numbers = self._numbers[acting] if self._per_slot is not None else np.zeros(len(padded), np.int64)
        predicted = self._parts.act(step.window, numbers)
        taken = history.taken(slots, predicted)
        actions[acting] = taken.cpu().numpy()
        require_finite("the action", actions, acting[:, None], _ADVICE)
        history.record(slots, step, taken)

    def _returns_to_go(self, history: History, slots: Slots, rewards: Float64Array, starts: Bools) -> Float64Array:
        """(n,) float64, each within float32's range."""
        found = history.returns_to_go(slots, rewards[slots.mask], starts[slots.mask])
        shown = np.zeros(len(slots.mask), np.float32)
        with np.errstate(over="ignore"):
            shown[slots.mask] = found
        require_finite("the return-to-go", shown, slots.mask, f" after this reward: it is more than ±{LARGEST:.2g}")
        return found

    def _new_history(self, N: int) -> History:
        return History(self._per_slot or self._distinct * N, self._config, self._device, self._dtype)

    def _checked_observations(self, obs: npt.ArrayLike) -> Float32Array:
        """(N, width) float32."""
        first = self._distinct[0]
        if self._per_slot is not None:
            N = len(self._per_slot)
            return observation_rows(obs, f"{N} slots", (N, self._config.state_dim))
        if self._shape is not None:
            return observation_rows(obs, f"{first.name}, after the first act,", self._shape)
        return observation_rows(obs, first.name, (None, first.obs_dim))

    def _checked_rewards(self, reward: npt.ArrayLike | None, shape: tuple[int, ...], used: Bools) -> Float64Array:
        """(N,) float64, 0 where no reward is used."""
        if reward is None:
            return np.zeros(used.shape)
        return reward_rows(reward, shape, used & (self._rtg_mode == "rewards"))
