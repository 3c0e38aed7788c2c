"""Exported files: they act as the agent does, whole episodes long, and say what they are."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_tasks import SWING

from m3dt_agent import tasks
from m3dt_agent.agent import Experts, M3DTAgent
from m3dt_agent.bank import ExpertBank
from m3dt_agent.config import EvalConfig
from m3dt_agent.envs.vector import MixedTaskVectorEnv
from m3dt_agent.errors import ConfigError, MissingDependencyError, PathError, StageError, UnknownTaskError
from m3dt_agent.evaluation import AgentPolicy, evaluate
from m3dt_agent.export import Description, ExportedPolicy, export_policy
from m3dt_agent.model import Routing
from m3dt_agent.tasks import TaskSpec
from m3dt_agent.tasks.spaces import to_env

for _package in ("onnx", "onnxscript", "onnxruntime", "mujoco"):
    pytest.importorskip(_package)

TOLERANCE = 1e-5
EIGHT = (
    *("reach", "drawer-open", "button-press", "walker-run", "cartpole-balance", "finger-spin"),
    *("ant-dir-3", "cheetah-vel-25"),
)
FIRST = EvalConfig(episodes=1, seed=0, slots=1, workers=0)
EXAMPLE = Path(__file__).parents[2] / "examples" / "act_without_torch.py"
WITHOUT = """
import importlib.abc, runpy, sys

class Nothing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "m3dt_agent", "onnx"):
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Nothing())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a program where torch, this package and onnx cannot be imported."""


@pytest.fixture(scope="module")
def file(bank: ExpertBank, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mixture of the bank's agent in all three tasks."""
    path = tmp_path_factory.mktemp("file") / "policy.onnx"
    agent = M3DTAgent.load(bank.path)
    export_policy(agent, [task.name for task in agent.tasks], path)
    return path


def largest_differences(agent: M3DTAgent, file: Path, specs: Sequence[TaskSpec], seed: int = 10_000) -> dict[str, float]:
    """Task name → the largest difference between actions of the file and of the agent, which plays one whole episode of each.

    The file's history holds its own actions.
    """
    ours, theirs, N = ExportedPolicy(file, threads=1), AgentPolicy(agent), len(specs)
    env = MixedTaskVectorEnv(specs, workers=0)
    obs, _ = env.reset(seed=[seed] * N)
    ours.reset(specs, [()] * N), theirs.reset(specs, [()] * N)
    active, starts, reward, worst = np.ones(N, bool), np.ones(N, bool), np.zeros(N), np.zeros(N)
    while active.any():
        wanted = theirs.act(obs, reward=reward, reset_mask=starts, active=active)
        acted = ours.act(obs, reward=reward, reset_mask=starts, active=active)
        worst = np.maximum(worst, np.abs(acted - wanted).max(1))
        obs, reward, terminated, truncated, _ = env.step(wanted)
        active, starts = active & ~(terminated | truncated), np.zeros(N, bool)
    env.close()
    return {task.name: float(difference) for task, difference in zip(specs, worst, strict=True)}


def test_whole_episodes_are_the_agents(agent: M3DTAgent, file: Path, own_registry: None) -> None:
    tasks.register(SWING)
    found = largest_differences(agent, file, agent.tasks)
    assert max(found.values()) < TOLERANCE, found


def test_the_action_is_in_the_environments_bounds_and_a_reset_forgets(agent: M3DTAgent, file: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file))
    rng = np.random.default_rng(0)
    state = {"history": np.full((1, 4, 48), np.nan, np.float32), "return_to_go": np.array([np.nan]), "timestep": np.array([7])}
    observations = rng.normal(size=(6, 3)).astype(np.float32)
    agent.reset("own-swing")
    for t, obs in enumerate(observations):
        agents = agent.act(obs, reward=-5.0, reset_mask=np.array(t == 4))
        given = {"observation": np.pad(obs, (0, 24))[None], "reward": np.array([-5.0]), "reset": np.array([t in (0, 4)])}
        action, *after = session.run(None, given | state | {"task": np.array([0])})
        state = dict(zip(state, after, strict=True))
        np.testing.assert_allclose(action[0, :1], to_env(SWING, agents), rtol=0, atol=2 * TOLERANCE)
        assert (action[0, 1:] == 0).all()
    assert state["timestep"].tolist() == [1]


def test_the_document_says_what_the_file_is(bank: ExpertBank, file: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file))
    text = file.with_suffix(".json").read_text()
    description = Description.from_json(text, file)
    assert ExportedPolicy(file).description.tasks == description.tasks
    for named, tensors in ((session.get_inputs(), description.inputs), (session.get_outputs(), description.outputs)):
        assert [(one.name, len(one.shape)) for one in named] == [(one.name, len(one.shape)) for one in tensors]
        for one, other in zip(named, tensors, strict=True):
            assert [n for n in one.shape if isinstance(n, int)] == [n for n in other.shape if isinstance(n, int)]
    document = json.loads(text)
    assert document["bank_hash"] == bank.content_hash
    assert document["kept_experts"] == [[0, 1, 2]]
    (swing, *_) = document["tasks"]
    assert (swing["name"], swing["env"], swing["obs_dim"], swing["act_dim"]) == ("own-swing", "Pendulum-v1", 3, 1)
    assert (swing["action_low"], swing["action_high"], swing["target_return"]) == ([-2.0], [2.0], 100.0)


def test_what_cannot_be_exported_is_refused(agent: M3DTAgent, bank: ExpertBank, tmp_path: Path, file: Path) -> None:
    to = tmp_path / "policy.onnx"
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "other.json").write_text("{}")
    one = "own-swing"
    for where in (file, tmp_path / "folder.onnx", tmp_path / "other.onnx"):
        with pytest.raises(PathError, match="exists"):
            export_policy(agent, one, where)
    with pytest.raises(ConfigError, match=r"NAME\.onnx"):
        export_policy(agent, one, tmp_path / "policy")
    with pytest.raises(UnknownTaskError, match="own-swin"):
        export_policy(agent, "own-swin", to)
    with pytest.raises(UnknownTaskError, match="reach"):
        export_policy(agent, ["own-swing", "reach"], to)
    with pytest.raises(ConfigError, match="no tasks"):
        export_policy(agent, [], to)
    with pytest.raises(ConfigError, match=r"in \[0, 1\)"):
        export_policy(agent, one, to, least_share=1.0)
    agent.experts = 1
    with pytest.raises(ConfigError, match="of the mixture"):
        export_policy(agent, one, to, least_share=0.1)
    with pytest.raises(ConfigError, match="only an agent in float32"):
        export_policy(M3DTAgent.load(bank.path, precision="bfloat16"), one, to)
    with pytest.raises(StageError):
        export_policy(M3DTAgent(bank.config, bank.tasks), one, to)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.onnx", "other.json"]


def test_the_extra_is_named_where_it_is_missing(agent: M3DTAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"m3dt-agent\[export\]"):
        export_policy(agent, "own-swing", tmp_path / "policy.onnx")


def test_the_command_refuses_in_one_line(bank: ExpertBank, tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = run("export", bank.path, "own-swing", "ant-dir-4", "--to", tmp_path / "policy.onnx")
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert "ant-dir-4" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow  # an export takes seconds
def test_the_command_and_the_example_that_needs_no_torch(
    bank: ExpertBank, tmp_path: Path, run: Callable[..., tuple[int, str, str]], own_registry: None
) -> None:
    to = tmp_path / "policy.onnx"
    code, out, err = run("export", bank.path, "own-swing", "--to", to, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["bytes"] == to.stat().st_size
    assert [tensor["name"] for tensor in document["inputs"]] == [
        *("observation", "reward", "reset", "history", "return_to_go", "timestep"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(EXAMPLE), str(to)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    tasks.register(SWING)
    (row,) = evaluate(M3DTAgent.load(bank.path), [SWING], FIRST, progress=False)
    assert done.stdout == f"Pendulum-v1: return {row.episode_return:.2f}\n"
    (again,) = evaluate(ExportedPolicy(to, threads=1), [SWING], FIRST, progress=False)
    assert again.episode_return == pytest.approx(row.episode_return, rel=1e-4)
    assert (again.policy, again.bank_hash) == ("m3dt-mixture-onnx", bank.content_hash)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experts", "options"),
    [("none", {}), (1, {}), (Routing(mass=0.9), {}), ("mixture", {"least_share": 0.34}), ("mixture", {"int8": True})],
    ids=str,
)
def test_every_choice_of_experts(
    agent: M3DTAgent, tmp_path: Path, own_registry: None, experts: Experts, options: dict[str, Any]
) -> None:
    tasks.register(SWING)
    agent.experts = experts
    description = export_policy(agent, "own-swing", tmp_path / "policy.onnx", **options)
    if "least_share" in options:
        assert len(description.kept_experts[0]) < 3
        assert description.tasks[0].left_out_share > 0
    (difference,) = largest_differences(agent, tmp_path / "policy.onnx", [SWING]).values()
    assert (difference < TOLERANCE) == (not options), difference
    if not options:
        assert description.largest_difference < TOLERANCE


@pytest.mark.slow
def test_eight_tasks_of_the_bank_of_the_package(tmp_path: Path) -> None:
    agent = M3DTAgent.load("builtin:mt160")
    export_policy(agent, EIGHT, tmp_path / "policy.onnx")
    found = largest_differences(agent, tmp_path / "policy.onnx", tasks.resolve(EIGHT))
    assert max(found.values()) < TOLERANCE, found
