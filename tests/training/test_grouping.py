"""Gradient conflict and grouping against slow, direct computations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from m3dt_agent.bank import ExpertBank
from m3dt_agent.config import BackboneConfig, ExpertsConfig
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import ConfigError
from m3dt_agent.training import fit_stage
from m3dt_agent.training.conflict import gradient_conflict, task_gradients
from m3dt_agent.training.grouping import (
    agreement_gram,
    expert_parts,
    gradient_partition,
    gram_matrix,
    group_tasks,
    random_partition,
)
from m3dt_agent.training.stage_inputs import StageInputs

MakeBank = Callable[..., ExpertBank]
SHARED: dict[str, Any] = {"steps": 10, "batch_size": 4, "warmup_steps": 0, "learning_rate": 1e-3}


def slow_gradient(inputs: StageInputs[Any], task: int, batch_index: int, clip: float) -> torch.Tensor:
    model = inputs.bank.model().double()
    batch = inputs.sampler(inputs.data).sample_task(task, batch_index).to(dtype=torch.float64)
    assert set(batch.tasks.tolist()) == {task}
    (model(batch.window, batch.prompt) - batch.window.actions)[batch.action_mask].square().mean().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    return torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])


@pytest.fixture
def inputs(data: TaskDatasets, make_bank: MakeBank) -> StageInputs[ExpertsConfig]:
    bank = make_bank()
    fit_stage(1, data, bank, BackboneConfig(**SHARED), progress=False)
    return StageInputs(data=data, bank=bank, config=ExpertsConfig(**SHARED, precision="float64", grouping_batches=3))


def test_the_gram_matrix_is_that_of_the_agreement_vectors(inputs: StageInputs[ExpertsConfig]) -> None:
    n = len(inputs.data.tasks)
    agreement = torch.zeros(n, 1)
    for batch in range(3):
        gradients = torch.stack([slow_gradient(inputs, task, batch, inputs.config.grad_clip) for task in range(n)])
        agreement = agreement + gradients * gradients.mean(0) / 3
    explicit = agreement.numpy()
    gram = agreement_gram(inputs)
    np.testing.assert_allclose(gram, explicit @ explicit.T, rtol=1e-5, atol=1e-7 * np.abs(gram).max())
    labels = gradient_partition(gram, 3, runs=3, seed=0)
    oracle = KMeans(3, n_init=200, random_state=0).fit(explicit / np.abs(explicit).max())
    assert adjusted_rand_score(labels, oracle.labels_) == 1.0
    assert not list((inputs.bank.path / "resume").glob("tmp*"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_k_means_on_coordinates_is_k_means_on_vectors(seed: int) -> None:
    """Clusters of 60 vectors in 20,000 dimensions: the same partition as from the vectors themselves."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(6, 20_000))
    vectors = (centres[np.repeat(np.arange(6), 10)] + 0.7 * rng.normal(size=(60, 20_000))).astype(np.float32)
    labels = gradient_partition(gram_matrix(vectors), 6, runs=5, seed=seed)
    oracle = KMeans(6, n_init=40, random_state=seed).fit(vectors.astype(np.float64))
    assert adjusted_rand_score(labels, oracle.labels_) == 1.0


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 200_000), st.integers(0, 2**32 - 1))
def test_blocks_of_columns_add_up(n: int, width: int, seed: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)
    np.testing.assert_allclose(gram_matrix(rows), rows.astype(np.float64) @ rows.T.astype(np.float64), rtol=1e-9, atol=1e-6)


def test_domains_have_the_experts_that_are_theirs() -> None:
    domains = ["ant-dir"] * 5 + ["metaworld"] * 4 + ["dmcontrol"] * 2
    parts = expert_parts(domains, 5, {"ant-dir": 2})
    assert [(members.tolist(), count) for members, count in parts] == [([0, 1, 2, 3, 4], 2), ([5, 6, 7, 8, 9, 10], 3)]
    assert [(members.tolist(), count) for members, count in expert_parts(domains, 5, {})] == [(list(range(11)), 5)]
    alone = expert_parts(domains[:5], 2, {"ant-dir": 2})
    assert [(members.tolist(), count) for members, count in alone] == [([0, 1, 2, 3, 4], 2)]


@pytest.mark.parametrize(
    ("n_experts", "domain_experts", "message"),
    [
        (6, {}, "5 tasks cannot be grouped for 6 experts;"),
        (4, {"metaworld": 3}, "2 tasks of metaworld cannot be grouped for 3 experts of 4;"),
        (4, {"dmcontrol": 1}, "0 tasks of dmcontrol cannot be grouped for 1 experts"),
        (2, {"ant-dir": 2}, "2 tasks of other domains cannot be grouped for 0 experts of 2;"),
        (3, {"ant-dir": 1, "metaworld": 1, "dmcontrol": 1}, "0 tasks of dmcontrol cannot"),
        (4, {"ant-dir": 1, "metaworld": 1}, "0 tasks of other domains cannot be grouped for 2 experts of 4"),
    ],
)
def test_experts_without_tasks_and_tasks_without_experts_are_refused(
    n_experts: int, domain_experts: dict[str, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        expert_parts(["ant-dir"] * 3 + ["metaworld"] * 2, n_experts, domain_experts)


@pytest.mark.parametrize("grouping", ["random", pytest.param("gradient", marks=pytest.mark.slow)])
def test_groups_keep_domains_apart(grouping: str, data: TaskDatasets, make_bank: MakeBank) -> None:
    bank = make_bank()
    fit_stage(1, data, bank, BackboneConfig(**SHARED), progress=False)
    domain = data.tasks[0].domain
    config = ExpertsConfig(**SHARED, grouping=grouping, grouping_batches=2, grouping_runs=2, domain_experts={domain: 1})  # type: ignore[arg-type]
    groups = group_tasks(data, bank, config, progress=False)
    assert {groups[task.name] for task in data.tasks if task.domain == domain} == {0}
    assert {groups[task.name] for task in data.tasks if task.domain != domain} == set(range(1, bank.config.n_experts))
    assert bank.manifest.grouping is not None
    assert bank.manifest.grouping["domain_experts"] == {domain: 1}


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_partitions_leave_no_group_empty(draw: st.DataObject) -> None:
    n = draw.draw(st.integers(1, 12))
    groups, distinct = draw.draw(st.integers(1, n)), draw.draw(st.integers(1, n))
    points = np.random.default_rng(draw.draw(st.integers(0, 99))).normal(size=(distinct, 5))[np.arange(n) % distinct]
    labels = gradient_partition(points @ points.T, groups, runs=1, seed=0)
    sizes = np.bincount(labels, minlength=groups)
    assert len(sizes) == groups
    assert sizes.min() >= 1
    assert list(dict.fromkeys(labels.tolist())) == list(range(groups))  # numbered by first task
    equal = np.bincount(random_partition(n, groups, seed=3), minlength=groups)
    assert equal.max() - equal.min() <= 1
    assert equal.min() >= 1


def test_the_most_balanced_run_is_kept() -> None:
    """Two far clusters of 2 and 6 points: for 2 groups nothing can be balanced, for 4 more runs never do worse."""
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(size=(2, 3)), 50 + rng.normal(size=(6, 3))])
    gram = points @ points.T
    assert sorted(np.bincount(gradient_partition(gram, 2, runs=4, seed=0))) == [2, 6]
    spread = [np.bincount(gradient_partition(gram, 4, runs, seed=0)).std() for runs in (1, 8)]
    assert spread[1] <= spread[0]


def test_conflict_is_one_minus_the_mean_cosine_with_the_mean(inputs: StageInputs[ExpertsConfig]) -> None:
    n = len(inputs.data.tasks)
    explicit = torch.stack([slow_gradient(inputs, task, 5, 1e9) for task in range(n)])
    cosines = torch.nn.functional.cosine_similarity(explicit, explicit.mean(0, keepdim=True))
    model, sampler = inputs.bank.model().double().train(), inputs.sampler(inputs.data)
    measured = gradient_conflict(lambda: task_gradients(model, model.backbone_tensors(), sampler, 5))
    assert measured == pytest.approx(1 - cosines.mean().item(), abs=1e-9)
    assert model.training  # as it was
    assert all(p.grad is None for p in model.parameters())
