"""A network of somebody else's: it sees the batches, the loop and the agent that every method has."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from method_runs import MakeWork, batch_of, equal, put_example_on_path, weights
from torch import Tensor, nn

from benchmarks.methods import METHODS, NetworkMethod, Work, base, method
from benchmarks.methods.mtdt import task_numbers
from benchmarks.methods.networks import NetworkModel
from m3dt_agent.agent import M3DTAgent
from m3dt_agent.config import ModelConfig
from m3dt_agent.data.batches import Window
from m3dt_agent.errors import ConfigError, ShapeError

CONFIG = ModelConfig(8, 1, 2, n_experts=0, context_length=4, prompt_length=1)
MLP = {"width": 16, "layers": 2}


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The method of examples/method_package, as if it was installed."""
    put_example_on_path(tmp_path / "site", monkeypatch)
    return "mlp-bc"


class Told(nn.Module):
    """Its action is the first number of the observation, plus the number of the task, plus a weight that is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ParameterDict({"router": nn.Parameter(torch.zeros(1))})  # names that M3DT has for parts of its own

    def forward(self, window: Window, tasks: Tensor) -> Tensor:
        told = window.states[..., :1] + tasks[:, None, None] + self.experts["router"]
        return told.expand(-1, -1, CONFIG.act_dim)


def test_the_example_is_an_mlp_of_observation_and_task(example: str, make_work: MakeWork) -> None:
    work = make_work(example, **MLP)
    outcome = method(example).train(work, "1.00")
    agent = outcome.policy
    assert isinstance(agent, M3DTAgent)
    given = dict(agent.model.named_parameters())
    matrices = [weight for name, weight in given.items() if name.endswith("weight")]
    assert [tuple(weight.shape) for weight in matrices] == [(16, 39 + 3), (16, 16), (8, 16)]
    assert outcome.parameters == outcome.active_parameters == 16 * 42 + 16 + 16 * 16 + 16 + 8 * 16 + 8
    observations = np.random.default_rng(0).normal(size=(3, 39)).astype(np.float32)
    agent.reset(task=[task.name for task in agent.tasks])
    for _ in range(3):  # it remembers nothing
        actions = agent.act(observations)
        for i, task in enumerate(agent.tasks):
            x = torch.zeros(42)
            x[: task.obs_dim] = torch.from_numpy(agent.statistics[task.name].normalize(observations[i, : task.obs_dim]))
            x[39 + i] = 1
            for name in ("0.0", "1.0"):
                x = (given[f"blocks.0.layers.{name}.weight"] @ x + given[f"blocks.0.layers.{name}.bias"]).relu()
            x = (given["blocks.0.layers.2.weight"] @ x + given["blocks.0.layers.2.bias"]).tanh()
            np.testing.assert_allclose(actions[i, : task.act_dim], x[: task.act_dim].detach(), atol=1e-6)
            assert not actions[i, task.act_dim :].any()


@pytest.mark.parametrize("changes", [{}, {"precision": "bfloat16", "tasks_per_batch": 1}], ids=["mixed", "bfloat16"])
def test_training_ends_the_same_with_a_stop_on_the_way(example: str, make_work: MakeWork, changes: dict[str, Any]) -> None:
    straight, early, stopped = (
        method(example).train(make_work(example, folder=folder, **MLP, **changes), fraction)
        for folder, fraction in (("straight", "1.00"), ("stopped", "0.75"), ("stopped", "1.00"))
    )
    assert equal(weights(straight), weights(stopped))
    assert not equal(weights(early), weights(stopped))
    assert (straight.windows, early.windows) == (6 * 6, 5 * 6)
    products = 16 * 42 + 16 * 16 + 8 * 16
    assert straight.action_flop == 2 * products * 4, "of the whole window of four steps"
    backward = 2 * products - 16 * 42  # nothing asks for the gradient of the observation
    assert straight.training_flop == 6 * (6 * 4) * 2 * (products + backward)
    assert straight.curve[-1][0] == 36


def test_it_sees_the_batches_of_every_method_and_the_loss_falls(example: str, make_work: MakeWork) -> None:
    work = make_work(example, **MLP, backbone_steps=60)
    outcome = method(example).train(work, "1.00")
    assert outcome.curve[-1][1] < outcome.curve[0][1]
    model = NetworkModel(work.model_config(n_experts=0, prompt_length=1), Told())
    config = work.train_config("backbone")
    numbers = task_numbers(work.data.tasks)
    batch, usual = base.run_sampler(work, model.config, config, numbers).sample(0), batch_of(work, work.model_config())
    for name in ("states", "actions", "returns_to_go", "mask"):
        assert torch.equal(getattr(batch.window, name), getattr(usual.window, name))
    told = batch.window.states[..., 0] + batch.tasks[:, None]
    torch.testing.assert_close(model(batch.window, batch.prompt)[..., 0], told)


def window(rows: int) -> Window:
    zeros = torch.zeros(rows, 4, 1)
    mask = torch.ones(rows, 4, dtype=torch.bool)
    states = torch.arange(float(rows * 4)).view(rows, 4, 1).expand(-1, -1, 39)
    return Window(states, torch.zeros(rows, 4, 8), zeros, torch.zeros(rows, 4, dtype=torch.int64), mask)


def numbered(numbers: list[int]) -> Window:
    n = len(numbers)
    mask = torch.ones(n, 1, dtype=torch.bool)
    return Window(torch.zeros(n, 1, 39), torch.zeros(n, 1, 8), torch.zeros(n, 1, 1), torch.tensor(numbers)[:, None], mask)


def test_acting_is_the_last_action_of_forward_slot_by_slot() -> None:
    model = NetworkModel(CONFIG, Told()).eval()
    numbers = [2, 159, 0]
    expected = model(window(3), numbered(numbers))
    cache = model.encode_prompt(numbered([0, 2, 159])).select([1, 2, 0])
    assert torch.equal(model.act(window(3), cache), expected[:, -1])
    assert torch.equal(expected[:, -1, 0], torch.tensor([3.0 + 2, 7 + 159, 11]))


def test_all_of_a_network_is_trained_whatever_its_parts_are_called() -> None:
    model = NetworkModel(CONFIG, Told())
    assert set(model.backbone_tensors()) == {"blocks.0.experts.router"}
    assert not model.expert_tensors()
    assert not model.router_tensors()
    assert sum(parameter.numel() for parameter in model.parameters()) == 1


def test_what_does_not_fit_is_refused() -> None:
    class Wrong(Told):
        def forward(self, window: Window, tasks: Tensor) -> Any:
            return super().forward(window, tasks)[:, -1] if len(tasks) == 3 else None

    model = NetworkModel(CONFIG, Wrong())
    with pytest.raises(ShapeError, match=r"actions of shape \(3, 4, 8\) for these windows; got \(3, 8\)"):
        model(window(3), numbered([0, 1, 2]))
    with pytest.raises(ShapeError, match="got NoneType"):
        model(window(2), numbered([0, 1]))
    with pytest.raises(ShapeError, match="window has 2 rows, but there are 3 prompts"):
        model(window(2), numbered([0, 1, 2]))
    with pytest.raises(ConfigError, match="no experts"):
        model(window(3), numbered([0, 1, 2]), "mixture")


def test_a_network_that_could_not_be_continued_is_refused(make_work: MakeWork) -> None:
    class Idle(Told):
        def __init__(self) -> None:
            super().__init__()
            self.idle = nn.Linear(1, 1)

    class Counting(Told):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("passes", torch.zeros(()))

        def forward(self, window: Window, tasks: Tensor) -> Tensor:
            self.passes += 1
            return super().forward(window, tasks)

    refused = ((Idle, r"no part in its actions: idle\.weight, idle\.bias"), (Counting, "that a pass changes.*: passes"))
    for network, named in refused:
        with pytest.raises(ConfigError, match=named):
            NetworkMethod(lambda work, network=network: network()).train(make_work("own"), "0.75")


def test_a_network_starts_from_the_seed_of_its_cell(make_work: MakeWork) -> None:
    starts: list[Tensor] = []

    def make(work: Work) -> nn.Module:
        starts.append(torch.rand(1))
        return Told()

    trained = NetworkMethod(make)
    for seed in (0, 0, 1):
        work = make_work("own", folder=f"{len(starts)}")
        trained.train(dataclasses.replace(work, cell=dataclasses.replace(work.cell, training_seed=seed)), "0.75")
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])
    assert "own" not in METHODS
