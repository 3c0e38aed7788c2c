"""One frame of each domain, drawn without a display by OSMesa in a process of its own (the backend is chosen at import)."""

from __future__ import annotations

import ctypes.util
import os
import subprocess
import sys
from pathlib import Path

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


# -- a backend that is not there -----------------------------------------------------------------------------------------------

NO_LIBRARY = """
import ctypes

class Missing(ctypes.CDLL):
    def __init__(self, name, *args, **settings):
        if name and "OSMesa" in str(name):
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")
        super().__init__(name, *args, **settings)

ctypes.CDLL = Missing
ctypes.cdll._dlltype = Missing
import ctypes.util
found = ctypes.util.find_library
ctypes.util.find_library = lambda name: None if "OSMesa" in name else found(name)
"""
BACKENDS = {
    "osmesa": "MUJOCO_GL=osmesa needs the library OSMesa (apt install libosmesa6)",
    "mesa": "MUJOCO_GL='mesa' is no backend; it must be egl, osmesa or glfw",
    "off": "MUJOCO_GL=off switches drawing off",
    "glfw": "MUJOCO_GL=glfw needs a display",
}
ALL_DOMAINS = """
import sys
import gymnasium as gym
import m3dt_agent
from m3dt_agent.errors import M3DTError
from m3dt_agent.system.machine import try_rendering
for name in ("reach", "walker-run", "ant-dir-3"):
    env = gym.make(f"M3DT/{name}-v0", render_mode="rgb_array")
    env.reset(seed=1)
    env.step(env.action_space.sample())
    try:
        env.render()
    except M3DTError as error:
        print(error)
    env.close()
print(try_rendering(sys.argv[1]))
"""


@pytest.fixture
def no_osmesa(tmp_path: Path) -> dict[str, str]:
    """The environment of a process that finds neither the library OSMesa nor a display."""
    (tmp_path / "sitecustomize.py").write_text(NO_LIBRARY)
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    return {**environment, "PYTHONPATH": path}


@pytest.mark.skipif(sys.platform != "linux", reason="the backends are Linux's")
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_does_not_draw_works_without_opengl_and_what_draws_says_what_is_missing(
    backend: str, no_osmesa: dict[str, str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALL_DOMAINS, backend],
        env={**no_osmesa, "MUJOCO_GL": backend},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4, done.stdout
    for name, line in zip(("reach", "walker-run", "ant-dir-3"), lines, strict=False):
        assert line.startswith(f"M3DT/{name}-v0: cannot open an OpenGL context: {BACKENDS[backend]}"), line
        assert "set MUJOCO_GL to glfw, egl or osmesa" in line
    assert lines[3].startswith(BACKENDS[backend])
    for noise in ("GLFWError", "__del__", "Traceback", "glGetError"):
        assert noise not in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere glfw needs no DISPLAY")
def test_a_video_without_a_renderer_is_one_line_and_no_file(no_osmesa: dict[str, str], tmp_path: Path) -> None:
    command = ["eval", "zero", "walker-run", "--episodes", "1", "--workers", "0", "--video", str(tmp_path / "new" / "film.gif")]
    done = subprocess.run(
        [sys.executable, "-m", "m3dt_agent.cli", *command],
        env={name: value for name, value in no_osmesa.items() if name != "MUJOCO_GL"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert "MUJOCO_GL, which is not set, needs a display" in done.stderr
    assert not list((tmp_path / "new").iterdir())
