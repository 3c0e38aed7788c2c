"""`m3dt play`: the evaluated episode, from Python, as a command, and as a video (drawn in a process of its own)."""

from __future__ import annotations

import ctypes.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from contracts import random_bank, random_datasets
from PIL import Image

from m3dt_agent.agent import M3DTAgent
from m3dt_agent.bank import ExpertBank, builtin
from m3dt_agent.config import EVALUATION_SEED, EvalConfig, ModelConfig
from m3dt_agent.errors import UnknownTaskError
from m3dt_agent.evaluation import evaluate
from m3dt_agent.evaluation.one_episode import play

pytest.importorskip("metaworld", reason="the simulators are not installed: pip install 'm3dt-agent[envs]'")
needs_osmesa = pytest.mark.skipif(
    ctypes.util.find_library("OSMesa") is None, reason="OSMesa is not installed: apt install libosmesa6"
)

NAMES = ("cheetah-vel-20", "reach")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> ExpertBank:
    """Of random weights; not to be changed."""
    folder = tmp_path_factory.mktemp("play")
    bank = random_bank(folder / "bank", random_datasets(folder / "data", NAMES), ModelConfig.preset("tiny", n_experts=2))
    bank.commit({}, groups=dict(zip(NAMES, (0, 1), strict=True)))
    return bank


@pytest.mark.parametrize(
    ("task", "options"), [(NAMES[0], {}), (NAMES[0], {"rtg_mode": "constant"}), (NAMES[1], {"stop_on_success": True})]
)
def test_what_is_played_is_the_evaluated_episode(bank: ExpertBank, task: str, options: dict[str, Any]) -> None:
    agent = M3DTAgent.load(bank.path)
    agent.experts = 1
    played = play(agent, task, seed=7, **options)
    (row,) = evaluate(agent, [task], EvalConfig(1, 7, slots=1, workers=0, **options))
    assert (played.task, played.seed, played.policy, played.bank_hash) == (task, 7, "m3dt-expert-1", bank.content_hash)
    assert (played.episode_return, played.length, played.success) == (row.episode_return, row.length, row.success)
    assert played.normalized_score == row.normalized_score
    assert played.decisions_per_second > 0
    assert played.video is None
    assert (played.success is None) == (task == "cheetah-vel-20")


def test_a_task_the_agent_does_not_have_is_named(bank: ExpertBank) -> None:
    agent = M3DTAgent.load(bank.path)
    for task in ("reach-wall", "rech"):
        with pytest.raises(UnknownTaskError, match=f"unknown task.* '{task}'; did you mean"):
            play(agent, task)


def test_the_command_prints_the_episode(bank: ExpertBank, run: Run) -> None:
    code, out, _ = run("play", "cheetah-vel-20", "--bank", bank.path, "--json")
    played = json.loads(out)
    assert code == 0
    assert (played["seed"], played["length"], played["policy"], played["success"]) == (
        EVALUATION_SEED,
        200,
        "m3dt-mixture",
        None,
    )
    code, out, _ = run(
        "play", "cheetah-vel-20", "--bank", bank.path, "--seed", 3, "--max-experts", 1, "--precision", "bfloat16"
    )
    assert code == 0
    for text in ("cheetah-vel-20, seed 3", "m3dt-routed", "return", "normalized score", "200 steps", "decisions a second"):
        assert text in out
    code, out, _ = run("play", "cheetah-vel-20", "--bank", bank.path, "--experts", "none", "--json")
    assert (code, json.loads(out)["policy"]) == (0, "m3dt-backbone")


def test_the_command_plays_the_bank_of_the_package(
    bank: ExpertBank, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builtin, "FOLDER", tmp_path / "banks")
    code, out, err = run("play", "cheetah-vel-20")
    assert (code, out) == (1, "")
    assert "there is no bank 'builtin:mt160' in this installation of m3dt-agent: it comes with none" in err
    small = bank.copy_to(tmp_path / "banks" / "mt160", storage="bfloat16")
    code, out, _ = run("play", "cheetah-vel-20", "--json")
    assert (code, json.loads(out)["bank_hash"]) == (0, small.content_hash)


def test_errors_are_one_line_that_names_what_came(bank: ExpertBank, run: Run, tmp_path: Path) -> None:
    for arguments, message in (
        (("rech", "--bank", bank.path), "did you mean reach"),
        (("reach-wall", "--bank", bank.path), "reach-wall"),
        (("reach", "--bank", "nowhere"), "no bank at nowhere"),
        (("reach", "--bank", "builtin:other"), "builtin:other"),
        (("reach", "--bank", bank.path, "--experts", 7), "got 7"),
        (("reach", "--bank", bank.path, "--experts", "none", "--max-experts", 2), "go with --experts mixture"),
        (("reach", "--bank", bank.path, "--seed", -1), "seed"),
        (("reach", "--bank", bank.path, "--video", tmp_path / "video.avi"), "a video's name ends in .gif, .webp or .mp4"),
    ):
        code, out, err = run("play", *arguments)
        assert (code, out, err.count("\n")) == (1, "", 1), arguments
        assert message in err
    assert run("play")[0] == 2
    assert not list(tmp_path.iterdir())


def play_in_a_process(bank: ExpertBank, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    command = ["play", "cheetah-vel-20", "--bank", str(bank.path), "--json", *arguments]
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "m3dt_agent.cli", *command],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=180,
    )


@pytest.mark.slow
@needs_osmesa
def test_the_video_is_of_the_episode_that_is_reported(bank: ExpertBank, tmp_path: Path) -> None:
    path = tmp_path / "made" / "video.gif"
    done = play_in_a_process(bank, "--video", str(path), "--seed", "5", MUJOCO_GL="osmesa")
    assert done.returncode == 0, done.stderr
    played, expected = json.loads(done.stdout), play(M3DTAgent.load(bank.path), "cheetah-vel-20", seed=5)
    assert played["video"] == str(path)
    assert (played["length"], played["success"]) == (expected.length, expected.success)
    assert played["episode_return"] == pytest.approx(expected.episode_return, rel=1e-6)
    with Image.open(path) as video:
        assert video.n_frames > 50


@pytest.mark.slow  # tests/envs/test_rendering.py has a quick one
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere glfw needs no DISPLAY")
def test_without_a_renderer_there_is_a_plain_error_and_no_file(bank: ExpertBank, tmp_path: Path) -> None:
    done = play_in_a_process(bank, "--video", str(tmp_path / "video.gif"), MUJOCO_GL="glfw")
    assert (done.returncode, done.stdout) == (1, "")
    assert "set MUJOCO_GL to glfw, egl or osmesa" in done.stderr
    assert not list(tmp_path.iterdir())
