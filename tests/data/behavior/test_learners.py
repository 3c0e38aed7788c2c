"""The learners: what an actor exports is what it does, normalized or not; and how a run begins with another policy."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from m3dt_agent import tasks
from m3dt_agent.data.behavior.learners import ALGORITHMS, actor_layers
from m3dt_agent.data.behavior.policies import MLPPolicy
from m3dt_agent.data.behavior.training import BehaviorTrainingConfig, newest_checkpoint, train_behavior
from m3dt_agent.errors import ConfigError

TASK = tasks.get("cartpole-swingup")


def network(x, layers):
    w0, b0, w1, b1, w2, b2 = layers
    return np.tanh(np.maximum(np.maximum(x @ w0 + b0, 0) @ w1 + b1, 0) @ w2 + b2)


def test_normalizations_are_folded_into_the_layers():
    """Against the formula of batch normalization with running statistics, layer by layer."""
    rng = np.random.default_rng(0)
    widths = (5, 128, 128, 2)
    params, statistics = {}, {}
    for i, (n, m) in enumerate(itertools.pairwise(widths)):
        params[f"Dense_{i}"] = {"kernel": rng.normal(size=(n, m)) / n, "bias": rng.normal(size=m)}
        params[f"BatchRenorm_{i}"] = {"scale": rng.uniform(0.5, 2, n), "bias": rng.normal(size=n)}
        statistics[f"BatchRenorm_{i}"] = {"mean": rng.normal(size=n), "var": rng.uniform(0, 3, n)}
    model = SimpleNamespace(policy=SimpleNamespace(actor_state=SimpleNamespace(params=params, batch_stats=statistics)))
    x = observations = rng.normal(size=(7, 5))
    for i in range(3):
        norm, running, dense = params[f"BatchRenorm_{i}"], statistics[f"BatchRenorm_{i}"], params[f"Dense_{i}"]
        x = (x - running["mean"]) / np.sqrt(running["var"] + 1e-3) * norm["scale"] + norm["bias"]
        x = x @ dense["kernel"] + dense["bias"]
        x = np.tanh(x) if i == 2 else np.maximum(x, 0)
    np.testing.assert_allclose(network(observations, actor_layers(model)), x, atol=1e-5)


def test_algorithms_that_do_not_exist():
    with pytest.raises(ConfigError, match="algorithm must be one of sac, sac-ln, tqc, crossq; got 'ppo'"):
        BehaviorTrainingConfig(algorithm="ppo")


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_is_exported_does_what_the_learner_does_and_the_run_continues(algorithm, tmp_path, monkeypatch):
    pytest.importorskip("sbx")
    from m3dt_agent.data.behavior import training as module

    models = []
    monkeypatch.setattr(
        module,
        "_measure",
        lambda task, model, config, measure=module._measure: models.append(model) or measure(task, model, config),
    )
    config = {"checkpoint_every": 640, "evaluation_episodes": 1, "learning_starts": 200, "algorithm": algorithm}
    train_behavior(TASK, tmp_path, BehaviorTrainingConfig(steps=640, **config))
    train_behavior(TASK, tmp_path, BehaviorTrainingConfig(steps=1_280, **config))
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-000001280"]
    model = models[-1]
    observations = np.random.default_rng(0).normal(size=(50, TASK.obs_dim)).astype(np.float32)
    expected, _ = model.predict(observations, deterministic=True)
    policy = MLPPolicy(TASK, actor_layers(model))
    np.testing.assert_allclose([policy(observation) for observation in observations], expected, atol=2e-5)
    other = BehaviorTrainingConfig(steps=1_280, **config | {"algorithm": "sac" if algorithm != "sac" else "tqc"})
    with pytest.raises(ConfigError, match=f"holds a run of 'cartpole-swingup' with {algorithm} and seed 0"):
        train_behavior(TASK, tmp_path, other)


@pytest.mark.slow
def test_a_run_that_begins_with_another_policy_begins_as_good(tmp_path):
    pytest.importorskip("sbx")
    seen = []
    config = BehaviorTrainingConfig(
        steps=320, checkpoint_every=320, evaluation_episodes=1, algorithm="sac-ln", start="expert+0.1", start_episodes=2
    )
    returns = train_behavior(TASK, tmp_path, config, on_snapshot=seen.append)
    assert set(returns) == {"expert"}  # no early snapshot is an untrained policy
    assert returns["expert"].mean > 700  # the shipped expert has 840; from nothing 320 steps give some 100
    assert newest_checkpoint(tmp_path) is not None
