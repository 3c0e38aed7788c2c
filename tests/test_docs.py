"""Every python and console snippet of README.md and docs/ runs, in the order a reader meets them, in one empty folder."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub
from huggingface_hub import constants

from m3dt_agent.cli import main
from m3dt_agent.hub import client

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "docs/data.md",
    "docs/training.md",
    "docs/cli.md",
    "docs/hub.md",
    "docs/benchmarks.md",
    "docs/performance.md",
    "docs/scaling.md",
)
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
        monkeypatch.setattr(client, "OFFICIAL_ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield


@pytest.mark.usefixtures("_hub")
def test_every_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for page in PAGES:
        names: dict[str, Any] = {"__name__": page}
        for where, language, code in snippets(page):
            run_snippet(where, language, code, names)


def test_pages_are_all_there_and_their_links_lead_somewhere() -> None:
    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} == set(PAGES) - {"README.md"}
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
            assert target.startswith("https://") or (ROOT / page).parent.joinpath(target).exists(), f"{page}: {target}"


def test_only_shell_snippets_are_not_run() -> None:
    languages = {language for page in PAGES for _, language, _ in snippets(page)}
    assert languages <= {"python", "console", "sh"}


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
