"""The experiments as data: what is trained on what, for each table and figure of the paper, and our own controls.

    Experiment = arms × task sets × seeds        Arm = a method, what differs from its published settings, its budget
        cells(name, scale)                       every model to train, at one of four scales (`scales`)

A cell that several experiments share has one id and is trained once.

The paper (M3DT, arXiv 2505.24378) was not at hand when this was written; issue 5, which names its tables and figures, and two
machine-made summaries of it were. What an experiment owes to which is in its `note`; what a figure shows that none of them
describes is said to be unknown, and not guessed.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from m3dt_agent.tasks import lookup

from ..records import Cell
from . import budgets, task_sets
from .arms import Arm, Experiment, arms
from .ours import our_experiments
from .paper import paper_experiments
from .scales import (
    SCALES,
    Scale,
    published_settings,
)

__all__ = ["EXPERIMENTS", "SCALES", "Arm", "Experiment", "arms", "cells", "describe"]


def cells(name: str, scale: str) -> list[Cell]:
    """Every cell of an experiment, each once.

    Raises:
        UnknownTaskError: no such experiment or scale.
    """
    experiment = lookup(dict(EXPERIMENTS), name, "experiment")
    size = lookup(dict(SCALES), scale, "scale")
    found = []
    for task_set in _used_sets(experiment, size):
        for set_seed, training_seed in experiment.seeds[: size.seeds]:
            shown, tasks = _tasks(task_set, set_seed, scale)
            for arm in experiment.arms:
                settings = _settings(arm, _size(task_set), scale)
                seeds = (set_seed, training_seed)
                found.append(Cell(name, arm.method, shown, *seeds, scale, experiment.condition, tasks, settings))
    return list({cell.id: cell for cell in found}.values())


def _used_sets(experiment: Experiment, scale: Scale) -> tuple[str, ...]:
    """The task sets of an experiment; where a scale takes few of those with one task, some of each domain."""
    single = [name.removeprefix("only-") for name in experiment.task_sets if name.startswith("only-")]
    if scale.single_tasks is None or not single:
        return experiment.task_sets
    return tuple(f"only-{task}" for task in task_sets.reduced(single, scale.single_tasks))


@functools.cache
def _tasks(task_set: str, seed: int, scale: str) -> tuple[str, tuple[str, ...]]:
    """The name and the tasks of a set at a scale; a smaller sample is drawn by the rule, a published set loses tasks."""
    wanted = SCALES[scale].sizes.get(_size(task_set), _size(task_set))
    if task_set.startswith("sampled-"):
        shown = f"sampled-{wanted}"
        return shown, task_sets.named(shown, seed)
    full = task_sets.named(task_set, seed)
    return (task_set, full) if wanted == len(full) else (f"{task_set}[{wanted}]", task_sets.reduced(full, wanted))


def _size(task_set: str) -> int:
    if task_set.startswith("sampled-"):
        return int(task_set.removeprefix("sampled-"))
    return task_sets.PUBLISHED_SETS.get(task_set, 1)


def _settings(arm: Arm, size: int, scale: str) -> dict[str, Any]:
    """Every number that an arm's model and training depend on, for a set of `size` tasks in the paper, at a scale."""
    scaled = SCALES[scale].apply(published_settings(arm.method, size, arm.settings))
    if arm.equal_parameters or arm.budget != "published":
        wide, flop, windows = _m3dt_budget(size, scale)
        if arm.equal_parameters:
            scaled["embed_dim"] = wide
        if arm.budget == "equal-flop":
            scaled["backbone_steps"] = budgets.steps_for_flop(flop, scaled, wide=arm.method == "prompt-dt-wide")
        if arm.budget == "equal-windows":
            scaled["backbone_steps"] = round(windows / scaled["batch_size"])
    return scaled


@functools.cache
def _m3dt_budget(size: int, scale: str) -> tuple[int, float, int]:
    """Of M3DT on so many tasks: the width of a Prompt-DT with its parameters, its training FLOP, its windows."""
    settings = SCALES[scale].apply(published_settings("m3dt-gradient", size, {}))
    parameters = budgets.parameter_count(budgets.model_config(settings))
    width = budgets.prompt_dt_for(parameters, settings)
    return width, budgets.three_stage_flop(settings), budgets.three_stage_windows(settings)


# -- the experiments -----------------------------------------------------------------------------------------------------------


EXPERIMENTS: Mapping[str, Experiment] = {**paper_experiments(), **our_experiments()}
"""By name."""


def describe(name: str) -> str:
    """A paragraph on an experiment, for people.

    Raises:
        UnknownTaskError: there is none.
    """
    experiment = lookup(dict(EXPERIMENTS), name, "experiment")
    question = f" Named contrast: {' against '.join(experiment.contrast)}." if experiment.contrast else ""
    return f"{experiment.title} ({experiment.source}).{question} {experiment.note}".rstrip()
