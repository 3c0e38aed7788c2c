"""What the project says of its installation: one list of pins for pip and uv, and Python versions that are true."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
import uv_constraints

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_uv_has_the_pins_of_pip(project: dict[str, Any]) -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert uv_constraints.written(text) == text, "constraints.txt has changed; run `make uv`"
    assert project["tool"]["uv"]["constraint-dependencies"] == [pin.replace(" ", "") for pin in uv_constraints.pins()]


def test_every_package_that_is_asked_for_is_pinned(project: dict[str, Any]) -> None:
    pinned = {normal(re.split("[=<>]", pin)[0]) for pin in uv_constraints.pins()}
    extras = project["project"]["optional-dependencies"]
    asked = [*project["project"]["dependencies"], *(one for extra in extras.values() for one in extra)]
    names = {normal(re.split(r"[\[=<>~; ]", requirement)[0]) for requirement in asked} - {"m3dt-agent"}
    assert names <= pinned
    torch = [pin for pin in uv_constraints.pins() if pin.startswith("torch==")]
    assert len(torch) == 1


def test_the_python_versions_agree(project: dict[str, Any]) -> None:
    """labmaze, which dm_control needs, has no wheels for later ones, and metaworld needs at least 3.10."""
    found = project["project"]
    assert found["requires-python"] == ">=3.11,<3.13"
    named = [line.rpartition(" ")[2] for line in found["classifiers"] if line.startswith("Programming Language :: Python ::")]
    assert named == ["3.11", "3.12"]
    assert any(line.startswith("labmaze") for line in requires("dm_control") or [])
    assert "Python 3.11 or 3.12" in (ROOT / "README.md").read_text()


def test_the_extra_all_is_every_feature(project: dict[str, Any]) -> None:
    extras = project["project"]["optional-dependencies"]
    (everything,) = extras["all"]
    assert set(everything.removeprefix("m3dt-agent[").removesuffix("]").split(",")) == set(extras) - {
        "all",
        "dev",
        "docs",
        "notebook",
    }


def normal(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()
