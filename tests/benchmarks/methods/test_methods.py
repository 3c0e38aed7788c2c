"""What each method trains, sees and costs, and that kills change nothing; some families have files of their own."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from contracts import AgentContract, observations
from method_runs import MakeWork, batch_of, big_model, equal, sample_model, train, weights
from torch import Tensor

from benchmarks.methods import METHODS, Outcome, Work, method
from m3dt_agent.agent import M3DTAgent
from m3dt_agent.config import EvalConfig, ModelConfig
from m3dt_agent.data.batches import Window
from m3dt_agent.data.prompts import make_prompts
from m3dt_agent.data.stats import compute_statistics
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import M3DTError, UnknownTaskError
from m3dt_agent.evaluation import evaluate
from m3dt_agent.training.shares import Share
from m3dt_agent.training.trainer import Trainer

SPARSE = {"top_k": 1}  # of the two experts that the test's model has
STEPS = {  # of training, in terms of the three stages' 6, 4 (each of 2 experts) and 5
    "prompt-dt": 6,
    "prompt-bc": 6,
    "m3dt-random": 6 + 2 * 4 + 5,
    "m3dt-gradient": 6 + 2 * 4 + 5,
    "m3dt-published-residual": 6 + 2 * 4 + 5,
    "m3dt-oracle": 6 + 2 * 4,
    "m3dt-end-to-end": 6 + 4 + 5,
    "m3dt-no-grouping": 6 + 4 + 5,
    "m3dt-all-tasks": 6 + 2 * 4 + 5,
    "m3dt-random-unfrozen": 6 + 2 * 4 + 5,
    "m3dt-gradient-unfrozen": 6 + 2 * 4 + 5,
    "m3dt-top-k": 6 + 2 * 4 + 5,
    "m3dt-big-experts": 6 + 2 * 4 + 5,
    "m3dt-sample-router": 6 + 2 * 4 + 5,
}
ELSEWHERE = {
    "mtdt",
    "prompt-dt-wide",
    "harmo-dt",
    "harmo-dt-published",
    "bank-mixture",
    "bank-routed",
    "bank-oracle",
    "bank-backbone",
}


def numbers(outcome: Outcome) -> dict[str, Any]:
    return {f.name: getattr(outcome, f.name) for f in dataclasses.fields(outcome) if f.name != "policy"}


def test_every_method_has_its_steps_here() -> None:
    assert set(METHODS) == {*STEPS, *ELSEWHERE, "random", "zero", "behavior"}
    with pytest.raises(UnknownTaskError, match="m3dt-random"):
        method("m3dt-randm")


@pytest.mark.parametrize("name", STEPS)
def test_windows_are_those_that_training_saw(make_work: MakeWork, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    forward = Trainer._forward

    def counted(self: Trainer, share: Share) -> Tensor:
        seen.append(len(share.batch.tasks))
        return forward(self, share)

    monkeypatch.setattr(Trainer, "_forward", counted)
    outcome = train(make_work(name, **SPARSE))
    assert outcome.windows == sum(seen) == STEPS[name] * 6
    assert [x for x, _ in outcome.curve] == sorted({x for x, _ in outcome.curve})
    assert outcome.curve[-1][0] == outcome.windows
    assert np.isfinite([loss for _, loss in outcome.curve]).all()
    assert 0 < outcome.active_parameters <= outcome.parameters
    assert 0 < outcome.action_flop < outcome.training_flop
    if isinstance(outcome.policy, M3DTAgent):
        task = outcome.policy.tasks[0]
        outcome.policy.reset(task=task)
        assert np.abs(outcome.policy.act(observations(task, 1, 0)[0])).max() > 0


@pytest.mark.parametrize("name", ["prompt-bc", "m3dt-oracle", "m3dt-end-to-end", "m3dt-big-experts", "m3dt-sample-router"])
def test_what_a_method_trained_plays_episodes(make_work: MakeWork, name: str) -> None:
    outcome = train(make_work(name))
    rows = evaluate(outcome.policy, ["cheetah-vel-3", "cheetah-vel-30"], EvalConfig(episodes=1, slots=2, workers=0))
    assert [row.length for row in rows] == [200, 200]


KINDS = [
    "prompt-dt",
    "m3dt-big-experts",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("m3dt-end-to-end", "m3dt-all-tasks", "m3dt-gradient-unfrozen")),
]


@pytest.mark.parametrize("name", KINDS)
def test_killed_within_and_between_its_runs_it_ends_as_if_it_had_not_been(make_work: MakeWork, name: str) -> None:
    steps = {"backbone_steps": 52, "expert_steps": 52, "router_steps": 52, "joint_steps": 52}  # checkpoints after 50
    calls = 0

    def interrupt(_: object) -> None:
        nonlocal calls
        calls += 1
        if calls in (51, 60, 163):  # first run after its checkpoint; second before it; third after it
            raise KeyboardInterrupt

    kills, outcome = 0, None
    while outcome is None:
        try:
            outcome = train_from_anywhere(make_work(name, folder="killed", on_log=interrupt, **steps))
        except KeyboardInterrupt:
            kills += 1
    whole = train(make_work(name, folder="whole", **steps))
    assert kills == (1 if len(method(name).fractions) == 2 else 3)
    assert equal(weights(outcome), weights(whole))
    assert numbers(outcome) == numbers(whole)


def train_from_anywhere(work: Work) -> Outcome:
    """As the runner does: a fraction whose episodes are there is not gone back to; here the first one's are at once."""
    chosen = method(work.cell.method)
    for fraction in chosen.fractions[:-1]:
        if not (work.folder / fraction).exists():
            chosen.train(work, fraction)
            (work.folder / fraction).touch()
    return chosen.train(work, chosen.fractions[-1])


@pytest.mark.parametrize("name", ["prompt-dt", "m3dt-end-to-end"])
def test_a_model_that_was_trained_further_is_not_taken_for_an_earlier_one(make_work: MakeWork, name: str) -> None:
    work = make_work(name)
    earlier, final = (method(name).train(work, fraction) for fraction in ("0.75", "1.00"))
    assert earlier.windows < final.windows
    assert final.curve[: len(earlier.curve)] == earlier.curve
    with pytest.raises(M3DTError):
        method(name).train(work, "0.75")


def test_a_run_does_not_continue_on_other_data(make_work: MakeWork) -> None:
    work = make_work("m3dt-end-to-end")
    train(work)
    others = dataclasses.replace(work, data=work.data.subset(["cheetah-vel-3", "cheetah-vel-30"]))
    with pytest.raises(M3DTError, match="was started on"):
        train(others)


def cut(window: Window, steps: slice) -> Window:
    return Window(*(getattr(window, f.name)[:, steps] for f in dataclasses.fields(Window)))


@pytest.mark.parametrize("make_model", [big_model, sample_model])
def test_acting_is_the_last_prediction_and_padding_changes_nothing(make_work: MakeWork, make_model: Any) -> None:
    work = make_work("m3dt-random")
    model, batch = make_model(work.model_config()), batch_of(work, work.model_config())
    with torch.no_grad():
        expected = model(batch.window, batch.prompt, "mixture")[:, -1]
        cache = model.encode_prompt(batch.prompt, "mixture")
        torch.testing.assert_close(model.act(batch.window, cache, "mixture"), expected)
        order = torch.tensor([3, 0, 3])
        rows = Window(*(getattr(batch.window, f.name)[order] for f in dataclasses.fields(Window)))
        torch.testing.assert_close(model.act(rows, cache.select(order), "mixture"), expected[order])
        backbone = model(batch.window, batch.prompt, "none")
        assert (backbone[:, -1] - expected).abs().max() > 1e-3
        padded = dataclasses.replace(batch.window, mask=batch.window.mask & (torch.arange(4) >= 2))
        torch.testing.assert_close(
            model.act(padded, cache, "mixture"), model.act(cut(padded, slice(2, None)), cache, "mixture")
        )


@pytest.mark.parametrize("make_model", [big_model, sample_model])
def test_no_prediction_sees_what_comes_after_its_state(make_work: MakeWork, make_model: Any) -> None:
    work = make_work("m3dt-random")
    model, batch = make_model(work.model_config()), batch_of(work, work.model_config())
    later = dataclasses.replace(batch.window, actions=batch.window.actions.clone(), states=batch.window.states.clone())
    later.actions[:, 2:] += 1.0
    later.states[:, 3:] -= 1.0
    with torch.no_grad():
        before, after = (model(window, batch.prompt, "mixture") for window in (batch.window, later))
    torch.testing.assert_close(before[:, :3], after[:, :3], rtol=0, atol=0)
    assert (before[:, 3] - after[:, 3]).abs().max() > 1e-3


def contract_agent(datasets: TaskDatasets, make_model: Any) -> M3DTAgent:
    config = ModelConfig(16, 2, 2, n_experts=2, context_length=5, prompt_length=3, max_timesteps=40)
    statistics, prompts = compute_statistics(datasets), make_prompts(datasets, 3)
    return M3DTAgent.from_model(make_model(config), datasets.tasks, statistics, prompts, experts="mixture")


class TestBigExpertsAgent(AgentContract):
    @pytest.fixture
    def agent(self, datasets: TaskDatasets) -> M3DTAgent:
        return contract_agent(datasets, big_model)


class TestSampleRoutedAgent(AgentContract):
    @pytest.fixture
    def agent(self, datasets: TaskDatasets) -> M3DTAgent:
        return contract_agent(datasets, sample_model)
