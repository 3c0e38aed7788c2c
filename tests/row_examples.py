"""Rows of episodes that a rollout could have written."""

from __future__ import annotations

from typing import Any

from m3dt_agent.scores.rows import EpisodeResult
from m3dt_agent.tasks import get


def row(task: str = "walker-run", seed: int = 0, episode_return: float = 500.0, **changes: Any) -> EpisodeResult:
    """A row that a rollout could have written."""
    metaworld = "score" not in changes and get(task).domain == "metaworld"
    fields: dict[str, Any] = {
        "length": 500,
        "success": False if metaworld else None,
        "policy": "test",
        "bank_hash": "",
        "reward_version": "v2" if metaworld else None,
        "stop_on_success": False,
        "versions": {"gymnasium": "1.0"},
    }
    return EpisodeResult(task=task, seed=seed, episode_return=episode_return, **(fields | changes))
