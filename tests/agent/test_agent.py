"""The agent: its contract for several models, against a slow oracle, and from and to banks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from acting_banks import CONFIG, NAMES
from contracts import AgentContract, observations, play_alone, random_bank
from hypothesis import given, settings
from hypothesis import strategies as st

from m3dt_agent.agent import M3DTAgent
from m3dt_agent.bank import ExpertBank
from m3dt_agent.config import DataConfig, TrainConfig, train_preset
from m3dt_agent.data.prompts import Prompt, prompt_window
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import BankError, ConfigError, ShapeError, StageError, UnknownTaskError
from m3dt_agent.model import Routing


class TestMixture(AgentContract):
    @pytest.fixture
    def agent(self, bank: ExpertBank) -> M3DTAgent:
        agent = M3DTAgent.from_pretrained(bank.path)
        assert agent.experts == "mixture"
        return agent


class TestOneExpert(AgentContract):
    @pytest.fixture
    def agent(self, bank: ExpertBank) -> M3DTAgent:
        agent = M3DTAgent.from_pretrained(bank.path)
        agent.experts = 1
        return agent


class TestBackbone(AgentContract):
    @pytest.fixture
    def agent(self, backbone_bank: ExpertBank) -> M3DTAgent:
        agent = M3DTAgent.from_pretrained(backbone_bank.path)
        assert agent.experts == "none"
        return agent


class TestPublishedResidual(AgentContract):
    @pytest.fixture
    def agent(self, tmp_path: Path, data: TaskDatasets) -> M3DTAgent:
        config = dataclasses.replace(CONFIG, residual="published")
        return M3DTAgent.from_pretrained(random_bank(tmp_path, data, config).path)


class TestPublishedStatistics(AgentContract):
    """No clipping of states, published target returns."""

    @pytest.fixture
    def agent(self, tmp_path: Path, data: TaskDatasets) -> M3DTAgent:
        published = dataclasses.replace(data, config=DataConfig.preset("paper"))
        return M3DTAgent.from_pretrained(random_bank(tmp_path, published, CONFIG).path)


class TestDoublePrecision(AgentContract):
    @pytest.fixture
    def agent(self, bank: ExpertBank) -> M3DTAgent:
        agent = M3DTAgent.from_pretrained(bank.path)
        agent.model.double()
        return agent


class SlowAgent:
    """One slot, the long way: the episode in lists, a window from its tail at every step, `forward` without a cache."""

    def __init__(self, agent: M3DTAgent, name: str, use_rewards: bool) -> None:
        self.agent, self.use_rewards = agent, use_rewards
        self.statistics, self.prompt = agent.statistics[name], agent.prompts[name][0]
        self.act_dim = next(task.act_dim for task in agent.tasks if task.name == name)
        self.begin()

    def begin(self) -> None:
        self.observations: list[Any] = []
        self.actions: list[Any] = []
        self.targets = [self.statistics.target_return]

    def act(self, obs: Any, reward: float | None) -> Any:
        if self.observations:
            self.targets.append(self.targets[-1] - (reward if reward is not None and self.use_rewards else 0.0))
        self.observations.append(obs)
        config = self.agent.config
        first = max(0, len(self.observations) - config.context_length)
        kept = range(first, len(self.observations))
        row = Prompt(  # a window is made like a prompt, except for its length and the unknown last action
            states=np.stack([self.observations[t] for t in kept]),
            actions=np.stack([*(self.actions[t] for t in kept[:-1]), np.zeros(self.act_dim, np.float32)]),
            returns_to_go=np.array([self.targets[t] for t in kept], np.float32),
            timesteps=np.array([min(t, config.max_timesteps - 1) for t in kept]),
        )
        window = prompt_window([row], [self.statistics], dataclasses.replace(config, prompt_length=config.context_length))
        prompt = prompt_window([self.prompt], [self.statistics], config)
        with torch.no_grad():
            action = self.agent.model(window, prompt, self.agent.experts)[0, -1, : self.act_dim].numpy()
        self.actions.append(action)
        return action


slot_event = st.fixed_dictionaries({"start": st.booleans(), "active": st.sampled_from([True, True, True, False])})


@settings(max_examples=25, deadline=None)
@given(
    events=st.lists(st.lists(slot_event, min_size=3, max_size=3), min_size=1, max_size=22),
    seed=st.integers(0, 2**31),
    experts=st.sampled_from(["mixture", "none", 2]),
    rtg_mode=st.sampled_from(["rewards", "constant"]),
    with_rewards=st.booleans(),
)
def test_act_equals_the_slow_way(
    bank: ExpertBank, events: list[list[dict[str, bool]]], seed: int, experts: Any, rtg_mode: Any, with_rewards: bool
) -> None:
    """Over the context length, over max_timesteps, with episodes opening and slots pausing at any time."""
    agent = M3DTAgent.from_pretrained(bank.path)
    agent.experts = experts
    names = [NAMES[0], NAMES[2], NAMES[0]]
    slow = [SlowAgent(agent, name, rtg_mode == "rewards") for name in names]
    opening = [False] * len(names)
    agent.reset(task=names, rtg_mode=rtg_mode)
    rng = np.random.default_rng(seed)
    for row in events:
        obs, reward = rng.normal(size=(3, 39)).astype(np.float32), rng.normal(size=3) * 30
        active, starts = np.array([e["active"] for e in row]), np.array([e["start"] for e in row])
        actions = agent.act(obs, reward=reward if with_rewards else None, reset_mask=starts, active=active)
        for i, one in enumerate(slow):
            opening[i] |= bool(starts[i])
            if not active[i]:
                continue
            if opening[i]:
                one.begin()
                opening[i] = False
            expected = one.act(obs[i, : len(one.statistics.mean)], float(reward[i]) if with_rewards else None)
            np.testing.assert_allclose(actions[i, : one.act_dim], expected, rtol=0, atol=1e-5)


def test_an_episode_longer_than_the_timestep_table_goes_on_with_its_last_entry(bank: ExpertBank) -> None:
    agent = M3DTAgent.from_pretrained(bank.path)
    task = agent.tasks[1]
    slow = SlowAgent(agent, task.name, use_rewards=True)
    obs = observations(task, CONFIG.max_timesteps + 6, 0)
    actions = play_alone(agent, task, obs, np.full(len(obs), 3.0))
    expected = [slow.act(o, 3.0) for o in obs]
    np.testing.assert_allclose(actions, expected, rtol=0, atol=1e-5)


def test_states_are_clipped_as_the_statistics_say(bank: ExpertBank) -> None:
    agent = M3DTAgent.from_pretrained(bank.path)
    task = agent.tasks[1]
    statistics = agent.statistics[task.name]
    assert statistics.state_clip == 10.0
    actions = []
    for deviations in (9.0, 10.0, 11.0, 1e6):
        agent.reset(task=task.name)
        actions.append(agent.act(statistics.mean + deviations * statistics.std))
    np.testing.assert_allclose(actions[1], actions[2], rtol=0, atol=1e-6)
    np.testing.assert_allclose(actions[1], actions[3], rtol=0, atol=1e-6)
    assert np.abs(actions[0] - actions[1]).max() > 1e-5


def test_experts_choose_what_acts_even_within_an_episode(bank: ExpertBank) -> None:
    agent = M3DTAgent.from_pretrained(bank.path)
    task = agent.tasks[0]
    obs = observations(task, 2, 0)
    first: dict[Any, Any] = {}
    for experts in ("mixture", "none", 0, 1, 2):
        agent.experts = experts  # type: ignore[assignment]
        first[experts] = play_alone(agent, task, obs, np.ones(2))[0]
    agent.reset(task=task.name)
    agent.experts = "none"
    np.testing.assert_array_equal(agent.act(obs[0]), first["none"])
    assert len({actions.tobytes() for actions in first.values()}) == len(first)
    for wrong in ("all", 3, -1, True):
        with pytest.raises(ConfigError, match="'none', 'mixture', 0, 1, 2, a Routing"):
            agent.experts = wrong  # type: ignore[assignment]


def test_a_routed_agent_uses_the_heaviest_experts_and_says_how_many(bank: ExpertBank) -> None:
    agent, task = M3DTAgent.from_pretrained(bank.path), "walker-run"
    agent.model.double()
    obs = np.random.default_rng(0).normal(size=(9, 5, 24)).astype(np.float32)

    def play(experts: Any) -> list[Any]:
        agent.experts = experts
        agent.reset(task=task)
        return [agent.act(one) for one in obs]

    dense = play("mixture")
    with pytest.raises(StageError, match="no pass was routed"):
        agent.routing_usage()
    for ours, theirs in zip(play(Routing()), dense, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert (agent.routing_usage().kept == CONFIG.n_experts).all()
    routed = play(Routing(max_experts=1))
    usage = agent.routing_usage()
    assert usage.kept.shape == (CONFIG.n_layers, 5)
    assert (usage.kept == 1).all()
    assert ((usage.dropped > 0) & (usage.dropped <= 1 - 1 / CONFIG.n_experts + 1e-6)).all()
    assert max(np.abs(a - b).max() for a, b in zip(routed, dense, strict=True)) > 1e-4
    agent.reset(task=task)
    alone = [agent.act(one[2]) for one in obs]
    np.testing.assert_allclose(alone, [actions[2] for actions in routed], atol=1e-6)


def test_a_backbone_cannot_be_routed(backbone_bank: ExpertBank) -> None:
    with pytest.raises(ConfigError, match=r"must be one of 'none' for this bank; got Routing"):
        M3DTAgent.from_pretrained(backbone_bank.path).experts = Routing(max_experts=1)


def test_bfloat16_acts_nearly_as_float32_and_trains_as_ever(bank: ExpertBank, data: TaskDatasets, tmp_path: Path) -> None:
    full, lower = (M3DTAgent.load(bank.path, precision=precision) for precision in ("float32", "bfloat16"))
    obs = np.random.default_rng(1).normal(size=(6, 24)).astype(np.float32)
    for agent in (full, lower):
        agent.reset(task="walker-run")
    pairs = [(full.act(one), lower.act(one)) for one in obs]
    assert all(b.dtype == np.float32 for _, b in pairs)
    largest = max(float(np.abs(a - b).max()) for a, b in pairs)
    assert 0 < largest < 0.2  # this model's weights are ten times as large as trained ones
    lower.save(tmp_path / "copy")
    assert ExpertBank.open(tmp_path / "copy").content_hash == bank.content_hash  # what it acts with is not what it saves
    assert M3DTAgent.load(bank.path, precision="auto").precision in ("float32", "bfloat16")
    with pytest.raises(ConfigError, match="precision must be 'float32', 'bfloat16' or 'auto'; got 'int8'"):
        M3DTAgent.load(bank.path, precision="int8")  # type: ignore[arg-type]


def test_a_bank_without_router_acts_with_its_backbone(backbone_bank: ExpertBank) -> None:
    agent = M3DTAgent.from_pretrained(backbone_bank.path)
    with pytest.raises(ConfigError, match="'none' for this bank"):
        agent.experts = "mixture"
    with pytest.raises(ConfigError, match="'none' for this bank"):
        agent.experts = 0


def test_save_and_load_give_the_same_actions(bank: ExpertBank, tmp_path: Path) -> None:
    agent = M3DTAgent.from_pretrained(bank.path)
    agent.save(tmp_path / "copy")
    copy = M3DTAgent.load(tmp_path / "copy")
    assert copy.content_hash == agent.content_hash == bank.content_hash
    for task in agent.tasks:
        obs, rewards = observations(task, 8, 0), np.ones(8)
        np.testing.assert_array_equal(play_alone(agent, task, obs, rewards), play_alone(copy, task, obs, rewards))
    with pytest.raises(BankError, match="not an empty folder"):
        agent.save(tmp_path / "copy")


def test_from_pretrained_says_what_it_cannot_load(bank: ExpertBank, tmp_path: Path) -> None:
    with pytest.raises(BankError, match="neither a folder nor an id on the Hub"):
        M3DTAgent.from_pretrained("./org/m3dt-mt160")
    with pytest.raises(ConfigError, match="no revisions"):
        M3DTAgent.from_pretrained(bank.path, revision="stage-router")
    with pytest.raises(BankError):
        M3DTAgent.from_pretrained(tmp_path)
    damaged = bank.copy_to(tmp_path / "damaged").path / "backbone.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(BankError, match=r"backbone\.safetensors"):
        M3DTAgent.from_pretrained(damaged.parent)


def test_an_untrained_agent_says_what_is_missing(bank: ExpertBank, tmp_path: Path) -> None:
    agent = M3DTAgent(CONFIG, NAMES)
    with pytest.raises(StageError, match="act before reset"):
        agent.act(np.zeros(39, np.float32))
    with pytest.raises(StageError, match="knows no task yet"):
        agent.reset(task="reach")
    with pytest.raises(StageError, match="there is nothing to save yet"):
        agent.save(tmp_path / "bank")
    assert not (tmp_path / "bank").exists()
    assert agent.content_hash == ""
    agent.reset(prompt=bank.prompts["reach"][0], statistics=bank.statistics["reach"])
    assert agent.act(np.zeros(39, np.float32)).shape == (4,)


def test_a_prompt_that_is_too_long_is_refused(bank: ExpertBank) -> None:
    agent = M3DTAgent.from_pretrained(bank.path)
    steps = CONFIG.prompt_length + 1
    prompt = Prompt(
        np.zeros((steps, 39), np.float32), np.zeros((steps, 4), np.float32), np.zeros(steps, np.float32), np.arange(steps)
    )
    with pytest.raises(ShapeError, match=f"prompt_length={CONFIG.prompt_length}"):
        agent.reset(prompt=prompt, statistics=bank.statistics["reach"])


def test_a_failed_reset_leaves_the_agent_as_it_was(bank: ExpertBank) -> None:
    agent = M3DTAgent.from_pretrained(bank.path)
    task = agent.tasks[0]
    obs = observations(task, 4, 0)
    expected = play_alone(agent, task, obs, np.ones(4))
    agent.reset(task=task.name)
    for t, o in enumerate(obs):
        with pytest.raises(ConfigError):
            agent.reset(task=[])
        np.testing.assert_array_equal(agent.act(o, reward=1.0 if t else None), expected[t])


def quick(stage: str, **changes: Any) -> TrainConfig:
    return train_preset(
        "tiny", stage, **{"steps": 4, "checkpoint_every": 4, "log_every": 2, "warmup_steps": 1, "threads": 1, **changes}
    )


def test_three_stages_make_an_agent(data: TaskDatasets, tmp_path: Path) -> None:
    agent, bank = M3DTAgent(dataclasses.replace(CONFIG, n_experts=2), NAMES), tmp_path / "bank"
    logged: list[int] = []
    agent.fit_stage(
        1, data, bank=bank, config=quick("backbone"), progress=False, on_log=lambda record: logged.append(record.step)
    )
    assert agent.experts == "none"
    assert logged[-1] == 4
    groups = agent.group_tasks(data, bank=bank, config=quick("experts", grouping="random"))  # type: ignore[arg-type]
    assert set(groups) == set(NAMES)
    assert agent.bank is not None
    assert agent.bank.groups == groups
    agent.fit_stage("experts", data, bank=bank, config=quick("experts", grouping="random"), progress=False)
    assert agent.experts == "none"
    agent.experts = 1
    agent.fit_stage("router", data, bank=agent.bank, config=quick("router"), progress=False)
    assert agent.experts == "mixture"
    fresh, task = M3DTAgent.from_pretrained(bank), agent.tasks[0]
    obs, rewards = observations(task, 8, 0), np.ones(8)
    np.testing.assert_array_equal(play_alone(fresh, task, obs, rewards), play_alone(agent, task, obs, rewards))


def test_a_bank_is_continued_under_another_path(data: TaskDatasets, tmp_path: Path) -> None:
    agent = M3DTAgent(dataclasses.replace(CONFIG, n_experts=2), NAMES)
    agent.fit_stage("backbone", data, bank=tmp_path / "first", config=quick("backbone"), progress=False)
    before = agent.content_hash
    agent.fit_stage("experts", data, bank=tmp_path / "second", config=quick("experts", grouping="random"), progress=False)
    assert ExpertBank.open(tmp_path / "first").content_hash == before
    assert ExpertBank.open(tmp_path / "second").finished_experts == (0, 1)


@pytest.mark.parametrize("stage", ["experts", "router", 2, 3])
def test_a_stage_before_what_it_needs_leaves_nothing_behind(data: TaskDatasets, tmp_path: Path, stage: Any) -> None:
    with pytest.raises(StageError, match="no bank at"):
        M3DTAgent(CONFIG, NAMES).fit_stage(stage, data, bank=tmp_path / "bank", progress=False)
    assert not (tmp_path / "bank").exists()


def test_what_does_not_fit_together_is_refused(data: TaskDatasets, bank: ExpertBank, backbone_bank: ExpertBank) -> None:
    agent = M3DTAgent(CONFIG, NAMES)
    with pytest.raises(ConfigError, match="the datasets hold the tasks reach"):
        agent.fit_stage("backbone", data.subset(["reach"]), bank=bank.path)
    with pytest.raises(ConfigError, match="n_layers=3"):
        M3DTAgent(dataclasses.replace(CONFIG, n_layers=3), NAMES).fit_stage("backbone", data, bank=bank.path)
    with pytest.raises(StageError, match="builds on all experts"):
        agent.fit_stage("router", data, bank=backbone_bank.path, config=quick("router"), progress=False)
    with pytest.raises(UnknownTaskError, match="stage"):
        agent.fit_stage("gate", data, bank=bank.path)


def test_a_model_of_ones_own_comes_with_what_its_tasks_need(bank: ExpertBank) -> None:
    good: dict[str, Any] = {"tasks": bank.tasks, "statistics": bank.statistics, "prompts": bank.prompts}
    prompts, statistics = bank.prompts, bank.statistics
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (torch.nn.Linear(2, 2), {}, "model must be of type M3DT; got Linear"),
        (bank.config, {}, "model must be of type M3DT; got ModelConfig"),
        (bank.model(), {"statistics": list(statistics.values())}, "statistics must be of type Mapping; got list"),
        (bank.model(), {"prompts": {"reach": prompts["reach"]}}, "prompts must be those of the agent's tasks; they differ in"),
        (bank.model(), {"prompts": prompts | {"reach": ()}}, r"prompts\['reach'\] must be of type Prompt; got NoneType"),
        (bank.model(), {"prompts": prompts | {"reach": prompts["reach"][0]}}, r"prompts\['reach'\] must be of type Sequence"),
        (bank.model(), {"statistics": statistics | {"reach": None}}, r"statistics\['reach'\] must be of type TaskStatistics"),
        (bank.model(), {"experts": 1.0}, "experts must be one of"),
        (bank.model(), {"device": "gpu"}, "device must be one of cpu"),
    ]
    for model, changes, message in cases:
        with pytest.raises(ConfigError, match=message):
            M3DTAgent.from_model(model, **good | changes)


@pytest.mark.parametrize("load", [M3DTAgent.load, M3DTAgent.from_pretrained])
def test_a_device_and_a_precision_are_checked_before_anything_is_read(tmp_path: Path, load: Any) -> None:
    for device in ("gpu", "cuda:7", "", None):
        with pytest.raises(ConfigError, match="device must be one of cpu"):
            load(tmp_path / "nothing here", device=device)
    with pytest.raises(ConfigError, match="precision must be"):
        load(tmp_path / "nothing here", precision="int8")


@pytest.mark.parametrize("name", ["runs/bakn", "org/m3dt-mt160", "nothing"])
def test_load_looks_for_a_folder_and_uses_no_network(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def connect(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr("socket.socket.connect", connect)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BankError, match=name):
        M3DTAgent.load(name)
    assert list(tmp_path.iterdir()) == []


def test_a_bank_of_the_package_is_loaded_by_its_name() -> None:
    assert M3DTAgent.load("builtin:mt160").bank is not None
