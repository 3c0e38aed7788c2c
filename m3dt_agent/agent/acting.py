"""What an agent knows between two calls of `reset`: conditions, histories and the encoded prompts.

    act(obs, reward)
        │ checked by inputs.py
        ▼
    History: the last T steps of each slot ──► window ──┐
                                                        ├──► model.act ──► actions in [-1, 1], padding exactly 0
    prompts, encoded once ──► keys and values per slot ─┘

Shape legend: N slots, n slots that act now, D_s state_dim, D_a act_dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from ..data.prompts import prompt_window
from ..errors import InvalidValueError
from ..model import M3DT, PromptCache, Routing
from ..model.prompt_dt import is_finite
from .choice import Experts, RtgMode
from .conditions import Condition
from .history import History, Slots
from .inputs import LARGEST, Bools, Float32Array, Float64Array, flag_rows, observation_rows, require_finite, reward_rows

_ADVICE = "; the model's weights are not finite, or an observation, reward or target return is too large for them"


class Acting:
    """A model that acts on fixed tasks. `M3DTAgent.reset` makes one, and the next `reset` replaces it.

    model: in eval mode, where it is to run. experts: which of them act.
    conditions: one for any number of slots (the first `act` decides how many), or a list with one per slot.
    rtg_mode: "rewards" lowers the return-to-go by the rewards given to `act`, "constant" ignores them.

    Raises:
        ShapeError: a prompt that fits neither model nor statistics.
        InvalidValueError: a prompt of which the model makes no finite numbers.
    """

    def __init__(
        self, model: M3DT, conditions: Condition | Sequence[Condition], *, experts: Experts, rtg_mode: RtgMode
    ) -> None:
        self._model, self._rtg_mode = model, rtg_mode
        self._autocast = model.autocast()
        self._device, self._dtype = next(model.parameters()).device, window_dtype(model)
        self._per_slot = None if isinstance(conditions, Condition) else list(conditions)
        self._distinct = [conditions] if isinstance(conditions, Condition) else list(dict.fromkeys(conditions))
        self._shape: tuple[int, ...] | None = None  # of the observations; None before the first `act`
        self._history: History | None = None  # None before the first `act`
        self.use(experts)

    def use(self, experts: Experts) -> None:
        """Lets `experts` act from now on; histories stay as they are."""
        self._encoded = self._encode(experts)  # one row per distinct condition
        self._experts = experts
        self._of_all: PromptCache | None = None  # one row per slot
        self._of_some: tuple[torch.Tensor, PromptCache] | None = None  # of the slots that acted last, if not all did

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
        actions = np.zeros((N, self._model.config.act_dim), np.float32)
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
        padded = np.zeros((int(acting.sum()), self._model.config.state_dim), np.float32)
        padded[:, : observations.shape[1]] = observations[acting]
        step = history.observe(slots, padded, self._returns_to_go(history, slots, rewards, starts), starts[acting])
        with self._autocast:
            predicted = self._model.act(step.window, self._prompts_of(slots.index, len(acting)), self._experts)
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

    @torch.inference_mode()
    def _encode(self, experts: Experts) -> PromptCache:
        """Keys and values of the distinct conditions' prompts."""
        prompts, statistics = [c.prompt for c in self._distinct], [c.statistics for c in self._distinct]
        window = prompt_window(prompts, statistics, self._model.config).to(self._device, self._dtype)
        dense: Experts = "mixture" if isinstance(experts, Routing) else experts  # only once per reset, so all experts
        with self._autocast:
            encoded = self._model.encode_prompt(window, dense)
        if not (is_finite(encoded.keys) and is_finite(encoded.values)):
            finite = (encoded.keys.isfinite() & encoded.values.isfinite()).transpose(0, 1).flatten(1).all(1)
            name = self._distinct[int(finite.logical_not().nonzero()[0])].name
            raise InvalidValueError(f"the model cannot read the prompt of {name}: it, or a weight, is too large or not finite")
        return encoded

    def _prompts_of(self, rows: slice | torch.Tensor, N: int) -> PromptCache:
        """Keys and values of the prompts of the slots `rows`; selected anew only when other slots act."""
        if self._of_all is None:
            numbers = {condition: i for i, condition in enumerate(self._distinct)}
            slots = [0] * N if self._per_slot is None else [numbers[condition] for condition in self._per_slot]
            self._of_all = self._encoded.select(torch.tensor(slots, device=self._device))
        if isinstance(rows, slice):
            return self._of_all
        if self._of_some is None or not torch.equal(self._of_some[0], rows):
            self._of_some = (rows, self._of_all.select(rows))
        return self._of_some[1]

    def _new_history(self, N: int) -> History:
        return History(self._per_slot or self._distinct * N, self._model.config, self._device, self._dtype)

    def _checked_observations(self, obs: npt.ArrayLike) -> Float32Array:
        """(N, width) float32."""
        first = self._distinct[0]
        if self._per_slot is not None:
            N = len(self._per_slot)
            return observation_rows(obs, f"{N} slots", (N, self._model.config.state_dim))
        if self._shape is not None:
            return observation_rows(obs, f"{first.name}, after the first act,", self._shape)
        return observation_rows(obs, first.name, (None, first.obs_dim))

    def _checked_rewards(self, reward: npt.ArrayLike | None, shape: tuple[int, ...], used: Bools) -> Float64Array:
        """(N,) float64, 0 where no reward is used."""
        if reward is None:
            return np.zeros(used.shape)
        return reward_rows(reward, shape, used & (self._rtg_mode == "rewards"))


def window_dtype(model: M3DT) -> torch.dtype:
    """Of windows and prompts as the model takes them: float64 where its parameters are, else float32."""
    return torch.promote_types(next(model.parameters()).dtype, torch.float32)
