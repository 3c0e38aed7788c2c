"""What a training of a behavior policy leaves: which snapshots become levels, and the policies it exports."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from m3dt_agent import tasks
from m3dt_agent.data.behavior import MeasuredReturn, behavior_policy
from m3dt_agent.data.behavior.checkpoints import Run, Snapshot, choose_levels, export, newest_checkpoint, read_snapshots
from m3dt_agent.errors import ConfigError


def snapshots_with(*means, task=None, seed=0):
    task = task or tasks.get("cartpole-balance")
    draw = np.random.default_rng(seed).normal
    widths = [(task.obs_dim, 128), (128,), (128, 128), (128,), (128, task.act_dim), (task.act_dim,)]
    layers = [tuple(draw(size=width).astype(np.float32) for width in widths) for _ in means]
    return [Snapshot(1000 * i, layers[i], MeasuredReturn(mean, 1.0, mean / 10)) for i, mean in enumerate(means)]


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ((100, 210, 340, 700, 990, 1000), {"novice": 340, "medium": 700, "expert": 1000}),
        ((0, 900, 1000, 950), {"expert": 1000}),
        ((500, 400, 300), {"expert": 500}),
        ((10, 10), {"expert": 10}),
    ],
)
def test_levels_are_the_snapshots_nearest_to_their_share_of_the_way(means, expected):
    assert {level: snapshot.measured.mean for level, snapshot in choose_levels(snapshots_with(*means)).items()} == expected


def test_what_is_exported_is_what_acts(tmp_path):
    task = tasks.get("ant-dir-7")  # a policy of one goal goes before that of all goals
    snapshots = snapshots_with(0, 300, 500, task=task)
    returns = export(task, snapshots, tmp_path)
    assert json.loads((tmp_path / "returns.json").read_text())["ant-dir-7"]["expert"]["mean"] == returns["expert"].mean == 500
    policy = behavior_policy(task, "medium", weights=tmp_path / "policies.safetensors")
    observation = np.zeros(27, np.float32)
    x = np.zeros(27)
    w0, b0, w1, b1, w2, b2 = (layer.astype(np.float16).astype(np.float64) for layer in snapshots[1].layers)
    expected = np.tanh(np.maximum(np.maximum(x @ w0 + b0, 0) @ w1 + b1, 0) @ w2 + b2)
    np.testing.assert_allclose(policy(observation), expected, atol=1e-4)
    with pytest.raises(ConfigError, match=r"'ant-dir-8' has no behavior policy 'expert'"):
        behavior_policy(tasks.get("ant-dir-8"), weights=tmp_path / "policies.safetensors")


def test_a_run_that_began_with_a_policy_exports_its_expert_alone(tmp_path):
    assert set(export(tasks.get("cartpole-balance"), snapshots_with(100, 210, 340, 700, 1000), tmp_path, only_expert=True)) == {
        "expert"
    }


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (Run("cartpole-swingup", 0), "asked for was 'cartpole-swingup' with sac and seed 0"),
        (Run("cartpole-balance", 0, "tqc", "expert"), "asked for was 'cartpole-balance' with tqc from 'expert' and seed 0"),
    ],
)
def test_another_run_does_not_continue(run, message, tmp_path):
    """A checkpoint of before there was more than one algorithm is one of soft actor-critic."""
    (tmp_path / "progress.json").write_text(json.dumps({"task": "cartpole-balance", "seed": 0, "returns": {}}))
    with pytest.raises(ConfigError, match=message):
        read_snapshots(tmp_path, run)


def test_the_newest_checkpoint_is_the_one_of_most_steps(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    for steps in (2_000, 10_000):
        (tmp_path / f"checkpoint-{steps:09d}").mkdir()
    assert newest_checkpoint(tmp_path).name == "checkpoint-000010000"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "progress.json",
            b'{"task": 3, "seed": 0, "returns": {}}',
            r"progress\.json is damaged or foreign: task must be a string",
        ),
        ("progress.json", b"[]", r"progress\.json is damaged or foreign"),
        (
            "snapshots.safetensors",
            b"x" * 100,
            r"checkpoint-000002000 is damaged .*; remove it to go on from the checkpoint before",
        ),
    ],
)
def test_a_damaged_checkpoint_is_named(name, content, message, tmp_path):
    checkpoint = tmp_path / "checkpoint-000002000"
    checkpoint.mkdir()
    returns = {"0": {"mean": 1.0, "std": 0.0, "normalized": 0.1}}
    (checkpoint / "progress.json").write_text(json.dumps({"task": "cartpole-balance", "seed": 0, "returns": returns}))
    save_file({"0/w0": np.zeros(1)}, checkpoint / "snapshots.safetensors")
    (checkpoint / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_snapshots(checkpoint, Run("cartpole-balance", 0))


def test_a_checkpoint_without_a_layer_is_named(tmp_path):
    test_a_damaged_checkpoint_is_named("other", b"", "checkpoint-000002000 is damaged \\('0/b0'\\)", tmp_path)
