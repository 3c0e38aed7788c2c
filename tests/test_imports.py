"""Who may import whom (DESIGN section 2), and what importing the package may load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = [
    {"errors"},
    {"jobs", "ray_jobs"},
    {"tasks", "config"},
    {"envs", "data"},
    {"model", "scores"},  # scores are arithmetic on rows: cards put them into model cards, so they lie left of the hub
    {"bank", "bank_files", "bank_journal", "bank_storage", "builtin_banks"},
    {"shipping"},
    {"training", "hub"},
    {"act_inputs", "agent", "history"},
    {"adapters", "evaluation", "evaluation_jobs"},
    {"plots", "doctor", "videos", "play"},
    {"quickstart", "quickstart_parts"},
    {"cli", "cli_bench", "cli_console", "cli_convert", "cli_data", "cli_eval", "cli_hub", "cli_info", "cli_play", "cli_train"},
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
FORBIDDEN = {"data": {"envs"}, "model": {"envs"}, "hub": {"training", "agent", "envs"}}
FILES = sorted([*(ROOT / "m3dt_agent").rglob("*.py"), *(ROOT / "hub").glob("*.py")])


def part_of(path: Path) -> str:
    """The part of the house a file belongs to: `data`, `model`, `hub`, …"""
    if path.parent == ROOT / "hub":
        return "hub"
    return path.relative_to(ROOT / "m3dt_agent").parts[0].removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    """The parts of this package that a file imports, at any depth of its code."""
    here = ["m3dt_agent", "hub"] if part_of(path) == "hub" else list(path.relative_to(ROOT).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(here[: len(here) - node.level + 1]) + "." if node.level else ""
            names = [f"{base}{node.module + '.' if node.module else ''}{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("m3dt_agent.")}
    return found & set(RANK)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_leftward(path: Path) -> None:
    part = part_of(path)
    if part == "__init__":
        return
    assert part in RANK, f"{path} belongs to no layer; add it to LAYERS and say why in its docstring"
    for other in imported_parts(path) - {part}:
        assert RANK[other] <= RANK[part], f"{path} imports {other}, which lies to its right"
        assert other not in FORBIDDEN.get(part, set()), f"{part} must not import {other}"


def test_no_file_names_benchmarks_or_the_source_folder_hub() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if getattr(node, "level", 0):  # relative: `.hub` is m3dt_agent.hub
                continue
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None) or ""]
            assert not any(name.split(".")[0] in ("benchmarks", "hub") for name in names), path


SIMULATORS = "mujoco metaworld dm_control shimmy minari sklearn matplotlib tensorboard stable_baselines3 jax pandas"


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import m3dt_agent", f"{SIMULATORS} torch h5py huggingface_hub safetensors typer rich"),
        ("from m3dt_agent import M3DTAgent, ExpertBank, TaskDatasets", f"{SIMULATORS} h5py typer rich"),
        ("from m3dt_agent.cli import main; main(['--help'])", f"{SIMULATORS} torch h5py huggingface_hub safetensors"),
    ],
)
def test_what_starting_up_does_not_load(code: str, heavy: str) -> None:
    code += f"; import sys; print(sorted(set('{heavy}'.split()) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_names_that_load_late_are_there_all_the_same() -> None:
    import m3dt_agent
    from m3dt_agent import bank

    assert set(m3dt_agent.__all__) <= set(dir(m3dt_agent))
    assert m3dt_agent.ExpertBank is bank.ExpertBank
    for name in m3dt_agent.__all__:
        assert getattr(m3dt_agent, name) is not None
    with pytest.raises(ImportError, match="M3DTAgents"):
        exec("from m3dt_agent import M3DTAgents")


def test_all_160_ids_are_registered() -> None:
    import gymnasium as gym

    import m3dt_agent

    assert {task.env_id for task in m3dt_agent.tasks.TASKS} <= set(gym.registry)
