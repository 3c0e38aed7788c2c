"""Draws docs/_static/house.svg, the rooms of the package on their floors, from the walls in tests/test_imports.py.

    python docs/draw_house.py

`tests/test_docs.py` fails when the drawing is not that of the walls.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
DRAWING = ROOT / "docs" / "_static" / "house.svg"
STYLE_OF = DRAWING.with_name("stages.svg")
"""The drawing whose colours this one has too."""
ROOMS = {
    "adapters": "SB3, Meta-World",
    "agent": "reset, act",
    "bank": "the folder of tensors",
    "cli": "the m3dt command",
    "config": "settings",
    "data": "Minari in, batches out",
    "envs": "environments",
    "errors": "what is raised",
    "evaluation": "episodes, videos",
    "export": "ONNX files",
    "hub": "Hub, published files",
    "jobs": "processes, Ray",
    "model": "the network",
    "quickstart": "eight tasks, from nothing",
    "scores": "rows, scores, figures",
    "system": "machine, disk, text",
    "tasks": "what a task is",
    "training": "three stages",
    "view": "pages to look at",
}
"""Room → a few words."""
BENCHMARKS = {
    "records": "rows and cells",
    "settings": "what they mean",
    "perf": "speed",
    "experiments": "what is planned",
    "methods": "what is compared",
    "runs": "cells, data, publishing",
    "report": "statistics, figures, page",
    "studies": "learning curves, routing",
}
LIVE = {"agent", "training", "bank", "model", "data"}
"""Rooms in which data becomes an agent."""
WIDTH, FLOOR, ROOM, GAP, LEFT = 520, 52, 44, 10, 20


def drawing(layers: Sequence[set[str]]) -> str:
    """The SVG of these floors, the ground floor first."""
    height = len(layers) * FLOOR
    shapes = [shape for i, layer in enumerate(layers) for shape in _floor(sorted(layer), 10 + (len(layers) - 1 - i) * FLOOR)]
    wing = [f'<rect class="frozen" x="580" y="10" width="190" height="{44 + 64 * len(BENCHMARKS)}" rx="6"/>']
    wing.append('<text class="title" x="675" y="34">benchmarks</text>')
    for i, (name, words) in enumerate(reversed(BENCHMARKS.items())):
        wing += _room(name, words, "box", 594, 48 + 64 * i, 162, 52)
    arrow = '<path class="line" marker-end="url(#head)" d="M578 270 L544 270"/>'
    return "\n".join([*_head(height), *shapes, *wing, arrow, "</svg>"]) + "\n"


def _head(height: int) -> list[str]:
    label = "The house: a room imports only from floors below its own; benchmarks may import all, nothing imports benchmarks."
    style = re.search(r"<style>.*?</style>", STYLE_OF.read_text(), re.DOTALL)
    marker = re.search(r"<defs>.*?</defs>", STYLE_OF.read_text(), re.DOTALL)
    assert style is not None
    assert marker is not None
    total = max(height, 44 + 64 * len(BENCHMARKS)) + 32
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-10 -10 810 {total}" width="810" height="{total}" role="img" '
        f'aria-label="{label}">',
        style[0],
        f'<rect class="card" x="-9.5" y="-9.5" width="809" height="{total - 1}" rx="10"/>',
        marker[0],
    ]


def _floor(names: Sequence[str], y: int) -> list[str]:
    width = (WIDTH - GAP * (len(names) - 1)) / len(names)
    rooms = [(name, LEFT + i * (width + GAP)) for i, name in enumerate(names)]
    return [s for name, x in rooms for s in _room(name, ROOMS[name], "live" if name in LIVE else "box", x, y, width, ROOM)]


def _room(name: str, words: str, kind: str, x: float, y: int, width: float, height: int) -> list[str]:
    middle = f"{x + width / 2:.1f}"
    return [
        f'<rect class="{kind}" x="{x:.1f}" y="{y}" width="{width:.1f}" height="{height}" rx="6"/>',
        f'<text x="{middle}" y="{y + height / 2 - 3.5:.1f}">{name}</text>',
        f'<text class="small" x="{middle}" y="{y + height / 2 + 12.5:.1f}">{words}</text>',
    ]


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))
    from test_imports import LAYERS

    DRAWING.write_text(drawing(LAYERS))
