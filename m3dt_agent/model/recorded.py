"""One decision of a model as a recorded graph: the same operations, without the Python between them.

With few rows, Python takes several times as long as the operations do. `M3DT.act` is therefore recorded (`torch.jit.trace`),
once for each choice of experts, and replayed. The graph has the model's own parameters, so weights that change in place change
it too.

A recording knows nothing of what Python would decide anew. So it is made only of `M3DT` itself, whose `act` decides by shapes
alone, and not of a `Routing`, which chooses experts by what it sees. Where modules have hooks, `act` itself runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..data.windows import Window
from .prompt_cache import PromptCache
from .prompt_dt import M3DT, RECORDINGS, ExpertChoice

MOST_ROWS = 8
"""With more rows, the operations take so long that little is won."""
RECORD_AFTER = 100
"""Decisions after which the next reset records. Recording takes a tenth of a second or two; fewer do not win it back."""
_TRIALS = 3  # torch optimizes a graph in its first runs


class Recordings:
    """The recordings of one model. They are made at a reset, never during an episode, where a robot may be waiting."""

    def __init__(self) -> None:
        self._decisions = 0
        self._graphs: dict[Any, Callable[..., Tensor] | None] = {}  # None: it does not do what `act` does
        self._modules: tuple[nn.Module, ...] = ()

    def act(self, model: M3DT, window: Window, cache: PromptCache, experts: ExpertChoice) -> Tensor:
        """As `model.act`, from the recording if there is one."""
        graph = None
        if len(window.mask) <= MOST_ROWS and _is_recordable(model, cache, experts):
            self._decisions += 1
            graph = self._graphs.get(_key(window, cache, experts))
        if graph is None or any(one._forward_hooks or one._forward_pre_hooks for one in self._modules):
            return model.act(window, cache, experts)
        return graph(*_tensors(window, cache))

    @torch.inference_mode()
    def prepare(self, model: M3DT, cache: PromptCache, experts: ExpertChoice) -> None:
        """Records `act` with these experts, for prompts of this length. Before `RECORD_AFTER` decisions it does nothing."""
        if self._decisions < RECORD_AFTER or not _is_recordable(model, cache, experts):
            return
        two = cache.select([0, 0])  # rows of which there is one could be taken for a shape that never changes
        window = _any_window(model, 2, two.keys)
        key = _key(window, two, experts)
        if key not in self._graphs:
            self._modules = tuple(model.modules())
            self._graphs[key] = _recording(model, window, two, experts)


def recordings_of(model: M3DT) -> Recordings:
    """The recordings that belong to a model. Copies of it begin without any."""
    found: Recordings | None = model.__dict__.get(RECORDINGS)
    if found is None:
        found = model.__dict__[RECORDINGS] = Recordings()
    return found


class _Act(nn.Module):
    """`M3DT.act` of tensors alone, as tracing takes it."""

    def __init__(self, model: M3DT, experts: ExpertChoice) -> None:
        super().__init__()
        self.model, self.experts = model, experts

    def forward(self, *tensors: Tensor) -> Tensor:
        """`tensors` as `_tensors` gives them."""
        return self.model.act(Window(*tensors[:5]), PromptCache(*tensors[5:]), self.experts)


def _recording(model: M3DT, window: Window, cache: PromptCache, experts: ExpertChoice) -> Callable[..., Tensor] | None:
    """The recording, or None if it cannot be made or gives other actions than `act`, to the last bit."""
    given = _tensors(window, cache)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that tracing will go one day, and that shapes decide
            act = _Act(model, experts).eval()
            graph: Callable[..., Tensor] = torch.jit.trace(act, given, check_trace=False)  # type: ignore[no-untyped-call]
        found = [graph(*given) for _ in range(_TRIALS)]
    except (AttributeError, RuntimeError):  # a version of torch without tracing, or an operation that it cannot record
        return None
    return graph if torch.equal(found[-1], model.act(window, cache, experts)) else None


def _is_recordable(model: M3DT, cache: PromptCache, experts: ExpertChoice) -> bool:
    plain = type(model) is M3DT and isinstance(experts, str | int) and not model.training
    return plain and cache.keys.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def _key(window: Window, cache: PromptCache, experts: ExpertChoice) -> tuple[Any, ...]:
    return experts, window.states.shape[1:], window.actions.shape[1:], cache.keys.shape[2:], cache.keys.dtype


def _tensors(window: Window, cache: PromptCache) -> tuple[Tensor, ...]:
    return (
        *(window.states, window.actions, window.returns_to_go, window.timesteps, window.mask),
        *(cache.keys, cache.values, cache.mask),
    )


def _any_window(model: M3DT, rows: int, like: Tensor) -> Window:
    """Windows of as many steps as the model's context."""
    config, T = model.config, model.config.context_length
    numbers = torch.linspace(-1.0, 1.0, rows * T * config.state_dim, dtype=like.dtype)
    return Window(
        numbers.view(rows, T, config.state_dim),
        like.new_zeros(rows, T, config.act_dim),
        like.new_ones(rows, T, 1),
        torch.arange(T).expand(rows, T).contiguous(),
        torch.ones(rows, T, dtype=torch.bool),
    )
