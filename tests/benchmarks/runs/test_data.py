"""The data of benchmark cells: what each condition is made of, collected once and continued, evaluated on other episodes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks.experiments.scales import PROTOCOL, SCALES
from benchmarks.runs.data import CONDITIONS, collection_seeds, describe_data, level_shares, prepare, require_disjoint
from benchmarks.runs.runner import COLLECTION_SEED
from m3dt_agent.data.behavior import behavior_policy, levels
from m3dt_agent.data.behavior.planner import PLANS
from m3dt_agent.data.shards import episode_seed
from m3dt_agent.errors import ConfigError, UnknownTaskError
from m3dt_agent.tasks import TASKS, get

NAMES = ("cheetah-vel-20", "cheetah-vel-3")


@pytest.mark.parametrize("condition", CONDITIONS)
def test_every_level_of_every_task_exists(condition: str) -> None:
    for task in TASKS:
        shares = level_shares(task, condition)
        assert ("random" in shares) == (condition == "mixture")
        assert min(shares.values()) > 0
        for level in shares:
            assert level.partition("+")[0] in levels(task)
            if task.domain != "metaworld" and level != "planner":  # scripted policies and planners need their simulator
                behavior_policy(task, level)
        assert ("planner" in shares) == (condition == "best" and task.name in PLANS)


def test_a_condition_that_does_not_exist() -> None:
    with pytest.raises(UnknownTaskError, match="mixture"):
        level_shares(TASKS[0], "medium")


def test_evaluation_seeds_were_not_collected() -> None:
    for scale in SCALES.values():
        settings = scale.apply(PROTOCOL)
        require_disjoint(TASKS, settings["demonstrations"], COLLECTION_SEED, settings["eval_seed"], settings["episodes"])


def test_an_evaluated_seed_that_was_collected_is_named() -> None:
    seed = episode_seed(0, get("cheetah-vel-3"), 1)
    assert collection_seeds(NAMES, 2, 0)[seed] == "cheetah-vel-3"
    with pytest.raises(ConfigError, match=f"seed {seed} .* cheetah-vel-3"):
        require_disjoint(NAMES, 2, 0, seed - 3, 4)
    require_disjoint(NAMES, 2, 0, seed - 3, 3)


def test_prepared_once_and_described(tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    data = prepare(tmp_path, NAMES, "mixture", 8, 0, workers=0, progress=False)
    found = describe_data(data)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("m3dt/*/*/data/*")}
    again = prepare(tmp_path, NAMES, "mixture", 8, 0, workers=0, progress=False)
    assert describe_data(again) == found
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("m3dt/*/*/data/*")} == times
    for task, packed in zip(data.tasks, data.packed, strict=True):
        scores = np.array([task.normalized_score(float(value)) for value in packed.returns])
        bins = [np.sum((scores >= 10 * i) & (scores < 10 * (i + 1))) for i in range(9)] + [np.sum(scores >= 90)]
        assert found["tasks"][task.name]["histogram"] == [int(n) for n in bins]
        assert found["tasks"][task.name]["steps"] == 8 * 200
    assert max(len(set(packed.returns.round(6))) for packed in data.packed) == 8
    other = prepare(tmp_path, NAMES, "mixture", 8, 1, workers=0, progress=False)
    assert describe_data(other)["fingerprint"] != found["fingerprint"]


def test_what_is_missing_is_collected_the_same(tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    whole = describe_data(prepare(tmp_path, NAMES, "expert", 6, 3, workers=0, progress=False))
    shutil.rmtree(tmp_path / "m3dt" / NAMES[1])
    shutil.rmtree(tmp_path / ".packed")
    assert describe_data(prepare(tmp_path, NAMES, "expert", 6, 3, workers=0, progress=False)) == whole
