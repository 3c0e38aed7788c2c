"""What `act` promises: finite actions in [-1, 1] or an error that names the slot, after which the agent is as it was before."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from acting_banks import CONFIG, NAMES
from contracts import observations, random_bank
from hypothesis import given, settings
from hypothesis import strategies as st
from pretend_gpu import GPU, pretended_gpu

from m3dt_agent.agent import M3DTAgent
from m3dt_agent.bank import ExpertBank
from m3dt_agent.config import DataConfig
from m3dt_agent.data.limits import LARGEST_RETURN, LARGEST_VALUE, SMALLEST_SCALE
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import BankError, InvalidValueError, ShapeError
from m3dt_agent.model import Routing

TASK = "walker-run"


@pytest.fixture(autouse=True)
def _warnings_are_errors() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


@pytest.fixture(scope="module")
def unclipped(tmp_path_factory: pytest.TempPathFactory, data: TaskDatasets) -> ExpertBank:
    """Its statistics do not clip states, as published."""
    published = dataclasses.replace(data, config=DataConfig.preset("paper"))
    return random_bank(tmp_path_factory.mktemp("unclipped"), published, CONFIG)


# -- files of a bank with valid hashes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
@pytest.mark.parametrize("file", ["backbone.safetensors", "experts/001.safetensors", "router.safetensors"])
def test_a_bank_with_weights_that_are_not_finite_is_not_loaded(
    bank: ExpertBank, tmp_path: Path, file: str, storage: Any, bad: float
) -> None:
    copy = bank.copy_to(tmp_path / "bank", storage=storage)
    tensors = copy.read(file)
    name = sorted(tensors)[-1]
    tensors[name].view(-1)[-1] = bad
    copy.commit({file: tensors})
    with pytest.raises(BankError, match=rf"{file} does not fit this bank's model: .*{name} holds NaN or infinity"):
        M3DTAgent.load(copy.path)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("field", ["states", "actions", "returns_to_go"])
def test_a_bank_with_prompts_that_are_not_finite_is_not_loaded(
    bank: ExpertBank, tmp_path: Path, field: str, bad: float
) -> None:
    copy = bank.copy_to(tmp_path / "bank")
    tensors = copy.read("prompts.safetensors")
    tensors[f"{TASK}/0/{field}"].view(-1)[0] = bad
    copy.commit({"prompts.safetensors": tensors})
    with pytest.raises(BankError, match=r"prompts\.safetensors"):
        M3DTAgent.load(copy.path)


def test_finite_weights_whose_sum_is_not_are_loaded(bank: ExpertBank, tmp_path: Path) -> None:
    copy = bank.copy_to(tmp_path / "bank")
    tensors = copy.read("backbone.safetensors")
    tensors["predict_action.bias"][:] = 3e38
    copy.commit({"backbone.safetensors": tensors})
    agent = M3DTAgent.load(copy.path)
    agent.reset(task=TASK)
    assert (agent.act(np.zeros(24)) == 1.0).all()


# -- what the model is given ---------------------------------------------------------------------------------------------------


def spoil_weights(agent: M3DTAgent) -> None:
    with torch.no_grad():
        agent.model.predict_action.bias[2] = np.nan


def test_weights_that_become_nan_later_give_an_error_and_no_nan(agent: M3DTAgent) -> None:
    agent.reset(task=TASK)
    spoil_weights(agent)
    with pytest.raises(InvalidValueError, match="the action of slot 0, dimension 2 is nan; the model's weights"):
        agent.act(np.zeros(24))


Call = dict[str, Any]
HUGE: dict[str, tuple[Call, str]] = {
    "an observation of 3e38": ({"obs": 3e38}, r"the action of slot 1, dimension 0 is nan"),
    "an observation of 1e300": ({"obs": 1e300}, r"observation of slot 1, dimension 0 is inf"),
    "an observation that is nan": ({"obs": np.nan}, r"observation of slot 1, dimension 0 is nan"),
    "a reward of 1e38": ({"reward": 1e38}, r"the action of slot 1, dimension 0 is nan"),
    "a reward of 1e300": ({"reward": 1e300}, r"the return-to-go of slot 1 is -inf after this reward"),
    "a reward of -1.7e308": ({"reward": -1.7e308}, r"the return-to-go of slot 1 is inf after this reward"),
    "a reward that is infinite": ({"reward": np.inf}, r"reward of slot 1 is inf"),
}


@pytest.mark.parametrize("experts", ["none", "mixture", 1, Routing(mass=0.9)], ids=str)
@pytest.mark.parametrize("case", HUGE, ids=str)
def test_one_bad_slot_is_named_and_changes_nothing(unclipped: ExpertBank, case: str, experts: Any) -> None:
    changes, message = HUGE[case]
    agent, undisturbed = (M3DTAgent.load(unclipped.path) for _ in range(2))
    for one in (agent, undisturbed):
        one.experts = experts
        one.reset(task=[TASK, TASK, TASK])
    rng = np.random.default_rng(0)
    for step in range(CONFIG.context_length + 2):
        obs, reward = rng.normal(size=(3, 39)).astype(np.float32), rng.normal(size=3)
        bad_obs, bad_reward = obs.astype(np.float64), reward.copy()
        bad_obs[1, 0], bad_reward[1] = changes.get("obs", obs[1, 0]), changes.get("reward", reward[1])
        if step or "obs" in changes:  # the first reward of an episode is ignored
            with pytest.raises(InvalidValueError, match=message):
                agent.act(bad_obs, reward=bad_reward)
            rest = np.array([True, False, True])
            expected = undisturbed.act(obs, reward=reward, active=rest)
            np.testing.assert_array_equal(agent.act(bad_obs, reward=bad_reward, active=rest), expected)
        else:
            np.testing.assert_array_equal(agent.act(obs, reward=reward), undisturbed.act(obs, reward=reward))


@pytest.mark.parametrize("target", [1e308, -1e308, 1e42])
def test_a_target_return_that_does_not_fit_is_refused_at_reset(agent: M3DTAgent, target: float) -> None:
    with pytest.raises(InvalidValueError, match="too large for the model"):
        agent.reset(task=TASK, target_return=target)
    prompt, statistics = agent.prompts[TASK][0], agent.statistics[TASK]
    with pytest.raises(InvalidValueError, match="of an unseen task is too large for the model"):
        agent.reset(prompt=prompt, statistics=statistics, target_return=target)


def test_rewards_that_add_up_beyond_float32_are_refused_when_they_do(agent: M3DTAgent) -> None:
    agent.experts = "none"
    agent.reset(task=TASK)
    agent.act(np.zeros(24))
    reward = 1e38 * agent.statistics[TASK].return_scale
    for _ in range(3):
        assert np.isfinite(agent.act(np.zeros(24), reward=reward / 1e25)).all()
    for _ in range(5):
        with pytest.raises(InvalidValueError, match=r"the return-to-go of slot 0 is -inf after this reward"):
            agent.act(np.zeros(24), reward=reward * 1e3)


def test_a_prompt_of_which_the_model_makes_no_finite_numbers_is_refused_at_reset(unclipped: ExpertBank) -> None:
    agent = M3DTAgent.load(unclipped.path)
    prompt, statistics = agent.prompts[TASK][0], agent.statistics[TASK]
    states, to_go = np.full_like(prompt.states, LARGEST_VALUE), np.full_like(prompt.returns_to_go, LARGEST_RETURN)
    large = dataclasses.replace(prompt, states=states, returns_to_go=to_go)
    std = np.full_like(statistics.std, SMALLEST_SCALE)
    narrow = dataclasses.replace(statistics, std=std, return_scale=SMALLEST_SCALE, target_return=LARGEST_RETURN)
    with pytest.raises(InvalidValueError, match="cannot read the prompt of an unseen task"):
        agent.reset(prompt=large, statistics=narrow)
    agent.reset(prompt=large, statistics=dataclasses.replace(narrow, state_clip=10.0, return_scale=1.0))
    assert np.isfinite(agent.act(np.zeros(24))).all()


@pytest.mark.parametrize("mode", ["rewards", "constant"])
def test_a_reward_of_another_kind_is_refused_in_either_mode(agent: M3DTAgent, mode: Any) -> None:
    agent.reset(task=TASK, rtg_mode=mode)
    for wrong in ("a lot", [None], [1.0, 2.0]):
        with pytest.raises(ShapeError, match="reward must"):
            agent.act(np.zeros(24), reward=wrong)  # type: ignore[arg-type]
    if mode == "constant":
        agent.act(np.zeros(24))
        agent.act(np.zeros(24), reward=np.nan)  # ignored


@pytest.fixture(scope="module")
def pairs(bank: ExpertBank, unclipped: ExpertBank) -> dict[tuple[bool, bool], tuple[M3DTAgent, M3DTAgent]]:
    """(are states clipped, is it float64) → two equal agents."""
    found = {}
    for clipped, double in itertools.product([True, False], repeat=2):
        agent = M3DTAgent.load((bank if clipped else unclipped).path)
        if double:
            agent.model.double()
        found[clipped, double] = agent, agent.copy()
    return found


EXTREME = [0.0, 1.0, -1.0, 1e-45, 1e10, 1e30, 1e37, 3.4e38, -3.4e38, 1e39, 1e300, -1.7e308, np.inf, -np.inf, np.nan]
event = st.fixed_dictionaries(
    {
        "obs": st.lists(st.sampled_from(EXTREME), min_size=4, max_size=4),
        "reward": st.lists(st.sampled_from(EXTREME), min_size=2, max_size=2),
        "active": st.lists(st.booleans(), min_size=2, max_size=2),
        "start": st.lists(st.booleans(), min_size=2, max_size=2),
    }
)


@settings(max_examples=50, deadline=None)
@given(
    events=st.lists(event, min_size=1, max_size=8),
    experts=st.sampled_from(["none", "mixture", 0]),
    target=st.sampled_from(EXTREME),
    clipped=st.booleans(),
    double=st.booleans(),
)
def test_whatever_comes_act_gives_finite_actions_or_an_error_that_changes_nothing(
    pairs: dict[tuple[bool, bool], tuple[M3DTAgent, M3DTAgent]],
    events: list[dict[str, Any]],
    experts: Any,
    target: float,
    clipped: bool,
    double: bool,
) -> None:
    agent, undisturbed = pairs[clipped, double]
    for one in (agent, undisturbed):
        one.experts = experts
        one.reset(task=[TASK, "reach"])
    try:
        agent.reset(task=[TASK, "reach"], target_return=target)
        undisturbed.reset(task=[TASK, "reach"], target_return=target)
    except InvalidValueError:
        assert not np.isfinite(target) or abs(target) > 1e38
    messages: list[str] = []
    for one in events:
        obs = np.zeros((2, 39))
        obs[:, [0, 20]] = np.reshape(one["obs"], (2, 2))
        call = {"reward": np.array(one["reward"]), "active": np.array(one["active"]), "reset_mask": np.array(one["start"])}
        try:
            actions = agent.act(obs, **call)
        except InvalidValueError as error:
            messages.append(str(error))
            continue
        assert np.isfinite(actions).all()
        assert np.abs(actions).max() <= 1.0
        np.testing.assert_array_equal(actions, undisturbed.act(obs, **call))
    assert all("of slot " in message for message in messages)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_lower_precision_keeps_the_promise(bank: ExpertBank, precision: Any) -> None:
    agent = M3DTAgent.load(bank.path, precision=precision)
    agent.reset(task=NAMES[0])
    for obs in observations(agent.tasks[0], 4, 0):
        assert np.isfinite(agent.act(obs * np.float32(1e38), reward=1.0)).all()


def test_an_agent_of_a_model_of_ones_own_keeps_the_promise(bank: ExpertBank) -> None:
    model = bank.model()
    agent = M3DTAgent.from_model(model, bank.tasks, bank.statistics, bank.prompts)
    spoil_weights(agent)
    agent.reset(task=TASK)
    with pytest.raises(InvalidValueError, match="the action of slot 0"):
        agent.act(np.zeros(24))


@pytest.mark.parametrize("experts", ["mixture", Routing(mass=0.9)], ids=str)
def test_a_gpu_without_float64_acts_as_the_cpu_does(bank: ExpertBank, monkeypatch: pytest.MonkeyPatch, experts: Any) -> None:
    """A pretended one, that refuses every float64 number sent to it or made on it, as Apple's does."""
    monkeypatch.setattr("m3dt_agent.system.machine.usable_devices", lambda: ("cpu", str(GPU)))
    rng = np.random.default_rng(0)
    on_cpu = M3DTAgent.load(bank.path)
    with pretended_gpu():
        on_gpu = M3DTAgent.load(bank.path, device=GPU)
        for agent in (on_cpu, on_gpu):
            agent.experts = experts
            agent.reset(task=["reach", TASK, TASK])
        for step in range(CONFIG.context_length + 2):
            call = {"reward": rng.normal(size=3) * 30, "active": np.array([True, step % 2 == 0, True])}
            obs = rng.normal(size=(3, 39))
            np.testing.assert_array_equal(on_gpu.act(obs, **call), on_cpu.act(obs, **call))
        assert {parameter.device for parameter in on_gpu.model.parameters()} == {GPU}
        with pytest.raises(TypeError, match="no float64"):
            on_gpu.model.double()
