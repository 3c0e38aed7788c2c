"""Models that act side by side, each on its own slots: an agent of a bank that has grown has several.

    window of all slots ─┬► the bank's model, its router and experts      ─┬► actions of all slots
                         └► the model of a new expert, perhaps wider      ─┘

A model gets the windows of its own slots alone, cut to its widths, so the bank's tasks are computed as before it grew.

Shape legend: N slots, n slots that act now.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..config import ModelConfig
from ..data.prompts import prompt_window
from ..data.windows import Window
from ..errors import InvalidValueError
from ..model import M3DT, PromptCache, Routing
from ..model.recorded import recordings_of
from ..model.tensors import is_finite
from .choice import Experts
from .conditions import Condition

Int64Array = npt.NDArray[np.int64]


class Part:
    """A model, the conditions it acts on, and their prompts, encoded once.

    Raises:
        ShapeError: a prompt that fits neither model nor statistics.
        InvalidValueError: a prompt of which the model makes no finite numbers.
    """

    def __init__(self, model: M3DT, conditions: Sequence[Condition], experts: Experts) -> None:
        self.model, self._conditions = model, conditions
        self._autocast = model.autocast()
        self.use(experts)

    def use(self, experts: Experts) -> None:
        """Lets `experts` of the model act from now on."""
        self._encoded = encoded_prompts(self.model, self._conditions, experts)  # one row per condition
        self._recordings = recordings_of(self.model)
        with self._autocast:
            self._recordings.prepare(self.model, self._encoded, experts)
        self._experts = experts
        self._selected: tuple[Int64Array, PromptCache] | None = None  # for the rows that acted last

    def act(self, window: Window, conditions: Int64Array) -> Tensor:
        """The actions of the last step of each window, (n, act_dim of the model). conditions: (n,) their numbers."""
        if self._selected is None or not np.array_equal(self._selected[0], conditions):
            at = torch.from_numpy(conditions).to(self._encoded.mask.device)
            self._selected = (conditions, self._encoded.select(at))
        with self._autocast:
            return self._recordings.act(self.model, _cut(window, self.model.config), self._selected[1], self._experts)


class Parts:
    """The parts of one reset: who acts on which slots.

    Args:
        model: of the bank. grown: by the name of the task, the models of new experts.
        conditions: the distinct ones. experts: which of the bank's model act.
    """

    def __init__(self, model: M3DT, grown: dict[str, M3DT], conditions: Sequence[Condition], experts: Experts) -> None:
        models = [grown.get(condition.name, model) for condition in conditions]
        distinct = list(dict.fromkeys(models))
        members = [[c for c, its in zip(conditions, models, strict=True) if its is one] for one in distinct]
        self._model = model
        self._parts = [Part(one, mine, experts if one is model else 0) for one, mine in zip(distinct, members, strict=True)]
        self._part = np.array([distinct.index(its) for its in models], np.int64)  # of each condition
        self._row = np.zeros(len(conditions), np.int64)  # of each condition, among those of its part
        for number in range(len(distinct)):
            mine_of = self._part == number
            self._row[mine_of] = np.arange(mine_of.sum())

    def use(self, experts: Experts) -> None:
        """Lets `experts` of the bank's model act from now on. New experts act on their own tasks in any case."""
        for part in self._parts:
            if part.model is self._model:
                part.use(experts)

    def act(self, window: Window, conditions: Int64Array) -> Tensor:
        """The actions of the last step of each window, (n, its act_dim). conditions: (n,) their numbers."""
        part_of, rows = self._part[conditions], self._row[conditions]
        width = window.actions.shape[-1]
        found: Tensor | None = None
        for number in np.unique(part_of).tolist():
            part, mine = self._parts[number], part_of == number
            if mine.all() and part.model.config.act_dim == width:
                all_actions: Tensor = part.act(window, rows)
                return all_actions
            at = torch.from_numpy(np.flatnonzero(mine)).to(window.mask.device)
            actions: Tensor = part.act(_rows(window, at), rows[mine])
            found = actions.new_zeros(len(rows), width, dtype=torch.float32) if found is None else found
            found[at, : actions.shape[1]] = actions.float()
        assert found is not None  # somebody acts
        return found


@torch.inference_mode()
def encoded_prompts(model: M3DT, conditions: Sequence[Condition], experts: Experts) -> PromptCache:
    """Keys and values of the conditions' prompts, one row per condition.

    Raises:
        ShapeError, InvalidValueError: as `Part`.
    """
    prompts, statistics = [c.prompt for c in conditions], [c.statistics for c in conditions]
    window = prompt_window(prompts, statistics, model.config).to(next(model.parameters()).device, window_dtype(model))
    dense: Experts = "mixture" if isinstance(experts, Routing) else experts  # only once per reset, so all experts
    with model.autocast():
        encoded = model.encode_prompt(window, dense)
    if not (is_finite(encoded.keys) and is_finite(encoded.values)):
        finite = (encoded.keys.isfinite() & encoded.values.isfinite()).transpose(0, 1).flatten(1).all(1)
        name = conditions[int(finite.logical_not().nonzero()[0])].name
        raise InvalidValueError(f"the model cannot read the prompt of {name}: it, or a weight, is too large or not finite")
    return encoded


def window_dtype(model: M3DT) -> torch.dtype:
    """Of windows and prompts as the model takes them: float64 where its parameters are, else float32."""
    return torch.promote_types(next(model.parameters()).dtype, torch.float32)


def _rows(window: Window, at: Tensor) -> Window:
    """The windows at the indices (n,)."""
    fields = (window.states, window.actions, window.returns_to_go, window.timesteps, window.mask)
    return Window(*(field[at] for field in fields))


def _cut(window: Window, config: ModelConfig) -> Window:
    """Windows of a wider or longer model as one of this shape takes them; what is cut off is padding."""
    states, actions = window.states[..., : config.state_dim], window.actions[..., : config.act_dim]
    return Window(
        states.contiguous(),
        actions.contiguous(),
        window.returns_to_go,
        window.timesteps.clamp(max=config.max_timesteps - 1),
        window.mask,
    )
