"""Clips: recorded episodes played again in the simulator, and a bank's own, as small animated pictures.

    seed, actions ─► replay ─► frames, if every reward is the recorded one ─► film: a WebP of at most so many bytes

An episode of a dataset is shown only if it can be repeated: with other versions of a simulator, or in a task that draws numbers
of its own, the same actions lead elsewhere, and the picture would be of another episode than the numbers beside it.
"""

from __future__ import annotations

import contextlib
import io
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from ..agent import M3DTAgent
from ..config import EvalConfig
from ..envs.base import TaskEnv
from ..envs.make import make_env
from ..errors import M3DTError
from ..evaluation.videos import record
from ..tasks import TaskSpec
from .dataset_stats import DatasetStats, stored_episode

SIZE = 144
"""Pixels, height and width of a clip. Simulators draw twice as large, and without shadows, which are most of the work."""
FRAMES, SECONDS = 36, 5
"""The most frames of a clip, and how long it runs."""
BYTES = 2_400_000
"""All clips of a page together; with plotly's bundle and base64's third more, a page stays below 8 MB."""
LARGEST = 150_000
"""Bytes of one clip, however few there are."""
_RELATIVE, _ABSOLUTE = 1e-4, 1e-4  # by how much a reward may differ: float32 and the last bits of a simulator's sums

Clip = tuple[bytes | None, str]
"""An animated WebP, or None where nothing can be shown, and the words below it."""


@dataclass(frozen=True, slots=True)
class Replay:
    """An episode played again. frames: with the first and the last. episode_return: what it gave this time. differs: the first
    step whose reward is not the recorded one; None if there is none."""

    frames: Sequence[Image.Image]
    episode_return: float
    differs: int | None


def bytes_each(clips: int) -> int:
    """How large one of so many clips may be."""
    return min(LARGEST, BYTES // max(clips, 1))


def replay(
    env: gym.Env[Any, Any], seed: int, actions: NDArray[np.float32], rewards: NDArray[np.float32], frames: int = FRAMES
) -> Replay:
    """Plays the recorded actions (L, act_dim) from the recorded seed, and compares each reward with the recorded one (L,).

    It stops at the first difference.
    """
    every = max(1, math.ceil(len(actions) / (frames - 1)))
    env.reset(seed=seed)
    pictures, total = [_picture(env)], 0.0
    for t, action in enumerate(actions):
        _, reward, terminated, truncated, _ = env.step(action.copy())
        total += float(reward)
        over = (terminated or truncated) and t < len(actions) - 1
        if over or not math.isclose(float(reward), float(rewards[t]), rel_tol=_RELATIVE, abs_tol=_ABSOLUTE):
            return Replay(pictures, total, t)
        if (t + 1) % every == 0 or t == len(actions) - 1:
            pictures.append(_picture(env))
    return Replay(pictures, total, None)


def clips_of_dataset(stats: DatasetStats, budget: int) -> list[Clip]:
    """The best, the median and the worst episode of a dataset by return, at most `budget` bytes each.

    Where nothing can be shown, the words say why: no simulator, no renderer, no seed, an episode that does not repeat itself.
    """
    if stats.spec is None or not len(stats.returns):
        return []
    chosen: dict[int, str] = {}
    order = np.argsort(-stats.returns, kind="stable")
    for name, place in (("best", 0), ("median", len(order) // 2), ("worst", -1)):
        chosen.setdefault(int(order[place]), name)
    with contextlib.ExitStack() as stack:
        try:
            env = stack.enter_context(contextlib.closing(make_env(stats.spec, "rgb_array")))
            if isinstance(env.unwrapped, TaskEnv):
                env.unwrapped.frame_size, env.unwrapped.shadows = 2 * SIZE, False
            return [_clip(stats, env, i, name, budget) for i, name in chosen.items()]
        except Exception as error:  # whatever an environment of one's own raises: one clip must not cost the page
            return [(None, f"no clips: {_reason(error)}")]


def _clip(stats: DatasetStats, env: gym.Env[Any, Any], i: int, name: str, budget: int) -> Clip:
    index = int(stats.indices[i])
    words = f"{name}: episode {index}, return {stats.returns[i]:,.2f}, {stats.lengths[i]} steps"
    actions, rewards, seed = stored_episode(stats.path, index)
    if seed is None:
        return None, f"{words}; not shown: the dataset has no seed to start it from"
    found = replay(env, seed, actions, rewards)
    if found.differs is not None:
        return None, (
            f"{words}; not shown: played again here from its seed and actions it goes another way, reward "
            f"{found.differs + 1} is the first that differs"
        )
    return film(found.frames, budget), f"{words}; repeated from its seed and actions"


def clips_of_bank(agent: M3DTAgent, task: TaskSpec, config: EvalConfig, budget: int) -> list[Clip]:
    """The first episode of an evaluation with this seed, played by `agent`; or words that say why there is none."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.webp"
        try:
            made = record(agent, [task], path, config)
        except Exception as error:  # as above
            return [(None, f"no clip: {_reason(error)}")]
        with Image.open(path) as film_:
            frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(film_)]
    success = {True: ", success", False: ", no success", None: ""}[made.successes[task.name]]
    return [(film(frames, budget), f"the bank: seed {config.seed}, return {made.returns[task.name]:,.2f}{success}")]


def film(frames: Sequence[Image.Image], budget: int) -> bytes:
    """An animated WebP of at most `budget` bytes, with as many of the frames as there is room for, and the first at least."""
    wanted = min(len(frames), FRAMES)
    while True:
        kept = [frames[round(i * (len(frames) - 1) / max(wanted - 1, 1))] for i in range(wanted)]
        content = io.BytesIO()
        milliseconds = round(1000 * SECONDS / max(wanted, 2))
        kept[0].save(
            content, "WEBP", save_all=True, append_images=kept[1:], duration=milliseconds, loop=0, quality=60, method=4
        )
        if content.tell() <= budget or wanted == 1:
            return content.getvalue()
        wanted = max(1, min(wanted - 1, int(wanted * budget / content.tell())))


def _picture(env: gym.Env[Any, Any]) -> Image.Image:
    frame: Any = env.render()
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise M3DTError("the environment draws no RGB frames of 8 bits")
    return Image.fromarray(frame).resize((SIZE, SIZE), Image.Resampling.BOX)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, M3DTError) else f"{type(error).__name__}: {error}"
