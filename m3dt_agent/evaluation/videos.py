"""One video of several tasks: a grid of their first episodes, side by side.

    ┌─────────────┬─────────────┐
    │ frame       │ frame       │      TILE x TILE pixels
    ├─────────────┼─────────────┤
    │ walker-run  │ reach       │      CAPTION_HEIGHT pixels: task, return so far, "success", or "over" without success
    │ return 12.3 │ return 55.0 │
    └─────────────┴─────────────┘

Every k-th step is shown, in all tiles at once, so that the longest episode fits into MAX_SECONDS at FPS frames a second. A tile
whose episode is over keeps its last frame. Everything runs in this process. The episodes are those of an evaluation with the
same seed, up to the last bits of float32 actions, which depend on the other slots. Simulators draw with the OpenGL backend that
`MUJOCO_GL` names: egl or osmesa where there is no display.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from ..agent import M3DTAgent
from ..config import EvalConfig
from ..envs.make import make_env
from ..envs.wrappers import StopOnSuccess
from ..errors import ConfigError, MissingDependencyError
from ..system.disk import require_writable, whole_file, write_file
from ..tasks import TaskSpec, padded_widths
from .policies import VectorPolicy, as_policy

MAX_TASKS = 16
FPS = 12
MAX_SECONDS = 10
TILE = 160
"""Pixels. Width and height, with the caption, are multiples of 16, as video encoders require."""
CAPTION_HEIGHT = 32
SUFFIXES = (".gif", ".webp", ".mp4")
"""A .gif plays everywhere, a .webp shows all colours, an .mp4 can be paused and searched."""
_WEBP_QUALITY = 75  # of 100: sixteen tasks of 101 frames take 2.05 MB (measured); 60 takes 1.78
_GIF_MILLISECONDS = 10 * round(100 / FPS)  # GIF counts hundredths of a second

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Recording:
    """What was recorded. frames: their number. returns, successes: by task name; success is None where a task has none."""

    path: Path
    frames: int
    returns: dict[str, float]
    successes: dict[str, bool | None]


def check_path(path: Path) -> None:
    """Checks that a video can be written to `path`; for callers about to play episodes for it.

    Raises:
        ConfigError: a suffix other than .gif, .webp and .mp4. PathError: there is a folder at `path`, or no way to write there.
        MissingDependencyError: .mp4 without imageio-ffmpeg; the message suggests .gif.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"a video's name ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}; got {path.name!r}")
    if path.suffix == ".mp4":
        _ffmpeg()
    require_writable(path)


def record(
    policy: M3DTAgent | VectorPolicy | str,
    tasks: Sequence[TaskSpec],
    path: str | Path,
    config: EvalConfig | None = None,
    *,
    progress: bool = False,
) -> Recording:
    """Plays the first episode of each of the first `MAX_TASKS` tasks and writes the video, completely or not at all.

    Args:
        policy: as `evaluate` takes it.
        config: its `seed`, `stop_on_success` and `rtg_mode` are used, the other fields are not; None is `EvalConfig()`.

    Raises:
        ConfigError: no tasks, or a suffix other than .gif, .webp and .mp4.
        MissingDependencyError: .mp4 without imageio-ffmpeg, or a simulator that is not installed.
        M3DTError: no OpenGL context can be opened; the message says how to choose a backend.
        DiskSpaceError: the disk is full.
    """
    path, shown, config = Path(path), tuple(tasks[:MAX_TASKS]), config or EvalConfig()
    check_path(path)
    if not shown:
        raise ConfigError("a video needs at least one task")
    with _opened(shown, config.stop_on_success) as stage:
        frames = list(
            tqdm(stage.play(as_policy(policy, config), config.seed), desc="video", unit="frame", disable=not progress)
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    _WRITERS[path.suffix](path, frames)
    returns = {task.name: float(value) for task, value in zip(shown, stage.returns, strict=True)}
    return Recording(path, len(frames), returns, {task.name: stage.success(i) for i, task in enumerate(shown)})


class _Stage:
    """The environments of N tasks, and what has happened in their episodes so far."""

    def __init__(self, tasks: Sequence[TaskSpec], envs: Sequence[gym.Env[Any, Any]]) -> None:
        N = len(tasks)
        self.tasks, self._envs = tuple(tasks), tuple(envs)
        self.returns, self._rewards = np.zeros(N), np.zeros(N)
        self._observations = np.zeros((N, padded_widths(tasks)[0]), np.float32)
        self._succeeded, self._active = np.zeros(N, bool), np.ones(N, bool)
        self._pictures: list[Image.Image] = []

    def success(self, i: int) -> bool | None:
        """Whether the episode of task `i` has succeeded so far; None if the task has no success."""
        return bool(self._succeeded[i]) if self.tasks[i].has_success else None

    def play(self, policy: VectorPolicy, seed: int) -> Iterator[Image.Image]:
        """Plays one episode of every task; yields the grid at the start, at every k-th step and at the end."""
        every = math.ceil(max(task.max_episode_steps for task in self.tasks) / (FPS * MAX_SECONDS - 2))
        policy.reset(self.tasks, [(seed,)] * len(self.tasks))
        for i, env in enumerate(self._envs):
            self._see(i, env.reset(seed=seed)[0])
        self._pictures = [_tile(env) for env in self._envs]
        yield self._grid()
        starts, step = np.ones(len(self.tasks), bool), 0
        while self._active.any():
            reward = self._rewards.copy() if step else None  # copies: a policy may change what it is given
            actions = policy.act(self._observations.copy(), reward=reward, reset_mask=starts, active=self._active.copy())
            starts, step = np.zeros_like(starts), step + 1
            acting = np.flatnonzero(self._active).tolist()
            self._rewards = np.zeros_like(self._rewards)
            for i in acting:
                self._step(i, actions[i])
            for i in acting:
                if step % every == 0 or not self._active[i]:
                    self._pictures[i] = _tile(self._envs[i])
            if step % every == 0 or not self._active.any():
                yield self._grid()

    def _step(self, i: int, action: npt.NDArray[np.float32]) -> None:
        observation, reward, terminated, truncated, info = self._envs[i].step(action[: self.tasks[i].act_dim])
        self._see(i, observation)
        self._rewards[i] = float(reward)
        self.returns[i] += float(reward)
        self._succeeded[i] = info.get("success", False)
        self._active[i] = not (terminated or truncated)

    def _see(self, i: int, observation: npt.NDArray[np.float32]) -> None:
        self._observations[i, : observation.size] = observation

    def _grid(self) -> Image.Image:
        columns = math.ceil(math.sqrt(len(self.tasks)))
        rows = math.ceil(len(self.tasks) / columns)
        height = TILE + CAPTION_HEIGHT
        grid = Image.new("RGB", (columns * TILE, rows * height), "white")
        draw, font = ImageDraw.Draw(grid), ImageFont.load_default()
        for i, (task, picture) in enumerate(zip(self.tasks, self._pictures, strict=True)):
            x, y = i % columns * TILE, i // columns * height
            grid.paste(picture, (x, y))
            state = "success" if self._succeeded[i] else "" if self._active[i] else "over"
            draw.text((x + 4, y + TILE + 3), task.name, "black", font)
            draw.text((x + 4, y + TILE + 17), f"return {self.returns[i]:.1f}  {state}", "black", font)
        return grid


@contextlib.contextmanager
def _opened(tasks: Sequence[TaskSpec], stop_on_success: bool) -> Iterator[_Stage]:
    with contextlib.ExitStack() as stack:
        envs: list[gym.Env[Any, Any]] = []
        for task in tasks:
            env: gym.Env[Any, Any] = make_env(task, "rgb_array")
            stack.callback(env.close)
            envs.append(StopOnSuccess(env) if stop_on_success else env)
        yield _Stage(tasks, envs)


def _tile(env: gym.Env[Any, Any]) -> Image.Image:
    frame: Any = env.render()
    return Image.fromarray(frame).resize((TILE, TILE), Image.Resampling.BOX)


def _write_gif(path: Path, frames: Sequence[Image.Image]) -> None:
    # one palette for all frames: with a palette for each frame, even what stands still would flicker
    some = frames[:: max(1, len(frames) // 8)]
    width, height = frames[0].size
    mosaic = Image.new("RGB", (width, height * len(some)))
    for i, frame in enumerate(some):
        mosaic.paste(frame, (0, i * height))
    palette = mosaic.quantize(256)
    first, *rest = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    content = io.BytesIO()
    first.save(content, "GIF", save_all=True, append_images=rest, duration=_GIF_MILLISECONDS, loop=0)
    write_file(path, content.getvalue())


def _write_webp(path: Path, frames: Sequence[Image.Image]) -> None:
    first, *rest = frames
    content = io.BytesIO()
    first.save(
        content, "WEBP", save_all=True, append_images=rest, duration=round(1000 / FPS), loop=0, quality=_WEBP_QUALITY, method=4
    )
    write_file(path, content.getvalue())


def _write_mp4(path: Path, frames: Sequence[Image.Image]) -> None:
    with whole_file(path) as temporary:
        writer = _ffmpeg().write_frames(str(temporary), frames[0].size, fps=FPS, ffmpeg_log_level="error")
        writer.send(None)
        for frame in frames:
            writer.send(frame.tobytes())
        writer.close()


_WRITERS = {".gif": _write_gif, ".webp": _write_webp, ".mp4": _write_mp4}


def _ffmpeg() -> Any:
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise MissingDependencyError(
            "an .mp4 needs imageio-ffmpeg, which is not installed: pip install imageio-ffmpeg, or write a .gif or .webp"
        ) from error
    return imageio_ffmpeg
