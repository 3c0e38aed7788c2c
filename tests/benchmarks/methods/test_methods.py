"""What each method trains, sees and costs, and that kills change nothing; some families have files of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from contracts import AgentContract, observations
from torch import Tensor

from benchmarks.methods import METHODS, Outcome, Work, base, costs, method
from benchmarks.methods.ablations import NoisyRouter, OtherThirdStage
from benchmarks.methods.big_experts import BigExperts
from benchmarks.methods.m3dt import OraclePolicy
from benchmarks.methods.sample_router import SampleRouted
from m3dt_agent.agent import M3DTAgent
from m3dt_agent.config import EvalConfig, ModelConfig
from m3dt_agent.data.batches import Batch, Window
from m3dt_agent.data.prompts import make_prompts
from m3dt_agent.data.stats import compute_statistics
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import ConfigError, M3DTError, UnknownTaskError
from m3dt_agent.evaluation import evaluate, router_usage
from m3dt_agent.model import M3DT
from m3dt_agent.model.moe import Router
from m3dt_agent.training.shares import Share
from m3dt_agent.training.trainer import Trainer

MakeWork = Callable[..., Work]
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


def train(work: Work) -> Outcome:
    """All of a method, in the fractions in which it is evaluated."""
    chosen = method(work.cell.method)
    return [chosen.train(work, fraction) for fraction in chosen.fractions][-1]


def model_of(outcome: Outcome) -> M3DT:
    assert isinstance(outcome.policy, M3DTAgent)
    return outcome.policy.model


def weights(outcome: Outcome) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model_of(outcome).state_dict().items()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def part(tensors: dict[str, Tensor], word: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if f".{word}." in name}


def numbers(outcome: Outcome) -> dict[str, Any]:
    return {f.name: getattr(outcome, f.name) for f in dataclasses.fields(outcome) if f.name != "policy"}


def batch_of(work: Work, config: ModelConfig) -> Batch:
    return base.run_sampler(work, config, work.train_config("backbone")).sample(0)


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


@pytest.mark.parametrize("name", ["random", "zero", "behavior"])
def test_controls_cost_nothing_and_play(make_work: MakeWork, name: str) -> None:
    outcome = train(make_work(name))
    assert (outcome.parameters, outcome.windows, outcome.training_flop) == (0, 0, 0.0)
    (row,) = evaluate(outcome.policy, ["cheetah-vel-3"], EvalConfig(episodes=1, workers=0))
    assert row.policy == ("expert" if name == "behavior" else name)


KINDS = ["prompt-dt", "m3dt-end-to-end", "m3dt-all-tasks", "m3dt-gradient-unfrozen", "m3dt-big-experts"]


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


def test_prompt_bc_sees_no_returns(make_work: MakeWork) -> None:
    actions = {}
    for name in ("prompt-dt", "prompt-bc"):
        agent = train(make_work(name, folder=name)).policy
        assert isinstance(agent, M3DTAgent)
        for target in (-1000.0, 1000.0):
            agent.reset(task="cheetah-vel-3", target_return=target)
            actions[name, target] = [agent.act(o, reward=5.0) for o in observations(agent.tasks[0], 3, 0)]
    np.testing.assert_array_equal(actions["prompt-bc", -1000.0], actions["prompt-bc", 1000.0])
    assert not np.array_equal(actions["prompt-dt", -1000.0], actions["prompt-dt", 1000.0])


def test_the_oracle_acts_with_the_expert_of_each_slots_task(make_work: MakeWork) -> None:
    outcome = train(make_work("m3dt-oracle"))
    policy, routed = outcome.policy, M3DTAgent.load(make_work("m3dt-oracle").folder / "bank")
    assert isinstance(policy, OraclePolicy)
    assert routed.bank is not None
    assert policy.bank_hash == routed.content_hash
    groups = routed.bank.groups or {}
    tasks = [*routed.tasks, routed.tasks[0]]
    policy.reset(tasks, [(i,) for i in range(len(tasks))])
    obs = np.stack([np.pad(observations(task, 1, i)[0], (0, 39 - task.obs_dim)) for i, task in enumerate(tasks)])
    every = np.ones(len(tasks), bool)
    actions = policy.act(obs, reward=None, reset_mask=every, active=every)
    for i, task in enumerate(tasks):
        routed.experts = groups[task.name]
        routed.reset(task=task)
        np.testing.assert_allclose(actions[i, : task.act_dim], routed.act(obs[i, : task.obs_dim]), rtol=0, atol=1e-6)
        assert (actions[i, task.act_dim :] == 0).all()
    routers = sum(p.numel() for p in M3DT(routed.config).router_tensors().values())
    expert = sum(p[0].numel() for p in M3DT(routed.config).expert_tensors().values())
    assert outcome.parameters == costs.count_parameters(M3DT(routed.config)) - routers
    assert outcome.active_parameters == outcome.parameters - expert


def test_with_one_group_of_all_tasks_all_tasks_is_m3dt(make_work: MakeWork) -> None:
    all_tasks, grouped = (weights(train(make_work(n, folder=n, n_experts=1))) for n in ("m3dt-all-tasks", "m3dt-random"))
    assert equal(all_tasks, grouped)


def test_experts_of_all_tasks_differ_from_those_of_groups_and_from_each_other(make_work: MakeWork) -> None:
    all_tasks, grouped = (weights(train(make_work(n, folder=n))) for n in ("m3dt-all-tasks", "m3dt-random"))
    for name, tensor in part(all_tasks, "experts").items():
        assert not torch.equal(tensor[0], tensor[1])
        assert not torch.equal(tensor, grouped[name])
    shared = {name for name in grouped if ".experts." not in name and ".router." not in name}
    assert all(torch.equal(all_tasks[name], grouped[name]) for name in shared)


def test_unfrozen_differs_from_m3dt_in_the_third_run_only(make_work: MakeWork, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = weights(train(make_work("m3dt-random", folder="usual")))
    same = weights(OtherThirdStage("random", lambda run: run).train(make_work("m3dt-random", folder="same"), "1.00"))
    assert equal(usual, same)
    unfrozen = weights(train(make_work("m3dt-random-unfrozen", folder="unfrozen")))
    changed = {name for name in usual if not torch.equal(usual[name], unfrozen[name])}
    assert changed == {*part(usual, "experts"), *part(usual, "router")}


def test_no_grouping_builds_on_prompt_dts_backbone_and_end_to_end_moves_everything(make_work: MakeWork) -> None:
    backbone = weights(train(make_work("prompt-dt", folder="prompt-dt")))
    joint = weights(train(make_work("m3dt-no-grouping", folder="joint")))
    assert all(torch.equal(joint[name], tensor) for name, tensor in backbone.items())
    work = make_work("m3dt-end-to-end", folder="end-to-end")
    first, trained = base.new_model(work, work.model_config()), weights(train(work))
    for name, tensor in first.state_dict().items():
        assert not torch.equal(tensor, trained[name]), name
    assert all((tensor[:, 0] != 0).any() and (tensor[:, 1] != 0).any() for tensor in [joint["blocks.0.experts.w_out"]])


def test_the_noisy_router_draws_in_training_and_is_the_plain_one_when_it_acts(make_work: MakeWork) -> None:
    torch.manual_seed(0)
    noisy, plain, h = NoisyRouter(8, 6, 4), Router(8, 6, 4), torch.randn(50, 8)
    plain.load_state_dict({name: t for name, t in noisy.state_dict().items() if not name.startswith("noise")})
    first, second = noisy(h), noisy(h)
    assert not torch.equal(first, second)
    assert ((first > 0).sum(-1) == 4).all()
    torch.testing.assert_close(first.sum(-1), torch.ones(50))
    first.square().sum().backward()
    assert noisy.noise.weight.grad is not None
    assert noisy.noise.weight.grad.abs().max() > 0
    torch.testing.assert_close(noisy.eval()(h), plain(h), rtol=0, atol=0)


def test_top_k_trains_the_noise_and_counts_k_experts_as_active(make_work: MakeWork) -> None:
    outcome = train(make_work("m3dt-top-k", n_experts=3, top_k=2))
    model = model_of(outcome)
    biases = [p for name, p in model.router_tensors().items() if name.endswith("noise.bias")]  # zero at first
    assert len(biases) == 2
    assert all((bias != 0).any() for bias in biases)
    usage = router_usage(outcome.policy, make_work("m3dt-top-k").data)  # type: ignore[arg-type]
    assert all(sum(found) == pytest.approx(1.0) for found in usage.values())
    with pytest.raises(ConfigError, match="top_k"):
        train(make_work("m3dt-top-k", folder="too few experts"))
    expert = sum(p[0].numel() for p in model.expert_tensors().values())
    assert outcome.active_parameters == outcome.parameters - expert


def lively(model: M3DT) -> M3DT:
    """Weights of a few times the usual size, so that nothing is near zero."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.2 if "experts" in name or parameter.ndim > 1 else 0.05)
    return model.eval()


def big_model(config: ModelConfig) -> BigExperts:
    torch.manual_seed(1)
    plain = dataclasses.replace(config, n_experts=0)
    return BigExperts(lively(M3DT(plain)), [lively(M3DT(plain)) for _ in range(config.n_experts)]).eval()


def sample_model(config: ModelConfig) -> SampleRouted:
    torch.manual_seed(1)
    model = lively(SampleRouted(config))
    assert isinstance(model, SampleRouted)
    return model


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


def test_big_experts_that_are_copies_of_the_backbone_are_the_backbone(make_work: MakeWork) -> None:
    work = make_work("m3dt-random")
    config = work.model_config(n_experts=0)
    torch.manual_seed(0)
    backbone = lively(M3DT(config))
    copies = [M3DT(config) for _ in range(3)]
    for copy in copies:
        copy.load_state_dict(backbone.state_dict())
    model, batch = BigExperts(backbone, copies).eval(), batch_of(work, config)
    with torch.no_grad():
        torch.testing.assert_close(model(batch.window, batch.prompt, "mixture"), backbone(batch.window, batch.prompt))
    shared = costs.count_parameters(backbone) - sum(p.numel() for p in backbone.blocks.parameters())
    blocks, router = costs.count_parameters(backbone) - shared, sum(p.numel() for p in model.router.parameters())
    assert costs.count_parameters(model) == shared + 4 * blocks + router


def test_big_experts_are_trained_on_their_groups_and_nothing_else_moves(make_work: MakeWork) -> None:
    backbone = weights(train(make_work("prompt-dt", folder="prompt-dt")))
    outcome = train(make_work("m3dt-big-experts"))
    model = model_of(outcome)
    assert isinstance(model, BigExperts)
    for name, tensor in backbone.items():
        assert torch.equal(model.state_dict()[name], tensor)
    first, *experts = (dict(tower.named_parameters()) for tower in model.towers)
    for name in first:
        moved = [not torch.equal(expert[name], first[name]) for expert in experts]
        assert moved == [name.startswith("blocks.")] * 2, name
    assert not torch.equal(experts[0]["blocks.0.ffn.w_in.weight"], experts[1]["blocks.0.ffn.w_in.weight"])


def test_the_sample_router_weighs_by_the_mean_of_the_real_tokens_so_far(make_work: MakeWork) -> None:
    work = make_work("m3dt-random")
    model, batch = sample_model(work.model_config()), batch_of(work, work.model_config())
    window = dataclasses.replace(batch.window, mask=batch.window.mask & (torch.arange(4) >= 1))
    h: list[Tensor] = []  # of prompt and window, block after block
    hooks = [block.ln_2.register_forward_hook(lambda _m, _i, output: h.append(output)) for block in model.blocks]
    found = model.router_weights(window, batch.prompt)  # (B, T, L, E)
    for hook in hooks:
        hook.remove()
    assert len(h) == 4
    for layer, block in enumerate(model.blocks):
        tokens = torch.cat((h[layer], h[2 + layer]), dim=1)  # (B, 3P + 3T - 1, D)
        real = torch.cat((batch.prompt.mask, window.mask), dim=1).repeat_interleave(3, dim=1)
        for b, step in ((0, 3), (2, 1), (5, 2)):
            end = 3 * (2 + step) + 2  # after the state token of the window's step
            mean = torch.stack([tokens[b, j] for j in range(end) if real[b, j]]).mean(0)
            torch.testing.assert_close(found[b, step, layer], block.router(mean))


def test_the_sample_router_is_trained_from_m3dts_first_weights(make_work: MakeWork) -> None:
    usual = weights(train(make_work("m3dt-gradient", folder="usual")))
    outcome = train(make_work("m3dt-sample-router", folder="sample"))
    sample = weights(outcome)
    changed = {name for name in usual if not torch.equal(usual[name], sample[name])}
    assert changed == set(part(usual, "router"))
    usage = router_usage(outcome.policy, make_work("m3dt-gradient").data)  # type: ignore[arg-type]
    assert all(sum(found) == pytest.approx(1.0) for found in usage.values())


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


def test_flop_are_those_of_the_matrix_products(make_work: MakeWork) -> None:
    work = make_work("prompt-dt")
    config = work.model_config(n_experts=0)
    model, sampler = M3DT(config).eval(), base.run_sampler(work, config, work.train_config("backbone"))
    D, window, prompt = config.embed_dim, 3 * 4 - 1, 3 * 2

    def block(queries: int) -> int:  # products of one block for so many of a window's tokens
        attention = queries * D * D + window * D * 2 * D + 2 * queries * (prompt + window) * D + queries * D * D
        return attention + 2 * queries * D * 4 * D

    embedding = 4 * (1 + config.state_dim + config.act_dim) * D
    expected = 2 * (embedding + block(window) + block(1) + D * config.act_dim)
    assert costs.action_flop(model, sampler, "none") == expected
    everything = costs.step_flop(model, sampler, dict(model.named_parameters()), "none")
    head = costs.step_flop(model, sampler, dict(model.predict_action.named_parameters()), "none")
    forward = head - 2 * 6 * 4 * D * config.act_dim  # the head's own gradient
    assert 2.8 * forward < everything < 3 * forward
    assert all(p.grad is None for p in model.parameters())
