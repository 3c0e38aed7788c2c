"""Methods of installed packages: found by name, planned as baselines, and refused with the package's name if they are none."""

from __future__ import annotations

from pathlib import Path

import pytest
from method_runs import put_example_on_path, put_on_path

from benchmarks.experiments import Arm, cells
from benchmarks.methods import METHODS, added_settings, installed, method
from m3dt_agent.errors import ConfigError, UnknownTaskError

GOOD = """
from benchmarks.methods import NetworkMethod
METHOD = NetworkMethod(make=None, settings={"width": 3})
"""
NOT_ONE = """
from types import SimpleNamespace
def train(work, fraction): ...
none = 3
kind = type("Kind", (), {"train": train, "task_id": "none", "fractions": ("1.00",)})
untrained = SimpleNamespace(task_id="none", fractions=("1.00",))
text = SimpleNamespace(train=train, task_id="none", fractions="1.00")
unfinished = SimpleNamespace(train=train, task_id="none", fractions=("0.75",))
falling = SimpleNamespace(train=train, task_id="none", fractions=("0.75", "0.50", "1.00"))
numbers = SimpleNamespace(train=train, task_id="none", fractions=(0.75, 1.0))
words = SimpleNamespace(train=train, task_id="none", fractions=("half", "1.00"))
uses = SimpleNamespace(train=train, task_id="sometimes", fractions=("1.00",))
empty = SimpleNamespace(train=train, task_id="none", fractions=())
"""


def test_a_method_of_an_installed_package_is_a_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_example_on_path(tmp_path, monkeypatch)
    assert installed.names() == ["mlp-bc"]
    assert method("mlp-bc").fractions == ("0.75", "1.00")
    assert added_settings("mlp-bc") == {"width": 256, "layers": 3, "package": "mlp-bc 0.1.0"}
    with pytest.raises(UnknownTaskError, match="did you mean mlp-bc"):
        method("mlp-cb")
    with pytest.raises(UnknownTaskError, match="did you mean mlp-bc"):
        added_settings("mlp-cb")


def test_our_own_methods_have_no_settings_more() -> None:
    assert [added_settings(name) for name in list(METHODS)[:3]] == [{}] * 3


def test_it_is_planned_with_the_settings_of_a_baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_example_on_path(tmp_path, monkeypatch)
    ours, theirs, all_of_them = (Arm(name, added_settings(name)) for name in ("prompt-dt", "mlp-bc", "m3dt-gradient"))
    planned = {cell.method: cell for cell in cells("methods", "smoke", [theirs, ours, all_of_them])}
    assert list(planned) == ["mlp-bc", "prompt-dt", "m3dt-gradient"]
    assert {cell.id for cell in planned.values()} - {cell.id for cell in cells("methods", "smoke")} == {planned["mlp-bc"].id}
    assert planned["mlp-bc"].settings == {**planned["prompt-dt"].settings, **theirs.settings}
    assert planned["mlp-bc"].tasks == planned["prompt-dt"].tasks
    widths = cells("table1", "smoke", [ours])
    assert widths == [cell for cell in cells("table1", "smoke") if cell.method == "prompt-dt"], "all arms of the method"
    assert len({cell.settings["embed_dim"] for cell in widths}) == 2


def test_another_version_is_another_cell_and_is_not_run_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_on_path(tmp_path, monkeypatch, GOOD, package="my-package")
    assert method("mine", "my-package 1.0") is method("mine")
    with pytest.raises(ConfigError, match=r"'mine' of my-package 0\.9 is to be run, and it is that of my-package 1\.0 here"):
        method("mine", "my-package 0.9")
    with pytest.raises(ConfigError, match=r"'other' of my-package 0\.9 is to be run, and it is not installed here"):
        method("other", "my-package 0.9")
    cell, other = (cells("methods", "smoke", [Arm("mine", {"package": p})])[0] for p in ("my-package 1.0", "my-package 0.9"))
    assert cell.id != other.id


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import nothing_of_this_name", "ModuleNotFoundError"),
        ("raise RuntimeError('broken')", "broken"),
        ("METHODS = {}", "AttributeError"),
        ("def (", "SyntaxError"),
    ],
)
def test_a_package_whose_code_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, reason: str) -> None:
    put_on_path(tmp_path, monkeypatch, code, package="broken-package")
    with pytest.raises(ConfigError, match=rf"'my_method:METHOD' of broken-package 1\.0 cannot be loaded: .*{reason}"):
        method("mine")
    assert method("prompt-dt") is METHODS["prompt-dt"], "the others work"


@pytest.mark.parametrize(
    "name",
    ["none", "kind", "untrained", "text", "unfinished", "falling", "numbers", "words", "uses", "empty"],
)
def test_what_is_no_method_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    put_on_path(tmp_path, monkeypatch, NOT_ONE, value=f"my_method:{name}", package="my-package")
    with pytest.raises(ConfigError, match=rf"'my_method:{name}' of my-package 1\.0 must name an object with `train"):
        method("mine")


@pytest.mark.parametrize("settings", ["3", "{'a': float('nan')}", "{'a': object()}", "{'a': (1, 2)}", "{1: 2}"])
def test_settings_are_what_json_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: str) -> None:
    put_on_path(tmp_path, monkeypatch, GOOD.replace('{"width": 3}', settings), package="my-package")
    with pytest.raises(ConfigError, match=r"my-package 1\.0: `settings` must be a mapping that JSON can hold"):
        method("mine")


def test_a_name_has_one_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_on_path(tmp_path, monkeypatch, GOOD, name="prompt-dt", package="my-package")
    with pytest.raises(ConfigError, match=r"'prompt-dt' comes from my-package 1\.0, but the benchmark has a method"):
        method("prompt-dt")
    for package in ("one", "two"):
        folder = tmp_path / package
        folder.mkdir()
        put_on_path(folder, monkeypatch, GOOD, package=package)
    with pytest.raises(ConfigError, match=r"'mine' comes from (one 1\.0 and two|two 1\.0 and one) 1\.0, but only one"):
        method("mine")
