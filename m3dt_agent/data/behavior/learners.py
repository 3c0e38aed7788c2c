"""The learners of `train_behavior`: sbx's algorithms with our settings, and their actors in our format.

    sac       soft actor-critic (Haarnoja et al. 2018)
    sac-ln    the same with layer norms in its critics (Ball et al. 2023), which keep them from overestimating
    tqc       truncated quantile critics (Kuznetsov et al. 2020), with layer norms
    crossq    no target network, batch renormalization in critics and actor (Bhatt et al. 2024)

The actor of each is two hidden layers of 128. CrossQ normalizes the input of every layer by running statistics; while it acts
these are constants, and are folded into the weights, so that its export is an ordinary network too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np

from ...errors import MissingDependencyError
from ..episodes import Episode
from .policies import Float32Array

Layers: TypeAlias = tuple[Float32Array, ...]
"""The actor's weights and biases, in the order of `LAYER_NAMES`."""

_HIDDEN = 128
_ROUND = 32
"""Environment steps, and then updates, that follow each other."""
_RENORM_EPSILON = 1e-3  # sbx's BatchRenorm
_FROZEN = 1 << 30  # a delay that no number of updates reaches
_COMMON: Mapping[str, Any] = {"learning_rate": 7e-4, "batch_size": 128, "train_freq": _ROUND, "gradient_steps": _ROUND}
_HIDDEN_LAYERS: Mapping[str, Any] = {"net_arch": [_HIDDEN, _HIDDEN]}
_RECIPES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "sac": ("SAC", {"policy_kwargs": _HIDDEN_LAYERS}),
    "sac-ln": ("SAC", {"policy_kwargs": {**_HIDDEN_LAYERS, "layer_norm": True}}),
    "tqc": ("TQC", {"policy_kwargs": {**_HIDDEN_LAYERS, "layer_norm": True}}),
    "crossq": ("CrossQ", {"policy_kwargs": _HIDDEN_LAYERS, "policy_delay": 3}),
}
"""Name → class of sbx, and its settings beyond those that all have."""
ALGORITHMS = tuple(_RECIPES)
"""The names of the learners."""


def make_learner(
    algorithm: str, env: gym.Env[Float32Array, Float32Array], *, steps: int, learning_starts: int, seed: int, warm: bool
) -> Any:
    """The sbx model of `algorithm` for `env`, whose replay buffer holds `steps` steps. warm: it begins with `start_from`.

    Raises:
        MissingDependencyError: sbx is not installed.
    """
    try:
        import sbx
    except ImportError as error:
        raise MissingDependencyError("sbx is not installed: pip install 'm3dt-agent[behavior]'") from error
    name, settings = _RECIPES[algorithm]
    return getattr(sbx, name)(
        "MlpPolicy",
        env,
        **{**_COMMON, **settings, "policy_kwargs": dict(settings["policy_kwargs"])},  # sbx adds entries of its own
        learning_starts=0 if warm else learning_starts,
        ent_coef="auto_0.05" if warm else "auto",  # a policy that is good already needs little entropy
        buffer_size=steps + _ROUND,  # a run stops at a multiple of a round
        seed=seed,
    )


def start_from(model: Any, episodes: Iterable[Episode], layers: Layers | None) -> None:
    """Begins with what others did: `episodes` go to the replay buffer, and the critics learn from them.

    The episodes have the observations and the rewards to train on. layers: the actor's, as in `actor_layers`; None: the actor
    stays as it is. It stands still meanwhile, because critics that know nothing would spoil it.
    """
    from stable_baselines3.common.logger import configure

    buffer = model.replay_buffer
    for episode in episodes:
        for t in range(episode.length):
            info = {"TimeLimit.truncated": bool(episode.truncations[t] and not episode.terminations[t])}
            done = np.array([episode.terminations[t] or episode.truncations[t]])
            before, after = episode.observations[t][None], episode.observations[t + 1][None]
            buffer.add(before, after, episode.actions[t][None], episode.rewards[t][None], done, [info])
    policy = model.policy
    if layers is not None:
        policy.actor_state = policy.actor_state.replace(params=_with_layers(policy.actor_state.params, layers))
    model.set_logger(configure(None, []))
    delay, model.policy_delay = model.policy_delay, _FROZEN
    for _ in range(buffer.size() // _ROUND):
        model._n_updates = 0  # sbx compiles anew for every other remainder of it by the delay
        model.train(_ROUND, model.batch_size)
    model.policy_delay = delay


def takes_layers(algorithm: str) -> bool:
    """Whether the actor of `algorithm` can begin as a trained policy: one without normalization."""
    return algorithm != "crossq"


def actor_layers(model: Any) -> Layers:
    """The deterministic actor's layers. sbx numbers the dense layers in order; the fourth gives the log deviation."""
    state = model.policy.actor_state
    plain = not hasattr(state, "batch_stats")
    weights = state.params["params"] if plain else state.params
    layers: list[Float32Array] = []
    for i in range(3):
        kernel, bias = (np.array(weights[f"Dense_{i}"][part], np.float64) for part in ("kernel", "bias"))  # (in, out)
        if not plain:
            kernel, bias = _folded(kernel, bias, weights[f"BatchRenorm_{i}"], state.batch_stats[f"BatchRenorm_{i}"])
        layers += [kernel.astype(np.float32), bias.astype(np.float32)]
    return tuple(layers)


def _folded(kernel: Any, bias: Any, learned: Mapping[str, Any], running: Mapping[str, Any]) -> tuple[Any, Any]:
    """A dense layer that does what the normalization of its input and the layer do: (x·a + c)·W + b = x·(a·W) + (c·W + b)."""
    mean, variance, scale, shift = (
        np.array(part, np.float64) for part in (running["mean"], running["var"], learned["scale"], learned["bias"])
    )
    factor = scale / np.sqrt(variance + _RENORM_EPSILON)
    return factor[:, None] * kernel, bias + (shift - mean * factor) @ kernel


def _with_layers(params: Any, layers: Layers) -> Any:
    """The actor's parameters with other dense layers; the one of the log deviation stays."""
    dense = dict(params["params"])
    for i in range(3):
        dense[f"Dense_{i}"] = {"kernel": layers[2 * i], "bias": layers[2 * i + 1]}
    return {**params, "params": dense}


_CRITICS = ("qf_state", "qf1_state", "qf2_state")  # SAC and CrossQ have one state for both; TQC has two


def learned(model: Any) -> Any:
    """Everything that the model learns, as one JAX tree."""
    policy = model.policy
    critics = (getattr(policy, name) for name in _CRITICS if hasattr(policy, name))
    return policy.actor_state, *critics, model.ent_coef_state, model.key, policy.key


def set_learned(model: Any, tree: Any) -> None:
    """Gives the model what `learned` returned."""
    policy = model.policy
    policy.actor_state, *critics, model.ent_coef_state, model.key, policy.key = tree
    for name, state in zip([name for name in _CRITICS if hasattr(policy, name)], critics, strict=True):
        setattr(policy, name, state)
