"""The last steps of every slot, against lists that are cut and padded by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from m3dt_agent.agent.conditions import Condition
from m3dt_agent.agent.history import History, Slots
from m3dt_agent.config import ModelConfig
from m3dt_agent.data.prompts import Prompt
from m3dt_agent.data.stats import TaskStatistics

CONFIG = ModelConfig(8, 1, 1, n_experts=0, context_length=3, prompt_length=1, max_timesteps=5, state_dim=3, act_dim=2)
CPU = torch.device("cpu")


def condition(obs_dim: int = 2, act_dim: int = 1, *, scale: float = 10.0, target: float = 50.0) -> Condition:
    mean, std = np.full(obs_dim, 1, np.float32), np.full(obs_dim, 2, np.float32)
    states, actions = np.zeros((1, obs_dim), np.float32), np.zeros((1, act_dim), np.float32)
    prompt = Prompt(states, actions, np.ones(1, np.float32), np.zeros(1, int))
    return Condition("a task", obs_dim, act_dim, prompt, TaskStatistics(mean, std, scale, target, 10.0), target)


class Slow:
    """One slot, in lists."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.states: list[list[float]] = []
        self.actions: list[list[float]] = []
        self.targets: list[float] = []

    def window(self, name: str) -> list[Any]:
        T, t = CONFIG.context_length, len(self.states)
        kept = range(max(0, t - T), t)
        rows: dict[str, list[Any]] = {
            "states": [self.states[i] for i in kept],
            "actions": [*(self.actions[i] for i in kept[:-1]), [0.0, 0.0]],
            "returns_to_go": [[self.targets[i]] for i in kept],
            "timesteps": [min(i, CONFIG.max_timesteps - 1) for i in kept],
            "mask": [True for _ in kept],
        }
        empty: dict[str, Any] = {
            "states": [0.0] * 3,
            "actions": [0.0] * 2,
            "returns_to_go": [0.0],
            "timesteps": 0,
            "mask": False,
        }
        return [empty[name]] * (T - len(kept)) + rows[name]


@pytest.mark.parametrize("all_act", [True, False])
def test_windows_are_the_last_steps_left_padded(all_act: bool) -> None:
    rng = np.random.default_rng(0)
    history, slow = History([condition(), condition(3, 2)], CONFIG, CPU, torch.float64), [Slow(), Slow()]
    opened = np.ones(2, bool)
    for _ in range(30):
        acting = np.ones(2, bool) if all_act else rng.random(2) < 0.6
        if not acting.any():
            continue
        starts = (rng.random(2) < 0.2) | opened
        obs, rewards = rng.normal(size=(2, 3)).astype(np.float32), rng.normal(size=2)
        obs[0, 2] = 0.0
        slots = Slots.of(acting, CPU)
        to_go = history.returns_to_go(slots, rewards[acting], starts[acting])
        with torch.inference_mode():
            step = history.observe(slots, obs[acting], to_go, starts[acting])
            taken = history.taken(slots, torch.from_numpy(rng.normal(size=(int(acting.sum()), 2)) * 2))
            for row, i in enumerate(np.flatnonzero(acting)):
                one = slow[i]
                if starts[i]:
                    one.begin()
                one.targets.append(5.0 if starts[i] else one.targets[-1] - rewards[i] / 10.0)
                width = 2 if i == 0 else 3
                one.states.append([*((obs[i, :width].astype(np.float64) - 1) / 2), *[0.0] * (3 - width)])
                for name in ("states", "actions", "returns_to_go", "timesteps", "mask"):
                    found = getattr(step.window, name)[row].tolist()
                    np.testing.assert_allclose(found, one.window(name), atol=1e-6, err_msg=name)
                one.actions.append(taken[row].tolist())
                assert np.abs(one.actions[-1]).max() <= 1.0
                assert i == 1 or one.actions[-1][1] == 0.0  # padding
            history.record(slots, step, taken)
        opened &= ~acting
        opened |= starts & ~acting


def test_a_step_that_is_not_recorded_leaves_no_trace() -> None:
    history = History([condition()], CONFIG, CPU, torch.float32)
    slots, start = Slots.of(np.ones(1, bool), CPU), np.zeros(1, bool)

    def observe(value: float, reward: float) -> Any:
        to_go = history.returns_to_go(slots, np.array([reward]), start)
        return history.observe(slots, np.full((1, 3), value, np.float32), to_go, start)

    with torch.inference_mode():
        history.record(slots, observe(1.0, 0.0), torch.ones(1, 2))
        before = observe(2.0, 3.0)
        observe(99.0, 1e300)
        after = observe(2.0, 3.0)
    for name in ("states", "actions", "returns_to_go", "timesteps", "mask"):
        assert torch.equal(getattr(before.window, name), getattr(after.window, name))
    assert before.returns_to_go.tolist() == after.returns_to_go.tolist() == [5.0 - 0.3]


def test_returns_to_go_are_summed_in_float64_whatever_the_model_computes_in() -> None:
    history = History([condition(scale=1.0, target=1e9)], CONFIG, CPU, torch.float32)
    slots, steps = Slots.of(np.ones(1, bool), CPU), 1000
    with torch.inference_mode():
        for _ in range(steps):
            to_go = history.returns_to_go(slots, np.array([1.0]), np.zeros(1, bool))
            step = history.observe(slots, np.zeros((1, 3), np.float32), to_go, np.zeros(1, bool))
            history.record(slots, step, torch.zeros(1, 2))
    assert to_go.tolist() == [1e9 - steps]  # in float32, 1e9 - 1 is 1e9
    assert step.window.returns_to_go.dtype == torch.float32


def test_an_overflow_is_infinite_without_a_warning() -> None:
    history = History([condition(scale=1e-3, target=0.0)], CONFIG, CPU, torch.float32)
    to_go = history.returns_to_go(Slots.of(np.ones(1, bool), CPU), np.array([1e308]), np.zeros(1, bool))
    assert to_go.tolist() == [-np.inf]
