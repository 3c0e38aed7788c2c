"""The experiments as data: what is trained on which tasks, for each table and figure of the paper and for our own controls.

    Experiment = arms × task sets × seeds        Arm = a method, its changed settings, its budget
        cells(name, scale)                       every model to train, at one of the scales of `scales`

A cell that several experiments share has one id and is trained once.

The paper (M3DT, arXiv 2505.24378) was not at hand when this was written. What is known of it comes from the specification of
this benchmark, which lists the paper's tables, figures and ablations, and from two machine-made summaries and a review of the
paper (docs/architecture.md#sources-of-numbers). The `note` of an experiment says which of these it follows. If none of them
describes a figure, the note says that it is unknown.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from m3dt_agent.tasks import lookup

from ..records import Cell
from ..settings import model_config
from . import budgets, task_sets
from .arms import Arm, Experiment
from .ours import OUR_EXPERIMENTS
from .paper import PAPER_EXPERIMENTS
from .scales import SCALES, Scale, published_settings

EXPERIMENTS: Mapping[str, Experiment] = {**PAPER_EXPERIMENTS, **OUR_EXPERIMENTS}
"""All experiments by name."""


def cells(name: str, scale: str, only: Sequence[Arm] = ()) -> list[Cell]:
    """Every cell of an experiment at a scale, each once.

    only: run these methods alone, on the experiment's task sets and seeds. One that the experiment has keeps the experiment's
    arms; one that it lacks has the arm that is given.

    Raises:
        UnknownTaskError: no experiment or scale has this name.
    """
    experiment = lookup(dict(EXPERIMENTS), name, "experiment")
    size = lookup(dict(SCALES), scale, "scale")
    found = []
    for task_set in _used_sets(experiment, size):
        for set_seed, training_seed in experiment.seeds[: size.seeds]:
            shown, tasks = _tasks(task_set, set_seed, scale)
            for arm in _chosen(experiment, only):
                settings = _settings(arm, _size(task_set), scale)
                found.append(
                    Cell(
                        experiment=name,
                        method=arm.method,
                        task_set=shown,
                        task_set_seed=set_seed,
                        training_seed=training_seed,
                        scale=scale,
                        condition=experiment.condition,
                        tasks=tasks,
                        settings=settings,
                    )
                )
    return list({cell.id: cell for cell in found}.values())


def describe(name: str) -> str:
    """A paragraph on an experiment for people to read.

    Raises:
        UnknownTaskError: no experiment has this name.
    """
    experiment = lookup(dict(EXPERIMENTS), name, "experiment")
    question = f" Named contrast: {' against '.join(experiment.contrast)}." if experiment.contrast else ""
    return f"{experiment.title} ({experiment.source}).{question} {experiment.note}".rstrip()


def _chosen(experiment: Experiment, only: Sequence[Arm]) -> list[Arm]:
    """The arms of an experiment, or those of the methods in `only`."""
    if not only:
        return list(experiment.arms)
    return [arm for given in only for arm in [arm for arm in experiment.arms if arm.method == given.method] or [given]]


def _used_sets(experiment: Experiment, scale: Scale) -> tuple[str, ...]:
    """The task sets of an experiment. If the scale limits the sets with one task, those kept are of all domains."""
    single = [name.removeprefix("only-") for name in experiment.task_sets if name.startswith("only-")]
    if scale.single_tasks is None or not single:
        return experiment.task_sets
    return tuple(f"only-{task}" for task in task_sets.reduced(single, scale.single_tasks))


@functools.cache
def _tasks(task_set: str, seed: int, scale: str) -> tuple[str, tuple[str, ...]]:
    """The name and the tasks of a set at a scale: a smaller sample is drawn by the rule, a published set drops tasks."""
    wanted = SCALES[scale].sizes.get(_size(task_set), _size(task_set))
    if task_set.startswith("sampled-"):
        shown = f"sampled-{wanted}"
        return shown, task_sets.named(shown, seed)
    full = task_sets.named(task_set, seed)
    return (task_set, full) if wanted == len(full) else (f"{task_set}[{wanted}]", task_sets.reduced(full, wanted))


def _size(task_set: str) -> int:
    """How many tasks a set has in the paper."""
    if task_set.startswith("sampled-"):
        return int(task_set.removeprefix("sampled-"))
    return task_sets.PUBLISHED_SETS.get(task_set, 1)


def _settings(arm: Arm, size: int, scale: str) -> dict[str, Any]:
    """Every number that an arm's model and training depend on, at a scale. size: tasks of the set in the paper."""
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
    """What matches M3DT on `size` tasks: the width of a Prompt-DT with as many parameters, the training FLOP, the windows."""
    settings = SCALES[scale].apply(published_settings("m3dt-gradient", size, {}))
    parameters = budgets.parameter_count(model_config(settings))
    width = budgets.prompt_dt_for(parameters, settings)
    return width, budgets.three_stage_flop(settings), budgets.three_stage_windows(settings)
