"""HarmoDT: masks that keep their count, differ between tasks, and change by a rule that a slow oracle agrees with."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks.methods import Outcome, Work, method
from benchmarks.methods.backbones import PromptDT
from benchmarks.methods.base import new_model, run_sampler
from benchmarks.methods.harmo import (
    HarmoDT,
    HarmoPolicy,
    MaskedTraining,
    SwapRule,
)
from benchmarks.methods.task_masks import TaskMasks, maskable
from m3dt_agent.data.batches import Batch
from m3dt_agent.model import M3DT
from m3dt_agent.tasks import get
from m3dt_agent.training.run import Run
from m3dt_agent.training.trainer import Trainer

STEPS = 12
SWAPPING = {"backbone_steps": STEPS, "harmo_swap_every": 3, "tasks_per_batch": 1}


def harmo(outcome: Outcome) -> HarmoPolicy:
    assert isinstance(outcome.policy, HarmoPolicy)
    return outcome.policy


def weights(outcome: Outcome) -> dict[str, Tensor]:
    policy = outcome.policy
    return dict((policy.agent if isinstance(policy, HarmoPolicy) else policy).model.named_parameters())


# Swaps


def slow_swapped(mask: list[bool], gradient: list[float], mean: list[float], k: int, gamma: float) -> list[bool]:
    """Sorts everything; of equal scores the first."""
    places = range(len(mask))
    active, masked = [i for i in places if mask[i]], [i for i in places if not mask[i]]
    k = min(k, len(active), len(masked))
    active.sort(key=lambda i: (gamma * gradient[i] * mean[i] + gradient[i] ** 2, i))
    masked.sort(key=lambda i: (-gradient[i] * mean[i], i))
    return [i in masked[:k] or (mask[i] and i not in active[:k]) for i in places]


@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=40), st.integers(0, 15))
@settings(max_examples=200, deadline=None)
def test_a_swap_is_the_slow_oracles_and_keeps_the_count(entries: list[tuple[bool, int, int]], k: int) -> None:
    """Small integers: many scores tie."""
    mask, gradient, mean = (list(column) for column in zip(*entries, strict=True))
    rule = SwapRule(every=1, steps=10, gamma=10.0, clip=1.0, published=False)
    found = rule.swapped(torch.tensor(mask), torch.tensor(gradient).double(), torch.tensor(mean).double(), k)
    assert found.tolist() == slow_swapped(mask, gradient, mean, k, 10.0)
    assert int(found.sum()) == sum(mask)


def test_the_number_swapped_rises_and_falls_with_the_cosine() -> None:
    rule = SwapRule(every=500, steps=1_000_000, gamma=10.0, clip=0.25, published=False)
    assert rule.count(0) == rule.count(498) == rule.count(500) == 0
    assert rule.count(499_999) == 99  # the release counts from 0: a step before the middle, where it would be 100
    assert rule.count(999_999) == 0
    for step in range(499, 1_000_000, 99_500):
        assert rule.count(step) == int(
            100 + 0.5 * (0 - 100) * (1 + np.cos(2 * np.pi * step / 1_000_000))
        )  # as it is written there


# Training


class SlowHarmo:
    """The released procedure on whole copies of the model, with masks by name; `published` with its two defects."""

    def __init__(self, model: M3DT, masks: list[dict[str, Tensor]], published: bool, swap_every: int = 3) -> None:
        self.model, self.masks, self.published, self.every = model, masks, published, swap_every
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=1e-4, foreach=False)

    def clipped_gradients(self, task: int, batch: Batch) -> dict[str, Tensor]:
        masked = copy.deepcopy(self.model)
        for name, parameter in masked.named_parameters():
            if name in self.masks[task]:
                parameter.data = torch.where(self.masks[task][name], parameter.data, 0.0)
        masked.zero_grad()
        errors = (masked(batch.window, batch.prompt) - batch.window.actions)[batch.action_mask]
        errors.square().mean().backward()
        nn.utils.clip_grad_norm_(masked.parameters(), 0.25)
        return {name: p.grad for name, p in masked.named_parameters()}

    def step(self, index: int, batch: Batch, rate: float) -> None:
        task = int(batch.tasks[0])
        before = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        for name, gradient in self.clipped_gradients(task, batch).items():
            parameter = dict(self.model.named_parameters())[name]
            mask = self.masks[task].get(name, torch.ones_like(parameter, dtype=torch.bool))
            parameter.data = torch.where(mask, parameter.data, 0.0)
            parameter.grad = torch.where(mask, gradient, 0.0)
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        for name, parameter in self.model.named_parameters():
            if name in self.masks[task]:
                parameter.data = torch.where(self.masks[task][name], parameter.data, before[name])

    def swap(self, index: int, batches: list[Batch]) -> None:
        k = math.floor(50 * (1 - math.cos(2 * math.pi * index / STEPS)))
        gradients = []
        for task, batch in enumerate(batches):
            found = self.clipped_gradients(task, batch)
            mask = self.masks[task]
            kept = {name: found[name] * mask[name] if self.published else found[name] for name in mask}
            gradients.append(torch.cat([part.flatten() for part in kept.values()]))
        mean = torch.stack(gradients).mean(0)
        if self.published:
            gradients[0] = mean
        for task, gradient in enumerate(gradients):
            flat = torch.cat([mask.flatten() for mask in self.masks[task].values()]).tolist()
            flat = iter(slow_swapped(flat, gradient.tolist(), mean.tolist(), k, 10.0))
            for mask in self.masks[task].values():
                mask.copy_(torch.tensor([next(flat) for _ in range(mask.numel())]).view_as(mask))


def test_the_steps_of_training_never_show_a_masked_weight_and_change_none(make_work: Callable[..., Work]) -> None:
    """Also that the count stays at every swap."""
    work = make_work("harmo-dt", **SWAPPING)
    trainer, hooks = masked_trainer(work, published=False)
    counts, frozen = hooks.masks.masked_counts(), 0
    assert counts.min() > 0
    for step in range(STEPS):
        before = {name: p.detach().clone() for name, p in hooks.masks.parameters.items()}
        packed = hooks.masks.packed.copy()
        task = int(trainer.run.samplers[0].sample(step).tasks[0])
        mask = dict(zip(before, hooks.masks.split(hooks.masks.of(task)), strict=True))
        trainer.step()
        for name, parameter in hooks.masks.parameters.items():
            assert torch.equal(parameter[~mask[name]], before[name][~mask[name]]), name
            assert not torch.equal(parameter[mask[name]], before[name][mask[name]]), name
            frozen += int((~mask[name]).sum())
        assert (hooks.masks.masked_counts() == counts).all()
        changed = np.unpackbits(packed ^ hooks.masks.packed, axis=1).sum(1)
        k = 0 if (step + 1) % 3 else math.floor(50 * (1 - math.cos(2 * math.pi * step / STEPS)))
        assert changed.tolist() == [2 * k] * 3
    assert frozen > 0


def masked_trainer(work: Work, *, published: bool) -> tuple[Trainer, MaskedTraining]:
    config = work.model_config(n_experts=0)
    model = new_model(work, config)
    train = work.train_config("backbone")
    sampler = run_sampler(work, config, train)
    masks = TaskMasks.random(maskable(model), 3, 0.2, seed=0)
    rule = SwapRule(every=3, steps=STEPS, gamma=10.0, clip=train.grad_clip, published=published)
    hooks = MaskedTraining(model, masks, sampler, rule, seed=0)
    run = Run("run", train, model, model.backbone_tensors(), (sampler,), "none", {}, dict, hooks=hooks)
    return Trainer(run, "cpu"), hooks


@pytest.mark.parametrize("published", [False, True])
def test_training_is_the_slow_oracles(make_work: Callable[..., Work], published: bool) -> None:
    """Twelve steps and four swaps, in float64 without dropout: masks are equal, weights to 1e-12."""
    trainer, hooks = masked_trainer(make_work("harmo-dt", dropout=0.0, precision="float64", **SWAPPING), published=published)
    masks = [
        dict(zip(hooks.masks.parameters, (part.clone() for part in hooks.masks.split(hooks.masks.of(task))), strict=True))
        for task in range(3)
    ]
    slow = SlowHarmo(copy.deepcopy(trainer.run.model), masks, published)
    seen = set()
    for step in range(STEPS):
        trainer.step()
        batch = hooks.sampler.sample(step).to(dtype=torch.float64)
        seen.add(int(batch.tasks[0]))
        slow.step(step, batch, rate=1e-2 * min((step + 1) / 2, 1))
        if (step + 1) % 3 == 0:
            slow.swap(step, [hooks.sampler.sample_task(task, step).to(dtype=torch.float64) for task in range(3)])
        for task in range(3):
            flat = torch.cat([mask.flatten() for mask in slow.masks[task].values()])
            assert torch.equal(hooks.masks.of(task), flat), (step, task)
    assert seen == {0, 1, 2}
    for name, parameter in slow.model.named_parameters():
        torch.testing.assert_close(trainer.run.parameters[name], parameter, rtol=0, atol=1e-12)


def test_the_published_code_revives_without_looking(make_work: Callable[..., Work]) -> None:
    """Its masked gradients say nothing of masked weights: all but the first task revive the first that are masked."""
    revived = {}
    for published in (False, True):
        _, hooks = masked_trainer(make_work("harmo-dt", **SWAPPING), published=published)
        before = [hooks.masks.of(task) for task in range(3)]
        with torch.no_grad():
            hooks.swap(2, 25)
        revived[published] = [(hooks.masks.of(task) & ~before[task]).nonzero()[:, 0].tolist() for task in range(3)]
        first = [(~before[task]).nonzero()[:25, 0].tolist() for task in range(3)]
    assert revived[True][1:] == first[1:]
    assert revived[True][0] != first[0]  # there the mean, where the others are not masked, took its gradient's place
    assert all(found != ties for found, ties in zip(revived[False], first, strict=True))
    assert len({len(found) for task in revived.values() for found in task}) == 1


@pytest.mark.parametrize("changes", [{}, {"precision": "bfloat16"}, {"precision": "float64", "dropout": 0.0}], ids=str)
def test_with_masks_of_ones_it_is_prompt_dt_bit_for_bit(make_work: Callable[..., Work], changes: dict[str, Any]) -> None:
    changes = SWAPPING | changes
    plain = PromptDT().train(make_work("prompt-dt", folder="plain", **changes), "1.00")
    masked = HarmoDT(sparsity=0.0).train(make_work("harmo-dt", folder="masked", **changes), "1.00")
    assert (harmo(masked).masks.masked_counts() == 0).all()
    assert weights(plain).keys() == weights(masked).keys()
    for name, weight in weights(plain).items():
        assert torch.equal(weight.float(), weights(masked)[name].float()), name


@pytest.mark.parametrize("name", ["harmo-dt", pytest.param("harmo-dt-published", marks=pytest.mark.slow)])
def test_a_killed_run_ends_with_the_weights_and_masks_of_an_uninterrupted_one(
    make_work: Callable[..., Work], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints are at every fiftieth step."""
    trained, longer = method(name), SWAPPING | {"backbone_steps": 160, "harmo_swap_every": 20}
    whole = trained.train(make_work(name, folder="whole", **longer), "1.00")
    monkeypatch.setattr("m3dt_agent.training.loop.newest_checkpoint", counted := Counted("newest_checkpoint"))
    for at in (10, 70, 110):
        kill_at(monkeypatch, at, lambda: trained.train(make_work(name, folder="killed", **longer), "0.75"))
    early = trained.train(make_work(name, folder="killed", **longer), "0.75")
    late = trained.train(make_work(name, folder="killed", **longer), "1.00")
    assert counted.calls == 3  # from steps 50, 100 and 120
    assert (harmo(late).masks.packed == harmo(whole).masks.packed).all()
    assert (harmo(early).masks.packed != harmo(whole).masks.packed).any()
    for key, weight in weights(whole).items():
        assert torch.equal(weight, weights(late)[key]), key


class Counted:
    """A function of the loop, and how often it found something."""

    def __init__(self, name: str) -> None:
        from m3dt_agent.training import loop

        self._function, self.calls = getattr(loop, name), 0

    def __call__(self, *arguments: Any) -> Any:
        found = self._function(*arguments)
        self.calls += found[0] is not None
        return found


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], object]) -> None:
    whole_step = Trainer.step

    def until(trainer: Trainer) -> None:
        if trainer.step_count == step:
            raise KeyboardInterrupt
        whole_step(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", until)
        with pytest.raises(KeyboardInterrupt):
            action()


# Acting, and what it took


def test_slots_act_through_the_mask_of_their_task(make_work: Callable[..., Work]) -> None:
    policy = harmo(method("harmo-dt").train(make_work("harmo-dt", **SWAPPING), "1.00"))
    names = ("cheetah-vel-30", "reacher-easy", "cheetah-vel-3", "cheetah-vel-30")
    specs = [get(name) for name in names]
    rng = np.random.default_rng(0)
    policy.reset(specs, [[0]] * 4)
    agents = [policy.agent_of(spec) for spec in specs]
    for agent, spec in zip(agents, specs, strict=True):
        agent.reset(task=spec.name)
    for step in range(3):
        obs = rng.normal(size=(4, 39)).astype(np.float32)
        reward = rng.normal(size=4) if step else None
        actions = policy.act(obs, reward=reward, reset_mask=np.full(4, step == 0), active=np.ones(4, bool))
        for i, spec in enumerate(specs):
            alone = agents[i].act(obs[i, : spec.obs_dim], reward=None if reward is None else reward[i])
            np.testing.assert_allclose(actions[i, : spec.act_dim], alone, atol=1e-5)
            assert (actions[i, spec.act_dim :] == 0).all()
    for task, agent in zip((2, 1, 0), agents, strict=False):
        for masked, full, mask in zip(
            maskable(agent.model).values(),
            maskable(policy.agent.model).values(),
            policy.masks.split(policy.masks.of(task)),
            strict=True,
        ):
            assert torch.equal(masked, torch.where(mask, full, 0.0))


def test_numbers_count_the_swaps(make_work: Callable[..., Work]) -> None:
    plain = PromptDT().train(make_work("prompt-dt", folder="plain", **SWAPPING), "1.00")
    outcome = method("harmo-dt").train(make_work("harmo-dt", folder="ours", **SWAPPING), "1.00")
    published = method("harmo-dt-published").train(make_work("harmo-dt", folder="theirs", **SWAPPING), "1.00")
    assert outcome.parameters == plain.parameters
    masked = harmo(outcome).masks.masked_counts()
    assert outcome.active_parameters == plain.parameters - round(masked.mean())
    assert outcome.windows == published.windows == STEPS * 6 + 4 * 3 * 6
    assert outcome.training_flop == pytest.approx(plain.training_flop * (1 + 4 * 6 / STEPS))
    assert published.training_flop == pytest.approx(plain.training_flop * (1 + 4 * 5 / STEPS))
