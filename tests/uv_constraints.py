"""The pins of constraints.txt as uv reads them: the block at the end of pyproject.toml.

uv takes pins from pyproject.toml only (`[tool.uv] constraint-dependencies`). `make uv` writes them there; a test compares.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
FIRST, LAST = "# from constraints.txt, by `make uv`\n", "# end of what `make uv` writes\n"


def pins() -> list[str]:
    """The lines of constraints.txt that are no comments."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def block() -> str:
    """What stands between the two comments in pyproject.toml, with them."""
    quoted = " ".join(f'"{pin.replace(" ", "")}",' for pin in pins())
    lines = textwrap.fill(quoted, 120, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)
    return f"{FIRST}constraint-dependencies = [\n{lines}\n]\n{LAST}"


def written(project: str) -> str:
    """The text of pyproject.toml with the block as it must be."""
    return re.sub(f"{re.escape(FIRST)}.*{re.escape(LAST)}", lambda _: block(), project, flags=re.DOTALL)


if __name__ == "__main__":
    file = ROOT / "pyproject.toml"
    file.write_text(written(file.read_text()))
