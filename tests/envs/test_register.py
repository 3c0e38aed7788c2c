"""Registration: 160 ids, no simulator imported, and a missing simulator named with the extra that brings it."""

from __future__ import annotations

import subprocess
import sys

import gymnasium as gym
import pytest

from m3dt_agent import tasks
from m3dt_agent.envs import register

SIMULATORS = ("mujoco", "metaworld", "dm_control", "shimmy")


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_160_ids_are_registered_once() -> None:
    register()
    before = dict(gym.registry)
    register()
    assert dict(gym.registry) == before
    specs = [gym.spec(task.env_id) for task in tasks.TASKS]
    assert len({spec.id for spec in specs}) == 160
    for task, spec in zip(tasks.TASKS, specs, strict=True):
        assert isinstance(spec.entry_point, str), "class entry points break EnvSpec.to_json"
        assert spec.max_episode_steps == task.max_episode_steps
        assert spec.kwargs == {"task": task.name}


def test_registering_imports_no_simulator() -> None:
    loaded = _python(
        "import sys; from m3dt_agent.envs import register; register(); import m3dt_agent.envs.vector; "
        f"print([name for name in {SIMULATORS} if name in sys.modules])"
    )
    assert loaded.strip() == "[]"


@pytest.mark.parametrize(
    ("missing", "env_id"),
    [
        ("metaworld", "M3DT/reach-v0"),
        ("dm_control", "M3DT/walker-run-v0"),
        ("shimmy", "M3DT/walker-run-v0"),
        ("dm_control", "M3DT/cup-spin-v0"),
        ("mujoco", "M3DT/ant-dir-0-v0"),
    ],
)
def test_a_missing_simulator_is_named_with_its_extra(missing: str, env_id: str) -> None:
    message = _python(
        f"import sys; sys.modules[{missing!r}] = None\n"
        "import gymnasium as gym; from m3dt_agent.envs import register; from m3dt_agent.errors import MissingDependencyError\n"
        "register()\n"
        f"try: gym.make({env_id!r})\n"
        "except MissingDependencyError as error: print(error)"
    )
    assert missing in message
    assert "pip install 'm3dt-agent[envs]'" in message
