"""Every python and console snippet of README.md and docs/ runs, in the order a reader meets them, in one empty folder."""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub
from huggingface_hub import constants
from test_imports import LAYERS

from m3dt_agent.cli import main
from m3dt_agent.hub import endpoints

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "docs/index.md",
    "docs/get-started.md",  # makes the datasets and the bank that later pages use
    "docs/install.md",
    "docs/own-tasks.md",
    "docs/growing.md",  # with the grown bank of the page before
    "docs/m3dt.md",
    "docs/tasks.md",
    "docs/data.md",
    "docs/training.md",
    "docs/view.md",
    "docs/cli.md",
    "docs/export.md",
    "docs/hub.md",
    "docs/benchmarks.md",
    "docs/performance.md",
    "docs/numbers.md",
    "docs/scaling.md",
    "docs/security.md",
    "docs/architecture.md",
)
INCLUDING = ("docs/changelog.md", "docs/cluster.md", "docs/contributing.md", "docs/pretrained.md")
"""Pages that only include a file from elsewhere in the repository."""
LINKING = (*PAGES, *INCLUDING, "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/pretrained.md", "examples/cluster.md")
ANCHORS = (
    *("tasks-and-environments", "data", "model", "training", "bank", "hub", "agent", "evaluation"),
    *("custom-dmcontrol-rewards", "sources-of-numbers"),
)
"""Sections of docs/architecture.md that the code points to."""
_SNIPPET = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

for _simulator in ("metaworld", "dm_control", "shimmy", "mujoco"):
    pytest.importorskip(_simulator)


def snippets(page: str) -> list[tuple[str, str, str]]:
    """(where, language, code) of a page's fenced blocks."""
    text = (ROOT / page).read_text()
    return [(f"{page}:{text.count(chr(10), 0, m.start()) + 1}", m[1], m[2]) for m in _SNIPPET.finditer(text)]


def run_snippet(where: str, language: str, code: str, names: dict[str, Any]) -> None:
    """Runs a snippet; python blocks of a page share `names`."""
    if language == "python":
        exec(compile(code, where, "exec"), names)
    elif language == "console":
        for line in code.splitlines():
            program, *arguments = shlex.split(line.removeprefix("$ "))
            assert program == "m3dt", f"{where}: console snippets show m3dt commands; got {program!r}"
            assert main(arguments) == 0, f"{where}: {line}"


@pytest.fixture
def _hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A loopback Hub in the place of huggingface.co, with the reader logged in as "me"."""
    folder = tmp_path_factory.mktemp("hub")
    with Hub(folder / "hub", tokens={"hf_me": "me"}) as hub:
        monkeypatch.setenv("HF_TOKEN", "hf_me")
        monkeypatch.setattr(endpoints, "OFFICIAL_ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield


@pytest.mark.usefixtures("_hub", "own_registry")
def test_every_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for page in PAGES:
        names: dict[str, Any] = {"__name__": page}
        for where, language, code in snippets(page):
            run_snippet(where, language, code, names)


def test_the_method_on_the_page_is_the_example() -> None:
    code = [code for _, language, code in snippets("docs/benchmarks.md") if language == "python" and "NetworkMethod" in code]
    assert code == [(ROOT / "examples/method_package/mlp_bc.py").read_text()]
    assert code[0].count("\n") <= 40


def test_pages_are_all_there() -> None:
    found = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    assert found == {page for page in (*PAGES, *INCLUDING) if page.startswith("docs/")}
    listed = set(re.findall(r"^([\w/-]+)$", (ROOT / "docs/index.md").read_text(), re.MULTILINE))
    assert {path.removeprefix("docs/").removesuffix(".md") for path in found - {"docs/index.md"}} <= listed


def slugs(path: Path) -> set[str]:
    """What GitHub and the site call the headings of a page, and the explicit targets of the page."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKING)
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            assert re.fullmatch(r"https://[\w.-]+\.\w+(/\S*)?", target), f"{page}: {target}"
            continue
        name, _, anchor = target.partition("#")
        file = (ROOT / page).parent / name if name else ROOT / page
        assert file.exists(), f"{page}: {target}"
        assert not anchor or anchor in slugs(file), f"{page}: {target}"


def test_the_code_points_to_sections_that_exist() -> None:
    sections = slugs(ROOT / "docs/architecture.md")
    assert set(ANCHORS) <= sections
    for folder in ("m3dt_agent", "hub", "benchmarks", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            for page, anchor in re.findall(r"(docs/[\w-]+\.md)(?:#([\w-]+))?", path.read_text()):
                assert (ROOT / page).exists(), f"{path}: {page}"
                assert not anchor or anchor in slugs(ROOT / page), f"{path}: {page}#{anchor}"


def test_every_room_has_its_place_in_the_reference() -> None:
    """That every public name of these modules has an entry, the build of the site checks (docs/_ext/docstrings.py)."""
    documented = {
        name for page in (ROOT / "docs/api").glob("*.md") for name in re.findall(r"public-module:: (\S+)", page.read_text())
    }
    package = ROOT / "m3dt_agent"
    rooms = {path.stem for path in package.glob("*.py")} | {path.parent.name for path in package.glob("*/__init__.py")}
    expected = {f"m3dt_agent.{room}" for room in rooms - {"__init__", "cli", "data", "system"}}
    expected |= {
        f"m3dt_agent.{name}" for name in ("data.collect", "data.episodes", "data.task_datasets", "data.behavior", "hub.banks")
    }
    assert expected <= documented


def test_the_house_is_drawn_as_its_walls_are() -> None:
    """If not, add the words for a new room to docs/draw_house.py and run it."""
    house = runpy.run_path(str(ROOT / "docs/draw_house.py"))
    assert house["DRAWING"].read_text() == house["drawing"](LAYERS)


def test_only_shell_snippets_are_not_run() -> None:
    languages = {language for page in PAGES for _, language, _ in snippets(page)}
    assert languages <= {"python", "console", "sh", "text"}


def test_commands_that_are_not_run_have_options_that_exist() -> None:
    from typer.main import get_command

    from m3dt_agent.cli import app

    commands = get_command(app).commands  # type: ignore[attr-defined]
    found = 0
    for page in (*PAGES, "examples/cluster.md"):
        for where, language, code in snippets(page):
            for line in (
                re.findall(r"(?:m3dt|-m m3dt_agent\.cli) (\w.*)", code.replace("\\\n", " ")) if language == "sh" else ()
            ):
                words = shlex.split(line, comments=True)
                command = commands[words[0]]
                command = command.commands[words[1]] if hasattr(command, "commands") else command
                options = {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}
                assert {word for word in words if word.startswith("--")} <= options | {"--help"}, f"{where}: {line}"
                found += 1
    assert found > 10
