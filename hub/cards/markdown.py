"""What cards are written with: front matter and body, tables, and text that cannot become markup.

---
license: apache-2.0        `card` puts the Hub's metadata before the sections
…
---

<!-- Written by … -->
# namespace/name
| task | source |          `table`; cells that hold what a file said went through `escape`
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from huggingface_hub import CardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from m3dt_agent.bank.builtin import PREFIX, is_builtin
from m3dt_agent.errors import ConfigError

PAPER = "[arXiv 2505.24378](https://arxiv.org/abs/2505.24378)"

MARK = "<!-- Written by m3dt-agent. Remove this line to keep what you write here. -->"
"""In every card; a card without it was written by a person, and pushing leaves it alone."""

_FIGURE = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)*")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")
_ACTIVE = re.compile(r"[\\`*_{}\[\]()#!|~@:$^]|(?<=www)\.", re.IGNORECASE)


def card(metadata: CardData, sections: Iterable[str]) -> str:
    """The text of a README.md."""
    return f"---\n{metadata.to_yaml()}\n---\n\n{MARK}\n\n" + "\n\n".join(sections) + "\n"


def check_names(repo_id: str, figure: str | None, license: str) -> None:  # noqa: A002
    """Checks what the caller of a card gives, so that it can stand in Markdown and code as it is.

    Raises:
        ConfigError: a name neither the Hub nor a bank of the package has, a figure outside the repository, or a license that
            is no identifier.
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
    """`value` as Markdown that shows exactly its text, on one line: no markup, HTML, link or table cell begins in it."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _ACTIVE.sub(r"\\\g<0>", text)


def shown(value: object) -> str:
    """A setting as a cell: thousands separated, a dash where it is None, else escaped."""
    return "-" if value is None else f"{value:,}" if type(value) is int else escape(value)


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """A Markdown table of finished cells; the first `left` columns are aligned left, the others right."""
    rule = ["---" if i < left else "---:" for i in range(len(header))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def figure_lines(figure: str | None, what: str) -> list[str]:
    """The section that shows `figure`, if there is one."""
    return [f"![{what}]({figure})"] if figure else []


def count(n: int, noun: str) -> str:
    """`n` things: 1 task, 160 tasks."""
    return f"{n:,} {noun}{'s' * (n != 1)}"
