"""The wheel holds every module and works in an empty environment, away from the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from contracts import random_bank, random_datasets

from m3dt_agent.config import ModelConfig
from m3dt_agent.tasks import get

ROOT = Path(__file__).parents[1]
BANK = "m3dt_agent/assets/banks/tiny"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy, since setuptools would pick up what earlier builds left in the checkout's build/; builtin:tiny
    is put into it, with a card."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", "m3dt_program.py"):
        shutil.copy(ROOT / name, source)
    for name in ("m3dt_agent", "hub"):
        shutil.copytree(ROOT / name, source / name)
    data = random_datasets(tmp_path_factory.mktemp("datasets"), ["walker-run", "reach"])
    made = random_bank(tmp_path_factory.mktemp("made") / "bank", data, ModelConfig.preset("tiny"))
    made.copy_to(source / BANK, storage="bfloat16")
    (source / BANK / "README.md").write_text("# tiny\n")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(out), str(source)], check=True)
    return next(out.glob("*.whl"))


def test_wheel_holds_every_module_and_asset(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    expected = {str(p.relative_to(ROOT)) for p in (ROOT / "m3dt_agent").rglob("*.py")}
    expected |= {f"m3dt_agent/{p.relative_to(ROOT)}" for p in (ROOT / "hub").rglob("*.py")}
    expected |= {str(p.relative_to(ROOT)) for p in (ROOT / "m3dt_agent/assets").rglob("*") if p.is_file()}
    files = ("bank.json", "README.md", *(f"{part}.safetensors" for part in ("backbone", "router", "statistics", "prompts")))
    expected |= {f"{BANK}/{name}" for name in (*files, *(f"experts/{e:03d}.safetensors" for e in range(3)))}
    assert expected | {"m3dt_agent/py.typed", "m3dt_program.py"} <= packed
    assert not any(name.split("/")[0] in ("hub", "benchmarks", "tests") for name in packed)


def run_in(folder: Path, python: Path, code: str) -> str:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([python, "-c", code], cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def bare_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel; it borrows the dependencies of this one, since a second torch would be 700 MB."""
    home = tmp_path_factory.mktemp("bare")
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    site = next((home / "lib").glob("python*")) / "site-packages"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True)
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_every_module_imports_from_the_wheel(bare_python: Path, tmp_path: Path) -> None:
    code = """
import importlib, pkgutil, m3dt_agent
print(m3dt_agent.__file__)
for module in pkgutil.walk_packages(m3dt_agent.__path__, "m3dt_agent."):
    importlib.import_module(module.name)
    print(module.name)
"""
    printed = run_in(tmp_path, bare_python, code).splitlines()
    assert str(ROOT) not in printed[0]
    files = [p.relative_to(ROOT / "m3dt_agent") for p in (ROOT / "m3dt_agent").rglob("*.py")]
    files += [p.relative_to(ROOT) for p in (ROOT / "hub").rglob("*.py")]
    modules = {".".join(("m3dt_agent", *p.with_suffix("").parts)).removesuffix(".__init__") for p in files}
    assert modules - {"m3dt_agent"} <= set(printed[1:])


def test_the_command_lists_tasks_from_the_wheel(bare_python: Path, tmp_path: Path) -> None:
    """What the script `m3dt` does, which pip makes of the wheel's entry point."""
    code = """
import sys
from importlib.metadata import distribution
(entry,) = (entry for entry in distribution("m3dt-agent").entry_points if entry.name == "m3dt")
sys.argv = ["m3dt", "tasks", "--json"]
sys.exit(entry.load()())
"""
    listed = run_in(tmp_path, bare_python, code)
    assert '"walker-run"' in listed


def test_a_builtin_bank_acts_from_the_wheel(bare_python: Path, tmp_path: Path) -> None:
    """Offline and away from any folder; what is found is what was packed."""
    code = """
import json, socket, sys
import numpy as np
def refuse(*_): raise AssertionError("no network")
socket.socket.connect = refuse
from m3dt_agent import M3DTAgent
from m3dt_agent.cli import main
agent = M3DTAgent.from_pretrained("builtin:tiny")
agent.reset(task="walker-run")
action = agent.act(np.zeros(24))
print(json.dumps([str(agent.bank.path), agent.bank.storage, agent.experts, action.shape, bool(np.abs(action).max() > 0)]))
print(main(["info", "builtin:tiny", "--json"]), main(["info", "builtin:other"]))
"""
    printed = run_in(tmp_path, bare_python, code).splitlines()
    path, *found = json.loads(printed[0])
    assert path.endswith(BANK)
    assert str(ROOT) not in path
    assert found == ["bfloat16", "mixture", [6], True]
    assert printed[-1] == "0 1"


def test_the_wheel_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size <= 25e6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["drawer-open", "cartpole-balance", "ant-dir-10", "cheetah-vel-22"])
def test_the_first_snippet_of_the_readme_scores_as_the_card_says(name: str, bare_python: Path, tmp_path: Path) -> None:
    """With the bank of the package, on a task of each domain; one episode, so at least half of the card's mean score."""
    task = get(name)
    if task.domain == "metaworld":
        pytest.importorskip("metaworld")
    elif task.domain == "dmcontrol":
        pytest.importorskip("dm_control")
    else:
        pytest.importorskip("mujoco")
    snippet = (ROOT / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert 'from_pretrained("builtin:mt160")' in snippet
    printed = run_in(tmp_path, bare_python, snippet.replace("drawer-open", name) + '\nprint(bool(info.get("success")))')
    found, success = printed.splitlines()[-2:]
    score = task.normalized_score(float(found.removeprefix("return ")), success == "True")
    card = (ROOT / "m3dt_agent" / "assets" / "banks" / "mt160" / "README.md").read_text()
    row = next(line for line in card.splitlines() if line.startswith(f"| {name} | {task.domain} |"))
    assert score >= float(row.split("|")[5]) / 2


def test_a_bank_acts_from_the_wheel(bare_python: Path, tmp_path: Path) -> None:
    data = random_datasets(tmp_path / "datasets", ["walker-run", "reach"])
    random_bank(tmp_path / "bank", data, ModelConfig.preset("tiny"))
    code = """
import numpy as np
from m3dt_agent import M3DTAgent
agent = M3DTAgent.from_pretrained("bank")
agent.reset(task="walker-run")
action = agent.act(np.zeros(24))
print(action.dtype, action.shape, bool(np.abs(action).max() <= 1))
"""
    assert run_in(tmp_path, bare_python, code).split("\n")[0] == "float32 (6,) True"
