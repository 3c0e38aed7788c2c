"""Three episodes of an arm, as columns of LeRobot's frames; also what golden/make_lerobot.py lets LeRobot itself write."""

from __future__ import annotations

from typing import Any

import numpy as np

LENGTHS = (5, 7, 4)
FEATURES: dict[str, dict[str, Any]] = {
    "observation.state": {"dtype": "float32", "shape": [6], "names": None},
    "observation.images.front": {"dtype": "video", "shape": [480, 640, 3], "names": ["height", "width", "channels"]},
    "action": {"dtype": "float32", "shape": [2], "names": ["a", "b"]},
    "next.reward": {"dtype": "float32", "shape": [1], "names": None},
    "next.done": {"dtype": "bool", "shape": [1], "names": None},
    "next.success": {"dtype": "bool", "shape": [1], "names": None},
    "episode_index": {"dtype": "int64", "shape": [1], "names": None},
    "frame_index": {"dtype": "int64", "shape": [1], "names": None},
}


def frames() -> list[dict[str, np.ndarray]]:
    """The columns of three episodes."""
    rng, found = np.random.default_rng(0), []
    for index, length in enumerate(LENGTHS):
        last = np.arange(length) == length - 1
        found.append(
            {
                "observation.state": rng.normal(size=(length, 6)).astype(np.float32),
                "action": rng.uniform([-4, 0], [4, 2], (length, 2)).astype(np.float32),
                "next.reward": rng.normal(size=length).astype(np.float32),
                "next.done": last,
                "next.success": last & (index != 1),
                "episode_index": np.full(length, index),
                "frame_index": np.arange(length),
            }
        )
    return found
