"""The batch sampler against a slow oracle that knows only episodes, and its purity in (seed, stage, expert, step)."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m3dt_agent import tasks
from m3dt_agent.config import DataConfig, ModelConfig
from m3dt_agent.data.batches import Batch, BatchSampler, Window, derive_seed
from m3dt_agent.data.episodes import Episode, read_episodes
from m3dt_agent.data.pack import PackedTask
from m3dt_agent.data.prompts import make_prompts
from m3dt_agent.data.stats import TaskStatistics, compute_statistics
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import ConfigError, UnknownTaskError

MakeDataset = Callable[..., Path]
NAMES = ("push", "pendulum-swingup", "ant-dir-7", "cheetah-vel-20")
FIELDS = ("states", "actions", "returns_to_go", "timesteps", "mask")


def make_sampler(data: TaskDatasets, config: ModelConfig, **changes: Any) -> BatchSampler:
    settings = {"batch_size": 16, "tasks_per_batch": None, "seed": 0, "stage": "backbone", "expert": 0} | changes
    return BatchSampler(data, compute_statistics(data), make_prompts(data, config.prompt_length), config, **settings)


def slow_window(episode: Episode, start: int, length: int, statistics: TaskStatistics) -> dict[str, np.ndarray]:
    """The window of `length` steps of an episode from `start`, one number at a time."""
    real = min(length, episode.length - start)
    window: dict[str, np.ndarray] = {
        "states": np.zeros((length, 39), np.float32),
        "actions": np.zeros((length, 8), np.float32),
        "returns_to_go": np.zeros((length, 1), np.float32),
        "timesteps": np.zeros(length, np.int64),
        "mask": np.zeros(length, bool),
    }
    limit = np.inf if statistics.state_clip is None else statistics.state_clip
    for k in range(real):
        t, position = start + k, length - real + k
        for j, value in enumerate(episode.observations[t]):
            scaled = np.float32(np.float32(value - statistics.mean[j]) / statistics.std[j])
            window["states"][position, j] = min(max(scaled, -limit), limit)
        window["actions"][position, : len(episode.actions[t])] = episode.actions[t]
        to_go = 0.0
        for reward in episode.rewards[t:][::-1]:
            to_go += float(reward)
        window["returns_to_go"][position, 0] = np.float32(to_go) / np.float32(statistics.return_scale)
        window["timesteps"][position] = t
        window["mask"][position] = True
    return window


class Oracle:
    """All windows and prompts that may be drawn, by task, from the episodes themselves."""

    def __init__(
        self, root: Path, data: TaskDatasets, config: ModelConfig, statistics: dict[str, TaskStatistics] | None = None
    ) -> None:
        statistics = statistics or compute_statistics(data)
        self.windows: list[dict[tuple[int, int], dict[str, np.ndarray]]] = []
        self.prompts: list[list[dict[str, np.ndarray]]] = []
        for task in data.tasks:
            episodes = list(read_episodes(root / "m3dt" / task.name / "expert-v0"))
            best = sorted(range(len(episodes)), key=lambda e: -episodes[e].episode_return)[: data.config.n_prompts]
            of_task = statistics[task.name]
            self.windows.append(
                {
                    (e, start): slow_window(episode, start, config.context_length, of_task)
                    for e, episode in enumerate(episodes)
                    if e not in best
                    for start in range(episode.length)
                }
            )
            P = config.prompt_length
            self.prompts.append([slow_window(episodes[e], max(0, episodes[e].length - P), P, of_task) for e in best])

    def find(self, batch: Batch, row: int) -> tuple[int, tuple[int, int], int]:
        """Which task, (episode, start) and prompt row `row` of a batch is; fails if it is none."""
        task = int(batch.tasks[row])
        window = [key for key, expected in self.windows[task].items() if same(batch.window, row, expected)]
        prompt = [i for i, expected in enumerate(self.prompts[task]) if same(batch.prompt, row, expected)]
        assert len(window) == 1, f"row {row} is no window of a training episode of task {task}"
        assert len(prompt) == 1, f"row {row} has no prompt of task {task}"
        return task, window[0], prompt[0]


def same(window: Window, row: int, expected: dict[str, np.ndarray]) -> bool:
    exact = all(
        np.array_equal(getattr(window, field)[row].numpy(), expected[field]) for field in ("timesteps", "mask", "actions")
    )
    return exact and all(
        np.allclose(getattr(window, field)[row].numpy(), expected[field], rtol=1e-6, atol=1e-6)
        for field in ("states", "returns_to_go")
    )


def equal(one: Batch, other: Batch) -> bool:
    pairs = [(one.tasks, other.tasks), (one.action_mask, other.action_mask)]
    pairs += [(getattr(one.window, field), getattr(other.window, field)) for field in FIELDS]
    pairs += [(getattr(one.prompt, field), getattr(other.prompt, field)) for field in FIELDS]
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, make_dataset: MakeDataset) -> Path:
    root = tmp_path_factory.mktemp("datasets")
    for name in NAMES:
        make_dataset(root, tasks.get(name), (1, 2, 12, 5, 9, 30))
    return root


@pytest.fixture(scope="module")
def data(root: Path) -> TaskDatasets:
    return TaskDatasets.open(root, NAMES)


CONFIG = ModelConfig.preset("tiny", context_length=6, prompt_length=3)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    lengths=st.lists(st.lists(st.integers(1, 12), min_size=4, max_size=6), min_size=1, max_size=3),
    context_length=st.integers(1, 8),
    prompt_length=st.integers(1, 6),
    n_prompts=st.integers(1, 3),
    clip=st.sampled_from([None, 0.5, 10.0]),
    seed=st.integers(0, 2**31),
    tasks_per_batch=st.sampled_from([None, 1, 2, 5]),
    step=st.integers(0, 10**6),
)
def test_every_row_is_a_window_the_oracle_knows(
    make_dataset: MakeDataset,
    lengths: list[list[int]],
    context_length: int,
    prompt_length: int,
    n_prompts: int,
    clip: float | None,
    seed: int,
    tasks_per_batch: int | None,
    step: int,
) -> None:
    config = ModelConfig.preset("tiny", context_length=context_length, prompt_length=prompt_length)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        names = NAMES[: len(lengths)]
        for name, of_task in zip(names, lengths, strict=True):
            make_dataset(root, tasks.get(name), of_task)
        data = TaskDatasets.open(root, names, config=DataConfig(n_prompts=n_prompts, state_clip=clip))
        oracle = Oracle(root, data, config)
        sampler = make_sampler(data, config, batch_size=7, tasks_per_batch=tasks_per_batch, seed=seed)
        one_task = step % len(names)
        for batch in (sampler.sample(step), sampler.sample_task(one_task, step)):
            for row in range(7):
                task, _, _ = oracle.find(batch, row)
                width = data.tasks[task].act_dim
                for position, real in enumerate(batch.window.mask[row].tolist()):
                    assert batch.action_mask[row, position].tolist() == [real and j < width for j in range(8)]
        assert set(batch.tasks.tolist()) == {one_task}


def slow_rows(
    oracle: Oracle, rng: np.random.Generator, of_row: list[int]
) -> list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """Window and prompt of each row, given its task: first a training step per row, then a prompt per row, one at a time."""
    windows = [list(oracle.windows[task].values()) for task in of_row]  # in the order of a task's training steps
    drawn = [of_task[int(rng.integers(len(of_task)))] for of_task in windows]
    prompts = [oracle.prompts[task] for task in of_row]
    return [(window, of_task[int(rng.integers(len(of_task)))]) for window, of_task in zip(drawn, prompts, strict=True)]


@pytest.mark.parametrize(("batch_size", "tasks_per_batch"), [(16, None), (16, 1), (7, 3), (1, 1)])
@pytest.mark.parametrize("clip", [None, 0.5, 10.0])
@pytest.mark.parametrize("in_memory", [False, True])
def test_batches_stay_what_they_are(
    root: Path, data: TaskDatasets, batch_size: int, tasks_per_batch: int | None, clip: float | None, in_memory: bool
) -> None:
    """Bit for bit, from the rules alone: any other draw, or another order of draws, would make a resumed run another run."""
    data = dataclasses.replace(data, config=DataConfig(state_clip=clip))
    oracle, wanted = Oracle(root, data, CONFIG), tasks_per_batch or batch_size
    if in_memory:
        packed = tuple(dataclasses.replace(p, stored=np.array(p.steps)) for p in data.packed)
        data = dataclasses.replace(data, packed=packed)
    sampler = make_sampler(data, CONFIG, batch_size=batch_size, tasks_per_batch=tasks_per_batch, seed=3, expert=2)
    for step in range(8):
        rng = np.random.default_rng(derive_seed(3, "backbone", 2, step, "batch"))
        drawn: list[int] = []
        while len(drawn) < wanted:
            drawn += rng.permutation(4).tolist()
        of_row = [drawn[row * wanted // batch_size] for row in range(batch_size)]
        check_bits(sampler.sample(step), of_row, slow_rows(oracle, rng, of_row))
        rng = np.random.default_rng(derive_seed(3, "backbone", 2, step, f"task {NAMES[step % 4]}"))
        check_bits(
            sampler.sample_task(step % 4, step), [step % 4] * batch_size, slow_rows(oracle, rng, [step % 4] * batch_size)
        )


def check_bits(batch: Batch, of_row: list[int], rows: list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]) -> None:
    assert batch.tasks.tolist() == of_row
    for row, expected in enumerate(rows):
        for window, fields in zip((batch.window, batch.prompt), expected, strict=True):
            assert all(getattr(window, field)[row].numpy().tobytes() == fields[field].tobytes() for field in FIELDS)


def test_tasks_clipped_differently_share_a_batch(root: Path, data: TaskDatasets) -> None:
    statistics, limits = compute_statistics(data), (None, 0.5, 10.0, 0.25)
    statistics = {
        name: dataclasses.replace(statistics[name], state_clip=limit) for name, limit in zip(NAMES, limits, strict=True)
    }
    oracle = Oracle(root, data, CONFIG, statistics)
    settings: dict[str, Any] = {"batch_size": 16, "tasks_per_batch": None, "seed": 0, "stage": "backbone"}
    batch = BatchSampler(data, statistics, make_prompts(data, 3), CONFIG, **settings).sample(0)
    assert {oracle.find(batch, row)[0] for row in range(16)} == {0, 1, 2, 3}


def test_shapes_and_types(data: TaskDatasets) -> None:
    batch = make_sampler(data, CONFIG, batch_size=5).sample(0)
    for window, length in ((batch.window, 6), (batch.prompt, 3)):
        assert window.states.shape == (5, length, 39)
        assert window.actions.shape == (5, length, 8)
        assert window.returns_to_go.shape == (5, length, 1)
        assert window.timesteps.shape == window.mask.shape == (5, length)
        assert window.states.dtype == window.actions.dtype == window.returns_to_go.dtype == torch.float32
        assert (window.timesteps.dtype, window.mask.dtype) == (torch.int64, torch.bool)
    assert batch.tasks.shape == (5,)
    assert batch.tasks.dtype == torch.int64
    assert batch.action_mask.shape == (5, 6, 8)
    assert batch.action_mask.dtype == torch.bool


def test_starts_are_uniform_over_training_steps(root: Path, data: TaskDatasets) -> None:
    """Length-weighted episodes with uniform starts: each training step of a task begins equally many windows; prompts none."""
    oracle, sampler = Oracle(root, data, CONFIG), make_sampler(data, CONFIG, batch_size=64)
    starts: list[Counter[tuple[int, int]]] = [Counter() for _ in NAMES]
    prompts: list[Counter[int]] = [Counter() for _ in NAMES]
    for step in range(40):
        batch = sampler.sample(step)
        for row in range(64):
            task, start, prompt = oracle.find(batch, row)
            starts[task][start] += 1
            prompts[task][prompt] += 1
    for task, counts in enumerate(starts):
        every, drawn = len(oracle.windows[task]), sum(counts.values())
        assert drawn == 40 * 16
        assert set(counts) == set(oracle.windows[task])
        expected = drawn / every
        chi_square = sum((counts[key] - expected) ** 2 / expected for key in oracle.windows[task])
        assert chi_square < every - 1 + 4 * np.sqrt(2 * (every - 1))  # 4 standard deviations above its mean
        assert min(prompts[task][0], prompts[task][1]) > 0.4 * drawn


def test_every_context_of_act_is_drawn(root: Path, data: TaskDatasets) -> None:
    """What the docstring claims: a prefix of some training window is each context that `act` meets in a training episode."""
    oracle, T = Oracle(root, data, CONFIG), CONFIG.context_length
    for windows in oracle.windows:
        lengths = Counter(episode for episode, _ in windows)
        for episode, length in lengths.items():
            for t in range(length):
                first = max(0, t - T + 1)
                window = windows[episode, first]
                assert window["timesteps"][window["mask"]][: t - first + 1].tolist() == list(range(first, t + 1))


@pytest.mark.parametrize(
    ("tasks_per_batch", "shares"), [(1, [12]), (2, [6, 6]), (3, [4, 4, 4]), (None, [3, 3, 3, 3]), (8, [4, 3, 3, 2])]
)
def test_tasks_share_a_batch_equally(data: TaskDatasets, tasks_per_batch: int | None, shares: list[int]) -> None:
    sampler = make_sampler(data, CONFIG, batch_size=12, tasks_per_batch=tasks_per_batch)
    totals: Counter[int] = Counter()
    for step in range(200):
        counts = Counter(sampler.sample(step).tasks.tolist())
        assert max(counts.values()) <= max(shares)
        assert len(counts) == len(shares)
        totals += counts
    assert set(totals) == {0, 1, 2, 3}
    assert max(totals.values()) < 1.4 * min(totals.values())


def with_labels(packed: PackedTask) -> PackedTask:
    """The same pack in memory; the labels are the actions doubled."""
    actions = packed.steps[:, packed.task.obs_dim : -1]
    steps = np.concatenate([packed.steps[:, :-1], 2 * actions, packed.steps[:, -1:]], axis=1)
    return dataclasses.replace(packed, stored=steps, labelled=True)


def test_labels_are_what_is_predicted_and_change_nothing_else(data: TaskDatasets) -> None:
    packs = tuple(packed if i == 1 else with_labels(packed) for i, packed in enumerate(data.packed))  # one task has no labels
    labelled = dataclasses.replace(data, packed=packs)
    plain, executed = make_sampler(data, CONFIG), make_sampler(labelled, CONFIG, labels="executed")
    sampler = make_sampler(labelled, CONFIG)
    for step in range(6):
        one, other, found = plain.sample(step), executed.sample(step), sampler.sample(step)
        for batch in (other, found):
            assert all(torch.equal(getattr(batch.window, field), getattr(one.window, field)) for field in FIELDS)
            assert all(torch.equal(getattr(batch.prompt, field), getattr(one.prompt, field)) for field in FIELDS)
        assert one.labels is None
        assert other.labels is None
        assert torch.equal(other.targets, one.window.actions)
        factor = torch.where(one.tasks == 1, 1.0, 2.0)[:, None, None]
        assert torch.equal(found.targets, factor * one.window.actions)
        assert torch.equal(found.part(range(3, 5)).targets, found.targets[3:5])
        assert found.to(dtype=torch.float64).targets.dtype == torch.float64


def test_truncated_windows_are_the_same_windows_without_their_first_steps(data: TaskDatasets) -> None:
    plain, cut = (make_sampler(data, CONFIG, batch_size=64, truncate_history=rate) for rate in (0.0, 0.75))
    hidden: Counter[int] = Counter()
    for step in range(40):
        whole, part = plain.sample(step), cut.sample(step)
        for row in range(64):
            real, seen = (int(batch.window.mask[row].sum()) for batch in (whole, part))
            assert part.window.mask[row, -seen:].all()
            for one, other in [(whole.action_mask, part.action_mask)] + [
                (getattr(whole.window, field), getattr(part.window, field)) for field in FIELDS
            ]:
                assert torch.equal(one[row, -seen:], other[row, -seen:])
                assert not other[row, :-seen].any()
            if real == 6:
                hidden[real - seen] += 1
        assert all(torch.equal(getattr(whole.prompt, field), getattr(part.prompt, field)) for field in FIELDS)
    total = sum(hidden.values())
    for k in range(6):  # none with 1/4 + 3/4 · 1/6, and each other number with 3/4 · 1/6
        expected = total * (0.375 if k == 0 else 0.125)
        assert abs(hidden[k] - expected) < 4 * (expected * (1 - expected / total)) ** 0.5, hidden


def test_domains_come_as_often_as_they_weigh(data: TaskDatasets) -> None:
    config = ModelConfig.preset("tiny", context_length=3)
    domains = [task.domain for task in data.tasks]
    heavy = domains[0]
    weights = [3 if domain == heavy else 1 for domain in domains]
    assert 1 < sum(weights) / len(weights) < 3
    sampler = make_sampler(data, config, batch_size=sum(weights), tasks_per_batch=None, domain_weights={heavy: 3})
    for step in range(3):
        assert np.bincount(sampler.sample(step).tasks, minlength=len(weights)).tolist() == weights
    one, same_for_all = (make_sampler(data, config, domain_weights=w) for w in (None, dict.fromkeys(domains, 1)))
    assert equal(one.sample(5), same_for_all.sample(5))


def test_pure_in_step(data: TaskDatasets) -> None:
    sampler = make_sampler(data, CONFIG)
    forwards = [sampler.sample(step) for step in range(6)]
    sampler.sample_task(2, 3)
    np.random.seed(7)  # noqa: NPY002
    torch.manual_seed(7)
    backwards = [make_sampler(data, CONFIG).sample(step) for step in reversed(range(6))][::-1]
    assert all(equal(a, b) for a, b in zip(forwards, backwards, strict=True))
    assert equal(sampler.sample_task(1, 4), make_sampler(data, CONFIG).sample_task(1, 4))
    assert not equal(sampler.sample_task(1, 4), sampler.sample_task(1, 5))


@pytest.mark.parametrize("change", [{"seed": 1}, {"stage": "router"}, {"expert": 1}])
def test_different_runs_draw_differently(data: TaskDatasets, change: dict[str, Any]) -> None:
    batch, other = make_sampler(data, CONFIG).sample(3), make_sampler(data, CONFIG, **change).sample(3)
    assert not equal(batch, other)
    assert not equal(make_sampler(data, CONFIG).sample_task(0, 3), make_sampler(data, CONFIG, **change).sample_task(0, 3))


def test_steps_differ(data: TaskDatasets) -> None:
    sampler = make_sampler(data, CONFIG)
    seen = {sampler.sample(step).window.states.numpy().tobytes() for step in range(50)}
    assert len(seen) == 50


def test_same_batch_in_another_process(root: Path, data: TaskDatasets) -> None:
    script = f"""
        import hashlib
        from m3dt_agent.config import ModelConfig
        from m3dt_agent.data.batches import BatchSampler
        from m3dt_agent.data.prompts import make_prompts
        from m3dt_agent.data.stats import compute_statistics
        from m3dt_agent.data.task_datasets import TaskDatasets
        data = TaskDatasets.open({str(root)!r}, {NAMES!r})
        config = ModelConfig.preset("tiny", context_length=6, prompt_length=3)
        sampler = BatchSampler(data, compute_statistics(data), make_prompts(data, 3), config, batch_size=16,
                               tasks_per_batch=None, seed=0, stage="backbone")
        print(hashlib.sha256(sampler.sample(9).window.states.numpy().tobytes()).hexdigest())
    """
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], env=environment, check=True, capture_output=True, text=True
    )
    ours = make_sampler(data, CONFIG).sample(9).window.states.numpy().tobytes()
    assert done.stdout.strip() == hashlib.sha256(ours).hexdigest()


def test_derived_seeds() -> None:
    """Fixed values: a change would silently make every resumed run another run."""
    assert derive_seed(0, "backbone", 0, 0) == 1_207_918_394_833_861_515
    assert derive_seed(5, "experts", 47, 199_999, "dropout") == 3_285_743_039_742_771_550
    grid = [
        derive_seed(seed, stage, expert, step, purpose)
        for seed in range(4)
        for stage in ("backbone", "experts", "router")
        for expert in range(4)
        for step in range(8)
        for purpose in ("", "dropout", "batch")
    ]
    assert len(set(grid)) == len(grid)
    assert all(0 <= seed < 2**63 for seed in grid)
    assert derive_seed(np.int64(3), "router", np.int64(1), np.int64(2)) == derive_seed(3, "router", 1, 2)  # type: ignore[arg-type]


def test_subset_indexes_its_own_tasks(root: Path, data: TaskDatasets) -> None:
    part = data.subset(["cheetah-vel-20", "push"])
    oracle, sampler = Oracle(root, part, CONFIG), make_sampler(part, CONFIG, stage="experts", expert=3)
    for row in range(16):
        assert oracle.find(sampler.sample(0), row)[0] in (0, 1)


def test_packs_are_all_it_reads(root: Path, tmp_path: Path) -> None:
    """No HDF5 on the hot path: the datasets may be gone."""
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    data = TaskDatasets.open(copy, NAMES)
    sampler = make_sampler(data, CONFIG)
    shutil.rmtree(copy / "m3dt")
    assert equal(sampler.sample(1), make_sampler(TaskDatasets.open(root, NAMES), CONFIG).sample(1))


def test_batches_are_independent(data: TaskDatasets) -> None:
    sampler = make_sampler(data, CONFIG)
    before = sampler.sample(0)
    spoilt = sampler.sample(0)
    for window in (spoilt.window, spoilt.prompt):
        for field in FIELDS:
            getattr(window, field).zero_()
    spoilt.tasks.zero_()
    assert equal(before, sampler.sample(0))


def test_settings_that_cannot_work(data: TaskDatasets) -> None:
    with pytest.raises(ConfigError, match="batch_size >= 1"):
        make_sampler(data, CONFIG, batch_size=0)
    with pytest.raises(ConfigError, match="tasks_per_batch"):
        make_sampler(data, CONFIG, batch_size=4, tasks_per_batch=5)
    with pytest.raises(ConfigError, match=r"'push' is 39 \+ 4 wide.* at most 38 \+ 8"):
        make_sampler(data, ModelConfig.preset("tiny", state_dim=38))
    with pytest.raises(ConfigError, match=r"'ant-dir-7' is 27 \+ 8 wide.* at most 39 \+ 7"):
        make_sampler(data, ModelConfig.preset("tiny", act_dim=7))
    with pytest.raises(ConfigError, match=r"longest episode 30 steps; .* 29 steps"):
        make_sampler(data, ModelConfig.preset("tiny", max_timesteps=29))
    with pytest.raises(ConfigError, match=r"task_index must be in \[0, 4\); got 4"):
        make_sampler(data, CONFIG).sample_task(4, 0)
    with pytest.raises(ConfigError, match="got -1"):
        make_sampler(data, CONFIG).sample_task(-1, 0)


def test_statistics_and_prompts_of_other_tasks(data: TaskDatasets) -> None:
    statistics, prompts = compute_statistics(data), make_prompts(data, 3)
    settings: dict[str, Any] = {"batch_size": 2, "tasks_per_batch": None, "seed": 0, "stage": "backbone"}
    del statistics["push"]
    with pytest.raises(UnknownTaskError, match="unknown task with statistics 'push'"):
        BatchSampler(data, statistics, prompts, CONFIG, **settings)
    statistics = compute_statistics(data)
    del prompts["ant-dir-7"]
    with pytest.raises(UnknownTaskError, match="unknown task with prompts 'ant-dir-7'"):
        BatchSampler(data, statistics, prompts, CONFIG, **settings)
    statistics["push"] = statistics["ant-dir-7"]
    with pytest.raises(ConfigError, match="'push' are 27 wide, its observations 39"):
        BatchSampler(data, statistics, make_prompts(data, 3), CONFIG, **settings)
