"""The directive `task-gallery DOMAIN`: a card for every task of a domain, from the tables of the package.

Widths and lengths come from `m3dt_agent.tasks`, the bank's scores from the front matter of its card, the behavior policies'
scores from the rows that were played beside it. A frame is shown where `_static/frames/<task>.webp` exists.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import ClassVar

import yaml
from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

from m3dt_agent import tasks
from m3dt_agent.scores import read_rows

ROOT = Path(__file__).parents[2]
CARD = ROOT / "m3dt_agent" / "assets" / "banks" / "mt160" / "README.md"
BEHAVIOR_ROWS = ROOT / "benchmarks/results/2026-11-29-pretrained/cells/cf74d058b880/rows-1.00.jsonl"
FRAMES = ROOT / "docs" / "_static" / "frames"


def bank_scores() -> dict[str, float]:
    """The score of `builtin:mt160` on every task, 0 to 100."""
    front_matter = yaml.safe_load(CARD.read_text().split("---\n")[1])
    scores = {}
    for result in front_matter["model-index"][0]["results"]:
        values = [metric["value"] for metric in result["metrics"] if metric["type"] == "normalized_score"]
        if values and result["dataset"]["name"] in {task.name for task in tasks.TASKS}:
            scores[result["dataset"]["name"]] = values[0]
    return scores


def behavior_scores() -> dict[str, float]:
    """The score of every task's behavior policy on the same episodes as the bank's, 0 to 100."""
    returns: dict[str, list[float]] = {}
    for row in read_rows(BEHAVIOR_ROWS):
        score = tasks.get(row.task).normalized_score(row.episode_return, row.success)
        returns.setdefault(row.task, []).append(score)
    return {task: sum(scores) / len(scores) for task, scores in returns.items()}


def card(task: tasks.TaskSpec, behavior_score: float | None, bank_score: float | None) -> str:
    """One task as HTML."""
    frame = FRAMES / f"{task.name}.webp"
    picture = (
        f'<img src="_static/frames/{frame.name}" alt="" loading="lazy">' if frame.exists() else '<div class="no-frame"></div>'
    )
    behavior = "\N{EN DASH}" if behavior_score is None else f"{behavior_score:.0f}"
    bank = "\N{EN DASH}" if bank_score is None else f"{bank_score:.0f}"
    goal = ""
    if task.goal_velocity is not None:
        goal = f" · {task.goal_velocity:.2f} m/s"
    elif task.goal_direction is not None:
        goal = f" · {task.goal_direction:.2f} rad"
    custom = ' <span class="custom">custom</span>' if task.custom else ""
    return (
        f'<figure class="task" id="{escape(task.name)}">{picture}<figcaption><b>{escape(task.name)}</b>{custom}<br>'
        f"{task.obs_dim} → {task.act_dim} · {task.max_episode_steps} steps{goal}<br>"
        f"behavior <b>{behavior}</b> · bank <b>{bank}</b></figcaption></figure>"
    )


class TaskGallery(Directive):
    """The cards of one domain."""

    required_arguments = 1
    option_spec: ClassVar = {}

    def run(self) -> list[nodes.Node]:
        behavior, bank = behavior_scores(), bank_scores()
        cards = [
            card(task, behavior.get(task.name), bank.get(task.name)) for task in tasks.TASKS if task.domain == self.arguments[0]
        ]
        return [nodes.raw("", f'<div class="gallery">{"".join(cards)}</div>', format="html")]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("task-gallery", TaskGallery)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
