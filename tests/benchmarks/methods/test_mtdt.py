"""MTDT: a task's number in the state token, and nothing of a prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from contracts import AgentContract, random_datasets
from torch import Tensor
from torch.nn import functional

from benchmarks.methods import Work, method
from benchmarks.methods.mtdt import TaskDT, task_numbers
from m3dt_agent.agent import M3DTAgent
from m3dt_agent.config import ModelConfig
from m3dt_agent.data.batches import Window
from m3dt_agent.data.prompts import prompt_window
from m3dt_agent.data.stats import compute_statistics
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import ConfigError, ShapeError

NAMES = ("reach", "walker-run", "ant-dir-3")
CONFIG = ModelConfig(16, 2, 2, n_experts=0, context_length=4, prompt_length=1, max_timesteps=15)
B, T = 5, 4


def random_model(config: ModelConfig = CONFIG, n_tasks: int = 3) -> TaskDT:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TaskDT(config, n_tasks).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


@pytest.fixture
def model() -> TaskDT:
    return random_model().double()


@pytest.fixture
def window() -> Window:
    """Rows with 4, 1, 2, 3, 4 real steps."""
    rng = torch.Generator().manual_seed(1)
    draw = partial(torch.randn, generator=rng, dtype=torch.float64)
    mask = torch.arange(T) >= T - torch.tensor([4, 1, 2, 3, 4])[:, None]
    times = torch.arange(T).expand(B, T) * mask
    return Window(draw(B, T, 39) * mask[..., None], draw(B, T, 8) * mask[..., None], draw(B, T, 1), times, mask)


def numbered(numbers: list[int]) -> Window:
    """Prompts that say nothing but these numbers."""
    n = len(numbers)
    zeros = partial(torch.zeros, dtype=torch.float64)
    mask = torch.ones(n, 1, dtype=torch.bool)
    return Window(zeros(n, 1, 39), zeros(n, 1, 8), zeros(n, 1, 1), torch.tensor(numbers)[:, None], mask)


def slow_last_action(model: TaskDT, window: Window, row: int, task: int) -> Tensor:
    """The last action of one row: its real tokens one by one, attention as sums over what came before."""
    embed, D, H = model.embed, CONFIG.embed_dim, CONFIG.n_heads
    xs = []
    for t in range(T):
        if window.mask[row, t]:
            time = embed.timestep.weight[window.timesteps[row, t]]
            state = torch.cat([window.states[row, t], model.task.weight[task]])
            xs += [embed.return_to_go(window.returns_to_go[row, t]) + time, embed.state(state) + time]
            xs += [embed.action(window.actions[row, t]) + time]
    xs = [model.embed_norm(x) for x in xs[:-1]]
    for block in model.blocks:
        attention, normed, new = block.attention, [block.ln_1(x) for x in xs], []
        for i, x in enumerate(xs):
            heads = []
            for h in range(H):
                of = slice(h * D // H, (h + 1) * D // H)
                q = attention.query(normed[i])[of]
                pairs = [attention.key_value(earlier) for earlier in normed[: i + 1]]
                scores = torch.stack([q @ kv[:D][of] / (D // H) ** 0.5 for kv in pairs]).softmax(0)
                heads.append(sum(score * kv[D:][of] for score, kv in zip(scores, pairs, strict=True)))
            y = x + attention.out(torch.cat(heads))
            new.append(y + block.ffn.w_out(functional.relu(block.ffn.w_in(block.ln_2(y)))))
        xs = new
    return model.predict_action(model.final_norm(xs[-1])).tanh()


def test_actions_are_those_of_a_slow_oracle(model: TaskDT, window: Window) -> None:
    numbers = [0, 1, 2, 0, 1]
    actions = model(window, numbered(numbers))
    assert actions.shape == (B, T, 8)
    for row, number in enumerate(numbers):
        torch.testing.assert_close(actions[row, -1], slow_last_action(model, window, row, number))


def test_acting_is_the_last_action_of_forward_slot_by_slot(model: TaskDT, window: Window) -> None:
    numbers = [2, 1, 0, 2, 1]
    expected = model(window, numbered(numbers))[:, -1]
    cache = model.encode_prompt(numbered([0, 1, 2])).select(numbers)
    torch.testing.assert_close(model.act(window, cache), expected)
    for row in range(B):
        alone = Window(*(getattr(window, field.name)[[row]] for field in dataclasses.fields(window)))
        torch.testing.assert_close(model.act(alone, cache.select([row]))[0], expected[row])
    other = cache.update([0], model.encode_prompt(numbered([1])))
    torch.testing.assert_close(model.act(window, other)[0], model(window, numbered([1, *numbers[1:]]))[0, -1])


def test_the_number_decides_and_numbers_have_no_order(model: TaskDT, window: Window) -> None:
    actions = [model(window, numbered([number] * B))[:, -1] for number in range(3)]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert ((actions[a] - actions[b]).abs().amax(dim=1) > 1e-3).all()
    renamed = [2, 0, 1]  # task i is now called renamed[i]
    with torch.no_grad():
        model.task.weight[renamed] = model.task.weight.clone()
    for number, before in enumerate(actions):
        assert torch.equal(model(window, numbered([renamed[number]] * B))[:, -1], before)


def test_nothing_else_of_a_prompt_is_read(model: TaskDT, window: Window) -> None:
    plain = numbered([0, 1, 2, 1, 0])
    noise = {name: torch.randn_like(getattr(plain, name)) for name in ("states", "actions", "returns_to_go")}
    for prompt in (dataclasses.replace(plain, **noise), dataclasses.replace(plain, mask=~plain.mask)):
        assert torch.equal(model(window, prompt), model(window, plain))
        assert torch.equal(model.act(window, model.encode_prompt(prompt)), model.act(window, model.encode_prompt(plain)))
    assert not any("prompt" in name for name, _ in model.named_parameters())


def test_what_does_not_fit_is_refused(model: TaskDT, window: Window) -> None:
    with pytest.raises(ShapeError, match="window has 5 rows, but there are 2 prompts"):
        model(window, numbered([0, 1]))
    with pytest.raises(ShapeError, match="window has 5 rows, but there are 2 prompts"):
        model.act(window, model.encode_prompt(numbered([0, 1])))
    with pytest.raises(ConfigError, match="no experts"):
        model(window, numbered([0] * B), "mixture")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TaskDatasets:
    return random_datasets(tmp_path_factory.mktemp("datasets"), NAMES)


class TestAgent(AgentContract):
    @pytest.fixture
    def agent(self, data: TaskDatasets) -> M3DTAgent:
        return M3DTAgent.from_model(random_model(), data.tasks, compute_statistics(data), task_numbers(data.tasks))


def test_prompts_are_the_tasks_numbers(make_work: Callable[..., Work]) -> None:
    work = make_work("mtdt")
    numbers, statistics = task_numbers(work.data.tasks), work.statistics()
    names = [task.name for task in work.data.tasks]
    prompts = prompt_window([numbers[name][0] for name in names], [statistics[name] for name in names], CONFIG)
    assert prompts.timesteps.tolist() == [[0], [1], [2]]


@pytest.mark.parametrize("changes", [{}, {"precision": "float64", "tasks_per_batch": 1}], ids=["mixed", "float64"])
def test_training_ends_the_same_with_a_stop_on_the_way(make_work: Callable[..., Work], changes: dict[str, Any]) -> None:
    trained = method("mtdt")
    straight = trained.train(make_work("mtdt", folder="straight", **changes), "1.00")
    early = trained.train(make_work("mtdt", folder="stopped", **changes), "0.75")
    stopped = trained.train(make_work("mtdt", folder="stopped", **changes), "1.00")
    weights = [dict(outcome.policy.model.named_parameters()) for outcome in (straight, stopped, early)]
    moved = 0
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name]), name
        moved += not torch.equal(weight, weights[2][name])
    assert moved == len(weights[0])
    assert (straight.windows, early.windows) == (6 * 6, 5 * 6)
    assert straight.parameters == straight.active_parameters == sum(weight.numel() for weight in weights[0].values())
    assert straight.training_flop > straight.action_flop > 0
    agent = straight.policy
    agent.reset(task=[task.name for task in agent.tasks])
    assert agent.act(torch.zeros(3, 39).numpy()).shape == (3, 8)
