"""Videos: the evaluated episodes, all in one grid, really drawn by OSMesa in a process of its own (chosen at import)."""

from __future__ import annotations

import ctypes.util
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from m3dt_agent.cli import main
from m3dt_agent.errors import ConfigError, MissingDependencyError
from m3dt_agent.evaluation import videos
from m3dt_agent.evaluation.videos import CAPTION_HEIGHT, FPS, MAX_SECONDS, TILE, check_path, record
from m3dt_agent.tasks import get

pytest.importorskip("metaworld", reason="the simulators are not installed: pip install 'm3dt-agent[envs]'")
needs_osmesa = pytest.mark.skipif(
    ctypes.util.find_library("OSMesa") is None, reason="OSMesa is not installed: apt install libosmesa6"
)

NAMES = ("drawer-open", "cheetah-vel-25")
SCRIPT = """
import json, math, sys
from m3dt_agent.config import EvalConfig
from m3dt_agent.evaluation import evaluate
from m3dt_agent.tasks import get
from m3dt_agent.evaluation.videos import record
names, config = sys.argv[2:], EvalConfig(episodes=1, seed=3, workers=0, stop_on_success=True)
made = record("expert", [get(name) for name in names], sys.argv[1], config)
rows = evaluate("expert", names, config)
assert made.returns == {row.task: row.episode_return for row in rows}, (made, rows)
assert made.successes == {row.task: row.success for row in rows}, (made, rows)
print(json.dumps({"frames": made.frames, "lengths": [row.length for row in rows]}))
"""


def recorded(path: Path, *names: str) -> dict[str, Any]:
    """Records, compares with an evaluation, and returns the number of frames and the lengths of the episodes."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(path), *names],
        env={**os.environ, "MUJOCO_GL": "osmesa"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@needs_osmesa
@pytest.mark.slow
def test_a_grid_of_the_evaluated_episodes(tmp_path: Path) -> None:
    path = tmp_path / "made" / "video.gif"
    found = recorded(path, *NAMES)
    every = -(-500 // (FPS * MAX_SECONDS - 2))
    assert found["lengths"][0] < 200 == found["lengths"][1], "drawer-open ends at success"
    assert found["frames"] == 1 + -(-200 // every)
    with Image.open(path) as video:
        assert video.size == (2 * TILE, TILE + CAPTION_HEIGHT)
        assert (video.n_frames, video.info["loop"]) == (found["frames"], 0)
        assert video.n_frames * video.info["duration"] <= 1000 * MAX_SECONDS
        assert video.info["duration"] >= 1000 / 25
        frames = []
        for i in range(video.n_frames):
            video.seek(i)
            frames.append(np.asarray(video.convert("RGB"), np.int64))
    first, *_, before, last = frames
    for name, x in zip(NAMES, (0, TILE), strict=True):
        pictures = [frame[:TILE, x : x + TILE] for frame in (first, before, last)]
        captions = [frame[TILE:, x : x + TILE] for frame in (first, last)]
        assert pictures[2].std() > 20, f"{name}: an empty picture"
        assert np.abs(pictures[2] - pictures[0]).mean() > 0.5, f"{name}: nothing moved"
        moves = (pictures[2] != pictures[1]).any()
        assert moves == (name != "drawer-open"), f"{name}: frozen when it is over, and only then"
        assert captions[0].min() < 60, f"{name}: no caption"
        assert (captions[0] != captions[1]).any(), f"{name}: the return stands still"
    assert [file.name for file in path.parent.iterdir()] == ["video.gif"]


def test_a_webp_moves_and_keeps_its_colours(tmp_path: Path) -> None:
    colours = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]
    videos._WRITERS[".webp"](tmp_path / "video.webp", [Image.new("RGB", (TILE, TILE), colour) for colour in colours])
    with Image.open(tmp_path / "video.webp") as video:
        assert (video.n_frames, video.info["loop"]) == (3, 0)
        for i, colour in enumerate(colours):
            video.seek(i)
            video.load()
            assert video.info["duration"] == round(1000 / FPS)
            np.testing.assert_allclose(np.asarray(video.convert("RGB"), float).mean(axis=(0, 1)), colour, atol=6)


@pytest.mark.slow
@needs_osmesa
@pytest.mark.skipif(importlib.util.find_spec("imageio_ffmpeg") is None, reason="imageio-ffmpeg is not installed")
def test_an_mp4(tmp_path: Path) -> None:
    import imageio_ffmpeg

    path = tmp_path / "video.mp4"
    found = recorded(path, "cheetah-vel-25")
    frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(path))
    assert frames == found["frames"]
    assert seconds == pytest.approx(frames / FPS, abs=0.1)
    assert [file.name for file in tmp_path.iterdir()] == ["video.mp4"]


def test_names_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("video.avi", "video", "gif"):
        with pytest.raises(ConfigError, match=r"\.gif, \.webp or \.mp4"):
            check_path(tmp_path / name)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(MissingDependencyError, match=r"pip install imageio-ffmpeg, or write a \.gif or \.webp"):
        check_path(tmp_path / "video.mp4")
    with pytest.raises(ConfigError, match="at least one task"):
        record("zero", [], tmp_path / "video.gif")
    assert not list(tmp_path.iterdir())


def test_the_command_says_what_is_wrong_before_it_evaluates(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    assert main(["eval", "zero", "cheetah-vel-25", "--rows", str(rows), "--video", str(tmp_path / "video.avi")]) == 1
    assert "a video's name ends in .gif, .webp or .mp4" in capsys.readouterr().err
    assert not rows.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere glfw needs no DISPLAY")
def test_without_a_renderer_there_is_a_plain_error_and_no_file(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    command = ["eval", "zero", get("cheetah-vel-25").name, "--episodes", "1", "--video", str(tmp_path / "video.gif")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "m3dt_agent.cli", *command],
        env={**environment, "MUJOCO_GL": "glfw"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "set MUJOCO_GL to glfw, egl or osmesa" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@needs_osmesa
def test_the_command_records_and_evaluates(tmp_path: Path) -> None:
    path = tmp_path / "video.gif"
    done = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-m", "m3dt_agent.cli", "eval", "zero", "cheetah-vel-25"),
            *("--episodes", "1", "--workers", "0", "--video", str(path), "--json"),
        ],
        env={**os.environ, "MUJOCO_GL": "osmesa"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["episodes"] == 1
    with Image.open(path) as video:
        assert video.size == (TILE, TILE + CAPTION_HEIGHT)


class Room:
    """An environment of five steps whose reward is the sum of the action; it draws a black frame."""

    def reset(self, *, seed: int) -> tuple[Any, dict[str, Any]]:
        self.steps = 0
        return np.ones(20, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return np.ones(20, np.float32), float(action.sum()), False, self.steps == 5, {}

    def render(self) -> Any:
        return np.zeros((8, 8, 3), np.uint8)


def test_a_policy_that_changes_what_it_is_given_changes_no_episode() -> None:
    class Greedy:
        name, bank_hash, padding = "greedy", "", 0.0

        def reset(self, *_: Any) -> None: ...

        def act(self, obs: Any, *, reward: Any, reset_mask: Any, active: Any) -> Any:
            self.padding += float(np.abs(obs[:, 20:]).sum())
            for given in (obs, reset_mask, active, *([] if reward is None else [reward])):
                given[:] = 0
            obs[:, 20:] = 7.0
            return np.ones((1, 8), np.float32)

    policy, stage = Greedy(), videos._Stage([get("cheetah-vel-25")], [Room()])  # type: ignore[list-item]
    assert len(list(stage.play(policy, 0))) >= 2
    assert (stage.returns.tolist(), policy.padding) == ([5 * get("cheetah-vel-25").act_dim], 0.0)
