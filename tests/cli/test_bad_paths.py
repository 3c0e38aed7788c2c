"""Every command with every kind of bad path: one line that names it, exit code 1, nothing half-written (see bad_paths.py)."""

from __future__ import annotations

import ctypes
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from bad_paths import CASES, MORE, NEW_TASK, ROOM, TASK, Outcome, outcome
from contracts import random_bank, random_datasets

from m3dt_agent.cli.app import app
from m3dt_agent.cli.program import CONTINUES
from m3dt_agent.cli.shared.options import expanded
from m3dt_agent.config import ModelConfig
from m3dt_agent.hub.convert_weights import write_published

TASKS = (TASK, "cheetah-vel-4")
KINDS = [(*case, kind) for case, (kinds, _) in (CASES | MORE).items() for kind in kinds]
QUICK = [(*case, kind) for case, (kinds, _) in (CASES | MORE).items() for kind in kinds[:1]]
Outcomes = dict[tuple[str, str, str], Outcome]
KEEPS = CONTINUES | {"data pack"}
_PERMISSIONS = (1, 2, 3)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
_PR_CAPBSET_DROP = 24


def path_parameters(commands: typer.Typer, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(command, parameter) of everything on the command line that is, or may be, a path."""
    named = {"": commands.registered_callback, **{command.name: command for command in commands.registered_commands}}
    for name, command in named.items():
        callback = None if command is None else command.callback
        for parameter in inspect.signature(callback, eval_str=True).parameters.values() if callback else ():
            if any(getattr(one, "callback", None) is expanded for one in getattr(parameter.annotation, "__metadata__", ())):
                yield f"{prefix}{name}", parameter.name
            else:
                assert "Path" not in str(parameter.annotation), f"{name} {parameter.name} must be a path_option"
    for group in commands.registered_groups:
        assert group.typer_instance is not None
        yield from path_parameters(group.typer_instance, f"{prefix}{group.name} ")


def obey_permissions() -> None:
    """Takes from this process, if it is root's, the right to ignore permissions, before it starts a program."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None)
        for right in _PERMISSIONS:
            assert libc.prctl(_PR_CAPBSET_DROP, right, 0, 0, 0) == 0


@pytest.fixture(scope="module")
def quick_outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    return outcomes_of(tmp_path_factory, "1")


@pytest.fixture(scope="module")
def all_outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    return outcomes_of(tmp_path_factory)


def outcomes_of(tmp_path_factory: pytest.TempPathFactory, *kinds: str) -> Outcomes:
    pytest.importorskip("mujoco")
    made = tmp_path_factory.mktemp("made")
    data = random_datasets(made / "datasets", TASKS)
    random_datasets(made / "more", (NEW_TASK,))
    bank = random_bank(made / "bank", data, ModelConfig.preset("tiny", n_experts=2))
    bank.commit({}, groups=dict(zip(TASKS, (0, 1), strict=True)))
    write_published(bank, made / "published", allow_standard_residual=True)
    environment = {**os.environ, "HOME": str(made), "HF_HOME": str(made / "hf"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parents[1] / "bad_paths.py"), str(made), *kinds],
        env=environment | {"MUJOCO_GL": "osmesa", "OMP_NUM_THREADS": "1"},
        preexec_fn=obey_permissions if sys.platform == "linux" else None,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [outcome(json.loads(line)) for line in done.stdout.splitlines() if line.startswith("{")]
    return {(one.command, one.parameter, one.kind): one for one in found}


def test_the_table_has_every_path_of_every_command() -> None:
    assert set(path_parameters(app)) == set(CASES)


@pytest.mark.parametrize("case", QUICK, ids=", ".join)
def test_a_bad_path(quick_outcomes: Outcomes, case: tuple[str, str, str]) -> None:
    check(quick_outcomes[case])


@pytest.mark.slow
@pytest.mark.parametrize("case", KINDS, ids=", ".join)
def test_every_kind_of_bad_path(all_outcomes: Outcomes, case: tuple[str, str, str]) -> None:
    check(all_outcomes[case])


def check(found: Outcome) -> None:
    if "pip install" in found.stderr:
        pytest.skip(found.stderr)
    assert found.code == 1, found.stderr
    assert found.stdout == "" or (found.command, found.parameter, found.kind) == (
        "eval",
        "rows",
        "full disk",
    )  # whose table is printed all the same
    assert found.stderr.startswith("error: ")
    assert found.stderr.count("\n") == 1, found.stderr
    parts = Path(found.bad)
    assert str(parts) in found.stderr or str(parts.parent) in found.stderr, f"{found.stderr} does not name {found.bad}"
    if found.command in KEEPS:  # what they finished stays, so that they can continue; no file of it is cut off
        assert not any(what.endswith(f" {ROOM['']} bytes") for what in found.changed.values())
    else:
        assert found.changed == {}
