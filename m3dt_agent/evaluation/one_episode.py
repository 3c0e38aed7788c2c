"""One episode of one task: what an agent scores in it, and how fast it decides.

    agent ─► timed ─┬► evaluate          one episode in this process
                    └► videos.record     the same episode, recorded

The speed is that of the agent alone: the clock runs only while it acts, not while the simulator steps or draws.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..agent import M3DTAgent, RtgMode
from ..agent.inputs import Bools, Float32Array
from ..config import EVALUATION_SEED, EvalConfig
from ..system.machine import shows_progress
from ..tasks import TaskSpec, resolve
from .policies import VectorPolicy, as_policy
from .rollout import evaluate


@dataclass(frozen=True, slots=True)
class Played:
    """An episode that was played. success: None if the task has none. length: in steps, with one decision each."""

    task: str
    seed: int
    policy: str
    bank_hash: str
    episode_return: float
    normalized_score: float
    success: bool | None
    length: int
    decisions_per_second: float
    video: str | None


def play(
    agent: M3DTAgent,
    task: str | TaskSpec,
    *,
    seed: int = EVALUATION_SEED,
    stop_on_success: bool = False,
    rtg_mode: RtgMode = "rewards",
    video: Path | None = None,
) -> Played:
    """Plays the episode of `task` that starts from `seed`.

    Args:
        stop_on_success, rtg_mode: as in `EvalConfig`.
        video: also record the episode in this .gif, .webp or .mp4.

    Raises:
        UnknownTaskError: no such task, or one the agent does not have.
        M3DTError: other errors of `evaluate`, or with a video of `videos.record`.
    """
    (spec,) = resolve([task], first=agent.tasks)
    config = EvalConfig(episodes=1, seed=seed, slots=1, workers=0, stop_on_success=stop_on_success, rtg_mode=rtg_mode)
    timed = _Timed(as_policy(agent, config))
    if video is None:
        (row,) = evaluate(timed, [spec], config, progress=False)
        episode_return, success = row.episode_return, row.success
    else:
        from .videos import record

        recording = record(timed, [spec], video, config, progress=shows_progress(None))
        episode_return, success = recording.returns[spec.name], recording.successes[spec.name]
    return Played(
        task=spec.name,
        seed=seed,
        policy=timed.name,
        bank_hash=timed.bank_hash,
        episode_return=episode_return,
        normalized_score=spec.normalized_score(episode_return, success),
        success=success,
        length=timed.decisions,
        decisions_per_second=timed.decisions / timed.seconds,
        video=None if video is None else str(video),
    )


class _Timed:
    """A policy whose time is taken. decisions: actions so far. seconds: spent on them."""

    def __init__(self, policy: VectorPolicy) -> None:
        self._policy = policy
        self.name, self.bank_hash = policy.name, policy.bank_hash
        self.decisions, self.seconds = 0, 0.0

    def reset(self, tasks: Sequence[TaskSpec], seeds: Sequence[Sequence[int]]) -> None:
        self._policy.reset(tasks, seeds)

    def act(
        self, obs: Float32Array, *, reward: npt.NDArray[np.float64] | None, reset_mask: Bools, active: Bools
    ) -> Float32Array:
        self.decisions += int(active.sum())
        start = time.perf_counter()
        actions = self._policy.act(obs, reward=reward, reset_mask=reset_mask, active=active)
        self.seconds += time.perf_counter() - start
        return actions
