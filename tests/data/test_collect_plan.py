"""What a collection is asked for: configs, how levels are mixed, and the fingerprint by which its datasets are recognised."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3dt_agent import tasks
from m3dt_agent.data import behavior
from m3dt_agent.data.collect_plan import CollectConfig, episode_levels, make_plan, staging_folder
from m3dt_agent.errors import ConfigError, DatasetError


@pytest.mark.parametrize(
    "values",
    [
        *({"levels": levels} for levels in ({}, {"expert": 0}, {"expert": np.nan}, {"expert+x": 1})),
        *({"noise": -1}, {"episodes": 0}, {"seed": -1}, {"source": "a/b"}, {"stop_after_success": 0}),
    ],
)
def test_configs_that_cannot_work(values):
    with pytest.raises(ConfigError):
        CollectConfig(**values)


@given(
    st.dictionaries(st.sampled_from(["expert", "medium", "novice", "random"]), st.floats(0.01, 1), min_size=1),
    st.integers(1, 200),
)
def test_levels_are_never_ahead_of_their_share_by_an_episode(shares, episodes):
    chosen = episode_levels(shares, episodes)
    assert len(chosen) == episodes
    for level, share in shares.items():
        due = np.arange(1, episodes + 1) * share / sum(shares.values())
        given_out = np.cumsum([name == level for name in chosen])
        assert (given_out - due < 1).all()
        assert (due - given_out < len(shares)).all()


@pytest.mark.parametrize(
    ("policy", "name"),
    [
        (
            functools.partial(behavior.behavior_policy, level="medium", weights="w.safetensors"),
            "m3dt_agent.data.behavior.behavior_policy(){'level': 'medium', 'weights': 'w.safetensors'}",
        ),
        (functools.partial(behavior.from_sb3, path="a.zip"), "m3dt_agent.data.behavior.from_sb3(){'path': 'a.zip'}"),
        (behavior.ScriptedPolicy, "m3dt_agent.data.behavior.ScriptedPolicy"),
        (behavior.SB3Checkpoint("a.zip", "PPO"), "SB3Checkpoint(path='a.zip', algorithm='PPO', trust_pickle=False)"),
        (None, None),
    ],
)
def test_fingerprints_name_policies_as_before_their_modules_moved(tmp_path, policy, name):
    plan = make_plan(tasks.get("reach"), tmp_path, CollectConfig({"custom": 1.0}), policy)
    assert json.loads(plan.fingerprint)["policy"] == name


def test_plans_of_other_configs_stage_elsewhere_and_share_no_shards(tmp_path):
    task = tasks.get("cheetah-vel-20")
    plans = [make_plan(task, tmp_path, CollectConfig(episodes=n), None) for n in (7, 7, 8)]
    assert plans[0].staging == plans[1].staging != plans[2].staging
    assert plans[0].path == plans[2].path == tmp_path / "m3dt" / "cheetah-vel-20" / "expert-v0"
    assert [(job.first, len(job.levels)) for job in plans[0].jobs] == [(0, 5), (5, 2)]


def test_a_staging_folder_is_used_by_one_at_a_time_and_cleared_of_half_written_files(tmp_path):
    folder = tmp_path / "staging"
    folder.mkdir()
    for name in (".writing-1.safetensors", "00000-00004.safetensors"):
        (folder / name).touch()
    with staging_folder(folder):
        assert [path.name for path in folder.iterdir()] == ["00000-00004.safetensors"]
        with pytest.raises(DatasetError, match="another process is collecting into"), staging_folder(folder):
            pass
    with staging_folder(folder):
        pass
