"""Markdown for cards: front matter and body, tables, and escaping, which keeps text from becoming markup.

---
license: apache-2.0        `card` puts the Hub's metadata before the sections
…
---

<!-- Written by … -->
# namespace/name
| task | source |          `table`; text that comes from a file goes through `escape` first
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from huggingface_hub import CardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from m3dt_agent import tasks as task_table
from m3dt_agent.bank.builtin import PREFIX, is_builtin
from m3dt_agent.errors import ConfigError
from m3dt_agent.tasks import TaskSpec

PAPER = "[arXiv 2505.24378](https://arxiv.org/abs/2505.24378)"

MARK = "<!-- Written by m3dt-agent. Remove this line to keep what you write here. -->"
"""The mark of every card made here. A push leaves a card without it alone, because a person wrote it."""

_FIGURE = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)*")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")
_STARTS = re.compile(r"^([-+=](?=[-+=\s])|\d+(?=\.\s))")  # lists, rules, underlined titles
_ACTIVE = re.compile(r"[\\`*_{}\[\]()#!|~@:$^]|(?<=www)\.", re.IGNORECASE)


def card(metadata: CardData, sections: Iterable[str]) -> str:
    """The text of a README.md."""
    return f"---\n{metadata.to_yaml()}\n---\n\n{MARK}\n\n" + "\n\n".join(sections) + "\n"


def check_names(repo_id: str, figure: str | None, license: str) -> None:  # noqa: A002
    """Checks the caller's names, so that they can be written into Markdown and code unchanged.

    Raises:
        ConfigError: `repo_id` is neither an id on the Hub nor a bank of the package, `figure` is not inside the repository, or
            `license` is not an identifier.
    """
    checked = repo_id.replace(PREFIX, "namespace/", 1) if is_builtin(repo_id) else repo_id
    try:
        validate_repo_id(checked)
    except HFValidationError as error:
        raise ConfigError(f"a card is for a repository of the Hub, 'namespace/name': {error}") from error
    if checked.count("/") != 1:
        raise ConfigError(f"a card is for a repository of the Hub, 'namespace/name'; got {repo_id!r}")
    if figure is not None and not _FIGURE.fullmatch(figure):
        raise ConfigError(f"figure must be a path inside the repository, such as 'scores.png'; got {figure!r}")
    if not _LICENSE.fullmatch(license):
        raise ConfigError(f"license must be one of the Hub's identifiers, such as 'apache-2.0' or 'mit'; got {license!r}")


def escape(value: object) -> str:
    """Markdown that shows the text of `value` on one line, and in which no markup, HTML, link or table cell begins."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = _ACTIVE.sub(r"\\\g<0>", text)
    return _STARTS.sub(lambda found: f"{found[0]}\\" if found[0].isdigit() else f"\\{found[0]}", text)


def shown(value: object) -> str:
    """A setting as a table cell: an integer with thousands separated, None as a dash, anything else escaped."""
    return "-" if value is None else f"{value:,}" if type(value) is int else escape(value)


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """A Markdown table of cells that are valid Markdown; the first `left` columns are aligned left, the others right."""
    rule = ["---" if i < left else "---:" for i in range(len(header))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def own_task_sections(specs: Iterable[TaskSpec], text: str) -> list[str]:
    """The section with the specs of tasks that are not among the 160, as TOML; empty if there are none. text: comes first."""
    own = [spec for spec in specs if not task_table.is_builtin(spec)]
    if not own:
        return []
    advice = "read these tables, put them into a file, and name it with `m3dt --tasks FILE`."
    return ["## Tasks of one's own", f"{text}, {advice}", f"```toml\n{task_table.to_toml(own)}```"]


def figure_lines(figure: str | None, what: str) -> list[str]:
    """The paragraph that shows `figure`; empty without one."""
    return [f"![{what}]({figure})"] if figure else []


def count(n: int, noun: str) -> str:
    """A number with its noun: 1 task, 160 tasks."""
    return f"{n:,} {noun}{'s' * (n != 1)}"
