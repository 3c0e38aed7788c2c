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
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..data.prompts import prompt_window
from ..model import M3DT, PromptCache, Routing
from .choice import Experts, RtgMode
from .conditions import Condition
from .history import History, Rows
from .inputs import Bools, Floats, flag_rows, observation_rows, require_finite, reward_rows


class Acting:
    """A model that acts on fixed tasks. `M3DTAgent.reset` makes one, and the next `reset` replaces it.

    model: in eval mode, where it is to run. experts: which of them act.
    conditions: one for any number of slots (the first `act` decides how many), or a list with one per slot.
    rtg_mode: "rewards" lowers the return-to-go by the rewards given to `act`, "constant" ignores them.

    Raises:
        ShapeError: a prompt that fits neither model nor statistics.
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
    ) -> Floats:
        """As `M3DTAgent.act`. Nothing changes if an argument is refused."""
        observations = self._checked_observations(obs)
        shape, N = np.shape(obs), len(observations)
        history = self._history or self._new_history(N)
        acting = flag_rows("active", active, shape[:-1], default=True)
        starts = flag_rows("reset_mask", reset_mask, shape[:-1], default=False) | history.pending
        rewards = self._checked_rewards(reward, shape[:-1], acting & ~starts)
        require_finite("observation", observations, history.state_mask[:, : observations.shape[1]] & acting[:, None])
        self._history, self._shape = history, shape
        history.pending = starts & ~acting
        actions = np.zeros((N, self._model.config.act_dim), np.float32)
        if acting.any():
            actions[acting] = self._step(history, observations[acting], rewards[acting], starts[acting], acting)
        if self._per_slot is not None:
            return actions
        actions = actions[:, : self._distinct[0].act_dim]
        return actions[0] if len(shape) == 1 else actions

    @torch.inference_mode()
    def _step(self, history: History, observations: Floats, rewards: npt.NDArray[Any], starts: Bools, acting: Bools) -> Floats:
        """(n, D_a) actions of the n slots that act."""
        rows: Rows = slice(None) if acting.all() else torch.from_numpy(np.flatnonzero(acting)).to(self._device)
        padded = np.zeros((len(observations), self._model.config.state_dim), np.float32)
        padded[:, : observations.shape[1]] = observations
        window = history.observe(
            rows,
            torch.from_numpy(padded).to(self._device, self._dtype),
            torch.from_numpy(rewards).to(self._device),
            torch.from_numpy(starts).to(self._device),
        )
        with self._autocast:
            actions = self._model.act(window, self._prompts_of(rows, history.slots), self._experts)
        return history.record(rows, actions).cpu().numpy()

    @torch.inference_mode()
    def _encode(self, experts: Experts) -> PromptCache:
        """Keys and values of the distinct conditions' prompts."""
        prompts, statistics = [c.prompt for c in self._distinct], [c.statistics for c in self._distinct]
        window = prompt_window(prompts, statistics, self._model.config).to(self._device, self._dtype)
        dense: Experts = "mixture" if isinstance(experts, Routing) else experts  # only once per reset, so all experts
        with self._autocast:
            return self._model.encode_prompt(window, dense)

    def _prompts_of(self, rows: Rows, N: int) -> PromptCache:
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

    def _checked_observations(self, obs: npt.ArrayLike) -> Floats:
        """(N, width) float32."""
        first = self._distinct[0]
        if self._per_slot is not None:
            N = len(self._per_slot)
            return observation_rows(obs, f"{N} slots", (N, self._model.config.state_dim))
        if self._shape is not None:
            return observation_rows(obs, f"{first.name}, after the first act,", self._shape)
        return observation_rows(obs, first.name, (None, first.obs_dim))

    def _checked_rewards(self, reward: npt.ArrayLike | None, shape: tuple[int, ...], used: Bools) -> npt.NDArray[np.float64]:
        """(N,) float64, 0 where no reward is used."""
        return np.zeros(used.shape) if reward is None or self._rtg_mode == "constant" else reward_rows(reward, shape, used)


def window_dtype(model: M3DT) -> torch.dtype:
    """Of windows and prompts as the model takes them: float64 where its parameters are, else float32."""
    return torch.promote_types(next(model.parameters()).dtype, torch.float32)
