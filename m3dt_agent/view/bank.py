"""The page of a bank: scores, which experts the router uses for which task, groups, learning curves, clips of chosen tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..agent import M3DTAgent
from ..bank import ExpertBank
from ..bank.builtin import is_builtin
from ..config import STAGES, EvalConfig
from ..data.episodes import find_sources
from ..data.task_datasets import TaskDatasets
from ..errors import UnknownTaskError
from ..hub.cards.scores import BEHAVIOR
from ..system.machine import shows_progress
from ..tasks import TaskSpec, by_group
from .bank_figures import heat_map, height, score_figure
from .bank_scores import Score, Scores, scores_of_bank
from .clips import Clip, bytes_each, clips_of_bank
from .page import COLOURS, Cell, Column, Page, number, percent, shorts
from .routing import MASS, RouterWeights, router_weights
from .run import training_section


@dataclass(frozen=True, slots=True)
class BankView:
    """What the parts of the page are made from. name: what commands call the bank. weights: None without a trained router."""

    bank: ExpertBank
    name: str
    tasks: tuple[TaskSpec, ...]
    scores: Scores
    weights: RouterWeights | None


def bank_page(
    bank: ExpertBank, name: str, rows: Sequence[Path], data: TaskDatasets | None, clips: Sequence[str], progress: bool | None
) -> Page:
    """The page of a bank.

    Args:
        name: what commands call it. rows: files of evaluated episodes. data: measure the router's weights on these, not on the
            bank's prompts. clips: tasks of which an episode is played and drawn. progress: whether to show a bar.

    Raises:
        UnknownTaskError: clips of a task that the bank does not have.
        ConfigError, DatasetError: rows that cannot be used. PathError: a file cannot be read.
    """
    by_name = {task.name: task for task in bank.tasks}
    if unknown := sorted(set(clips) - set(by_name)):
        raise UnknownTaskError(f"clips of {', '.join(unknown)}: bank {name} has no such task; m3dt info {name} lists its tasks")
    tasks = tuple(by_name[task] for of in by_group(bank.tasks).values() for task in of)
    scores, notes = scores_of_bank(bank, name, rows), list[str]()
    agent = M3DTAgent.load(bank.path) if bank.is_done("backbone") else None
    names = [task.name for task in tasks]
    view = BankView(bank, name, tasks, scores, _weights(bank, agent, data, notes))
    page = Page(f"Bank {name}", f"{len(tasks)} tasks. Click on a header to sort, on a task to see its experts.")
    page.facts(_facts(view))
    for note in (*notes, *scores.missing):
        page.note(note)
    page.table("tasks", _columns(view), [(task.name, _row(view, task)) for task in tasks], pick=True)
    page.panels(_LAYOUTS, {task.name: _traces(view, task.name) for task in tasks}, _films(view, agent, clips, progress))
    if scores.policies:
        page.heading("Scores")
        page.plot("scores", score_figure(names, scores), 110 + height(names))
    if view.weights is not None:
        page.heading("Experts")
        page.text(
            f"The router's weight of each expert, measured on {view.weights.origin}. Dots: the experts of the tasks' groups."
        )
        page.plot("experts", heat_map(names, view.weights, bank.groups or {}), 150 + height(names))
    _groups(page, view)
    _settings(page, bank)
    if not training_section(page, bank.path):
        page.note("The learning curves are in logs/ of the folder in which the bank was trained; this copy has none.")
    return page


def datasets_of(bank: ExpertBank, root: Path, source: str | None) -> TaskDatasets:
    """The datasets of those tasks of a bank that have one under `root`.

    Raises:
        DatasetError: none has, or a task has several and `source` is None. PathError: they cannot be read, or packed.
    """
    there = [task for task in bank.tasks if find_sources(root, task)]
    return TaskDatasets.open(root, there or bank.tasks, source)


def _weights(bank: ExpertBank, agent: M3DTAgent | None, data: TaskDatasets | None, notes: list[str]) -> RouterWeights | None:
    """The router's weights; None, and a note that says why, where they cannot be measured."""
    if agent is None or bank.default_experts != "mixture":
        missing = next((stage for stage in STAGES if not bank.is_done(stage)), "router")
        notes.append(f"Stage {missing} is not trained, so there is no router to show: m3dt train --stage {missing} trains it.")
        return None
    return router_weights(agent, data)


def _facts(view: BankView) -> dict[str, object]:
    bank, scores, config = view.bank, view.scores, view.bank.config
    facts: dict[str, object] = {
        "folder": "part of the package" if is_builtin(view.name) else bank.path,
        "content hash": bank.content_hash,
        "model": f"{config.embed_dim} wide, {config.n_layers} layers, {config.n_experts} experts per block",
        "stages": ", ".join(f"{stage} {bank.status(stage)}" for stage in STAGES),
        "files": f"{sum(one.bytes for one in bank.manifest.files.values()) / 1e6:,.1f} MB, weights stored as {bank.storage}",
    }
    for policy, found in scores.policies.items():
        values = [score.mean for score in found.values()]
        own = " (this bank)" if policy == scores.own else ""
        facts[f"{policy}{own}"] = f"mean score {np.mean(values):.1f} over {len(values)} tasks"
    return facts | ({"scores from": scores.origin} if scores.origin else {})


def _columns(view: BankView) -> list[Column]:
    columns = [Column("task", kind="words"), Column("domain", kind="words"), Column("group", "the expert trained on the task")]
    first, others = _policies(view.scores)
    columns += [column for policy in first for column in _score_columns(view.scores, policy)]
    if view.weights is not None:
        columns += [
            Column("heaviest", "the expert with the largest router weight, a mean over blocks"),
            Column("its weight"),
            Column("needed", f"how many experts carry {MASS:.0%} of the router's weight of a block"),
        ]
    return columns + [column for policy in others for column in _score_columns(view.scores, policy)]


def _policies(scores: Scores) -> tuple[list[str], list[str]]:
    """The bank and its demonstrators, and the others."""
    names = list(scores.policies)
    return [name for name in names if name in (scores.own, BEHAVIOR)], [n for n in names if n not in (scores.own, BEHAVIOR)]


def _score_columns(scores: Scores, policy: str) -> list[Column]:
    own = policy == scores.own
    columns = [Column(policy, "mean normalized score of this bank" if own else f"mean normalized score of {policy}")]
    if _has_intervals(scores, policy):
        columns.append(Column("95% interval", f"of the score of {policy}"))
    return [*columns, Column("success", "share of the episodes that succeed, where the task has a success")] if own else columns


def _has_intervals(scores: Scores, policy: str) -> bool:
    return any(score.low is not None for score in scores.policies[policy].values())


def _row(view: BankView, task: TaskSpec) -> list[Cell]:
    first, others = _policies(view.scores)
    cells = [Cell(task.name), Cell(task.domain), number((view.bank.groups or {}).get(task.name), 0)]
    cells += [cell for policy in first for cell in _score_cells(view.scores, policy, task.name)]
    if view.weights is not None:
        known = task.name in view.weights.by_task
        expert, weight = view.weights.heaviest(task.name) if known else (None, None)
        cells += [number(expert, 0), number(weight, 2), number(view.weights.needed(task.name) if known else None)]
    return cells + [cell for policy in others for cell in _score_cells(view.scores, policy, task.name)]


def _score_cells(scores: Scores, policy: str, task: str) -> list[Cell]:
    score = scores.of(policy, task)
    cells = [number(None if score is None else score.mean)]
    if _has_intervals(scores, policy):
        cells.append(_interval(score))
    return [*cells, percent(None if score is None else score.success)] if policy == scores.own else cells


def _interval(score: Score | None) -> Cell:
    if score is None or score.low is None or score.high is None:
        return Cell("-")
    return Cell(f"{score.low:.1f} … {score.high:.1f}", score.high - score.low)


_LAYOUTS = {
    "weights": {
        "title": {"text": "router's weight of each expert, by block"},
        "xaxis": {"title": {"text": "expert"}, "nticks": 20, "gridcolor": "#eee", "zeroline": False},
        "yaxis": {"range": [0, 1.02], "gridcolor": "#eee"},
        "barmode": "group",
        "legend": {"orientation": "h", "y": -0.25, "yanchor": "top", "x": 0},
    }
}


def _traces(view: BankView, task: str) -> dict[str, list[dict[str, Any]]]:
    if view.weights is None or task not in view.weights.by_task:
        return {}
    blocks = view.weights.by_task[task]
    return {
        "weights": [
            {"type": "bar", "name": f"block {i + 1}", "y": shorts(block), "marker": {"color": COLOURS[i % len(COLOURS)]}}
            for i, block in enumerate(blocks)
        ]
    }


def _groups(page: Page, view: BankView) -> None:
    groups = view.bank.groups
    if groups is None:
        return
    page.heading("Groups")
    members: dict[int, list[str]] = {}
    for task in view.tasks:
        if task.name in groups:
            members.setdefault(groups[task.name], []).append(task.name)
    rows = [(str(expert), _group_row(view.scores, expert, names)) for expert, names in sorted(members.items())]
    columns = (
        Column("expert"),
        Column("tasks"),
        Column("mean score", "of the bank on these tasks"),
        Column("names", kind="text"),
    )
    page.table("groups", columns, rows, pick=False)


def _group_row(scores: Scores, expert: int, names: Sequence[str]) -> list[Cell]:
    found = [score.mean for name in names if (score := scores.of(scores.own, name)) is not None]
    return [number(expert, 0), number(len(names), 0), number(float(np.mean(found)) if found else None), Cell(", ".join(names))]


def _settings(page: Page, bank: ExpertBank) -> None:
    """The settings of the stages that have been trained, side by side."""
    stages = {stage: dict(bank.manifest.stages[stage].get("config", {})) for stage in STAGES if stage in bank.manifest.stages}
    if not stages:
        return
    page.heading("Settings of the stages")
    names = dict.fromkeys(name for config in stages.values() for name in config)
    rows = [(name, [Cell(name), *(Cell(str(config.get(name, "-"))) for config in stages.values())]) for name in names]
    page.table("settings", [Column("setting", kind="words"), *(Column(stage) for stage in stages)], rows, pick=False)


def _films(view: BankView, agent: M3DTAgent | None, clips: Sequence[str], progress: bool | None) -> Mapping[str, list[Clip]]:
    if agent is None:
        return {name: [(None, "no clip: the bank has no trained backbone yet")] for name in clips}
    specs = {task.name: task for task in view.tasks}
    bar = tqdm(clips, desc="clips", unit="task", disable=not shows_progress(progress))
    return {name: clips_of_bank(agent, specs[name], EvalConfig(), bytes_each(len(clips))) for name in bar}
