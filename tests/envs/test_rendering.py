"""One frame of each domain, drawn without a display by OSMesa in a process of its own (the backend is chosen at import)."""

from __future__ import annotations

import ctypes.util
import os
import subprocess
import sys

import pytest

pytest.importorskip("metaworld", reason="the simulators are not installed: pip install 'm3dt-agent[envs]'")

SCRIPT = """
import sys
import gymnasium as gym
import m3dt_agent
env = gym.make(sys.argv[1], render_mode="rgb_array")
env.reset(seed=1)
env.action_space.seed(1)
first = env.render().copy()
for _ in range(15):
    env.step(0.3 * env.action_space.sample())  # an ant that jumps ends its episode
frame = env.render()
assert frame.shape == (480, 480, 3) and frame.dtype == "uint8", (frame.shape, frame.dtype)
assert frame.std() > 20, "an empty picture"
assert (frame != first).any(), "nothing moved"
env.close()
silent = gym.make(sys.argv[1])
silent.reset(seed=1)
assert silent.unwrapped.render() is None
"""


@pytest.mark.skipif(ctypes.util.find_library("OSMesa") is None, reason="OSMesa is not installed: apt install libosmesa6")
@pytest.mark.parametrize("task", ["reach", "walker-run", "ant-dir-3", "cheetah-vel-25"])
def test_a_frame(task: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, f"M3DT/{task}-v0"],
        env={**os.environ, "MUJOCO_GL": "osmesa"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr


NO_DISPLAY = """
import gymnasium as gym
import m3dt_agent
from m3dt_agent.errors import M3DTError
env = gym.make("M3DT/ant-dir-3-v0", render_mode="rgb_array")
env.reset(seed=1)
try:
    env.render()
except M3DTError as error:
    print(error)
env.close()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere glfw needs no DISPLAY")
def test_without_a_display_the_error_names_the_way_out() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", NO_DISPLAY],
        env={**environment, "MUJOCO_GL": "glfw"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert "M3DT/ant-dir-3-v0" in done.stdout
    assert "MUJOCO_GL=osmesa" in done.stdout
