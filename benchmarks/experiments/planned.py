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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from m3dt_agent.tasks import TASKS, lookup

from . import budgets, task_sets
from ..records import Cell
from .scales import (
    BANK_METHODS,
    BASELINES,
    EXPERT_COUNTS,
    LARGE,
    M3DT_METHODS,
    SCALES,
    SMALL,
    UNTRAINED,
    WIDTHS,
    Scale,
    published_settings,
)

__all__ = ["EXPERIMENTS", "SCALES", "Arm", "Experiment", "arms", "cells", "describe"]

PUBLISHED_SEEDS = (0, 1, 2)
"""The paper pairs them: its seed s trains on draw s of a task set."""

Budget = Literal["published", "equal-flop", "equal-windows"]


@dataclass(frozen=True, slots=True)
class Arm:
    """One method of an experiment. settings: what differs from its published ones, in the paper's numbers.

    equal_parameters: as wide as makes its parameters those of M3DT on the same task set. budget: "published" steps, or as many
    as make its training FLOP or its windows those of M3DT there. Both are for Prompt-DT, the budget for the wide one, too.
    """

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    equal_parameters: bool = False
    budget: Budget = "published"


@dataclass(frozen=True, slots=True)
class Experiment:
    """What belongs to one table, figure or question.

    source: where in the paper, or "ours". contrast: the two methods whose difference is the experiment's question, named before
    anything runs. crossed: every task-set seed with every training seed; else the first with the first, and so on. note: what
    is known of it and from where.
    """

    title: str
    source: str
    arms: tuple[Arm, ...]
    task_sets: tuple[str, ...]
    contrast: tuple[str, str] | None
    note: str = ""
    task_set_seeds: tuple[int, ...] = PUBLISHED_SEEDS
    training_seeds: tuple[int, ...] = PUBLISHED_SEEDS
    crossed: bool = False
    condition: str = "mixture"

    @property
    def methods(self) -> tuple[str, ...]:
        """Each once."""
        return tuple(dict.fromkeys(arm.method for arm in self.arms))

    @property
    def published(self) -> bool:
        """Whether its tasks are the paper's: published sets, or single tasks; only then may they be held-out ones."""
        return all(name in task_sets.PUBLISHED_SETS or name.startswith("only-") for name in self.task_sets)

    @property
    def seeds(self) -> tuple[tuple[int, int], ...]:
        """(task-set seed, training seed) of every run."""
        if self.crossed:
            return tuple((a, b) for a in self.task_set_seeds for b in self.training_seeds)
        return tuple(zip(self.task_set_seeds, self.training_seeds, strict=True))


def arms(methods: Iterable[str], variations: Sequence[Mapping[str, Any]] = ({},)) -> tuple[Arm, ...]:
    """Every method in every variation of its settings."""
    return tuple(Arm(method, variation) for method in methods for variation in variations)


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

_SETS = tuple(task_sets.PUBLISHED_SETS)
_TWO_WIDTHS = ({"embed_dim": SMALL}, {"embed_dim": LARGE})
_MAIN = (*arms(("mtdt", "prompt-dt", "harmo-dt"), _TWO_WIDTHS), *arms(("m3dt-random", "m3dt-gradient")))
_SWEEP = tuple({"n_experts": count} for count in EXPERT_COUNTS)
_SUMMARY = "From a machine-made summary of the paper"
_UNKNOWN = (
    "What this figure varies is not known here. It stands for the main comparison on 160 tasks with 40 experts; the ablations "
    "that issue 5 names without saying where they are shown are the experiment 'ablations'"
)


def _ours(title: str, arms_: tuple[Arm, ...], contrast: tuple[str, str], note: str = "", **changes: Any) -> Experiment:
    """A control of ours: one sampled set of 40 tasks, five training seeds."""
    values: dict[str, Any] = {"task_set_seeds": (0,), "training_seeds": (0, 1, 2, 3, 4), "crossed": True, **changes}
    return Experiment(title, "ours", arms_, ("sampled-40",), contrast, note, **values)


_MATCHED = Arm("prompt-dt", equal_parameters=True, budget="equal-flop")
_CLAIM = (_MATCHED, *arms(("m3dt-gradient", "m3dt-random", "m3dt-all-tasks")))
_DATA = {"stop_after_success": 1, "slots": 50, "precision": "bfloat16"}
_BANK = {
    **_DATA,
    "backbone_steps": 160_000,
    "expert_steps": 10_000,
    "router_steps": 20_000,
    "cooldown": 0.2,
    "domain_weights": {"dmcontrol": 3, "metaworld": 2},
    "grouping": "random",
    "guide": 0.1,
    "skip_below": 0.05,
    "storage": "bfloat16",
    "acting": "bfloat16",
}
"""Of `builtin:mt160`. The stages are shorter than the published ones by as much as two cores have no time for; why the
others differ is in `pretrained.md`."""
_METHODS = (*UNTRAINED, *BASELINES, *M3DT_METHODS)


def _published() -> dict[str, Experiment]:
    main = ("m3dt-gradient", "harmo-dt")
    stand_in = {f"figure{n}": Experiment(f"Figure {n}", f"Figure {n}", _MAIN, ("mt160",), main, _UNKNOWN) for n in (5, 8, 10)}
    return {
        "table1": Experiment(
            "Main comparison, 10 to 160 tasks",
            "Table 1",
            _MAIN,
            _SETS,
            main,
            f"{_SUMMARY}: every baseline at 1.47M and at 173.30M parameters, both groupings of M3DT, three seeds.",
        ),
        "table2": Experiment(
            "Ablation of the three stages, the grouping and the freezing of experts",
            "Table 2",
            arms(
                (
                    *("m3dt-random", "m3dt-gradient", "m3dt-end-to-end", "m3dt-no-grouping"),
                    *("m3dt-random-unfrozen", "m3dt-gradient-unfrozen"),
                )
            ),
            ("mt160",),
            ("m3dt-gradient", "m3dt-no-grouping"),
            f"{_SUMMARY}, and issue 5.",
        ),
        **{
            f"table{n}": Experiment(
                f"Main comparison by domain ({n})",
                f"Table {n}",
                _MAIN,
                _SETS,
                main,
                f"{_SUMMARY}: results by domain, appendix B. The cells are Table 1's; the report splits every table by domain "
                "and into MW+DMC and Ant+Cheetah. Which half Table 6 has and which Table 7 is not known here.",
            )
            for n in (6, 7)
        },
        "figure2": Experiment(
            "Score against the number of tasks, and gradient conflict",
            "Figure 2",
            arms(("mtdt", "prompt-dt", "harmo-dt")),
            _SETS,
            None,
            "From a review of the paper: more tasks, more conflict, lower scores. Which baselines it shows is not known here.",
        ),
        "figure3": Experiment(
            "Prompt-DT's width against the number of tasks",
            "Figure 3",
            arms(("prompt-dt",), [{"embed_dim": width} for width in WIDTHS]),
            _SETS,
            None,
            f"{_SUMMARY}: a heat map of model sizes and numbers of tasks; sizes are those of appendix A.5.",
        ),
        **stand_in,
        "figure6": Experiment(
            "Number of experts on 80 and 160 tasks",
            "Figure 6",
            arms(("m3dt-random", "m3dt-gradient"), _SWEEP),
            ("mt80", "mt160"),
            ("m3dt-gradient", "m3dt-random"),
            f"{_SUMMARY}: 8 to 48 experts; which counts in between is not known here, ours are every eighth.",
        ),
        "figure7": Experiment(
            "Where the backbone stops",
            "Figure 7",
            arms(("m3dt-gradient",), [{"backbone_steps": steps} for steps in (200_000, 400_000, 600_000, 800_000, 1_000_000)]),
            ("mt160",),
            None,
            f"{_SUMMARY}: 200k steps are too few, 400k best, more too many; which ones beyond 400k is not known here.",
        ),
        "figure9": Experiment(
            "Top-k against dense routing, by number of experts",
            "Figure 9",
            arms(("m3dt-gradient", "m3dt-top-k"), _SWEEP),
            ("mt160",),
            ("m3dt-gradient", "m3dt-top-k"),
            f"{_SUMMARY}: top-4 does not scale with the number of experts.",
        ),
        "figure11": Experiment(
            "Score against the number of tasks, by domain",
            "Figure 11",
            arms(("mtdt", "prompt-dt", "harmo-dt")),
            _SETS,
            None,
            "Appendix B.1 (issue 5). The cells are Figure 2's, read by domain; which methods it shows is not known here.",
        ),
        "figure12": Experiment(
            "Gradient conflict by module",
            "Figure 12",
            arms(("prompt-dt", "m3dt-end-to-end")),
            ("mt160",),
            None,
            f"{_SUMMARY}: conflict by module; a model with experts trained end to end has more of it than Prompt-DT.",
        ),
        "expert-sweep": Experiment(
            "8 to 48 experts on 160 tasks",
            "the expert sweep of issue 5",
            arms(("m3dt-gradient",), _SWEEP),
            ("mt160",),
            None,
            "Part of Figure 6's cells.",
        ),
        "single": Experiment(
            "160 single-task runs",
            "appendix A.3",
            arms(("prompt-dt",)),
            tuple(f"only-{task.name}" for task in TASKS),
            None,
            "Prompt-DT on each task alone, the measure of difficulty. The seeds of its runs are not known here; ours is one.",
            task_set_seeds=(0,),
            training_seeds=(0,),
        ),
    }


def _controls() -> dict[str, Experiment]:
    to_beat = ("m3dt-gradient", "prompt-dt")
    return {
        "claim": _ours(
            "Does M3DT beat Prompt-DT of the same size and training FLOP?",
            (*arms(("random", "zero", "behavior")), *_CLAIM, Arm("prompt-dt-wide", budget="equal-flop")),
            to_beat,
            "The claim with nothing but the method changed; and whether it is the grouping or the extra training.",
        ),
        "claim-budgets": _ours(
            "The same at the published steps and at equal windows",
            (
                *(Arm("prompt-dt", equal_parameters=True, budget=budget) for budget in ("published", "equal-windows")),
                Arm("m3dt-gradient"),
            ),
            to_beat,
            "Published: 1M steps for the baseline. Equal windows: as many as the three stages see, all experts together.",
        ),
        "claim-expert-data": _ours("The claim on expert data alone", _CLAIM, to_beat, condition="expert"),
        "claim-across-sets": _ours(
            "The claim on three sets of tasks",
            _CLAIM,
            to_beat,
            "Task-set seeds crossed with training seeds.",
            task_set_seeds=(0, 1, 2),
            training_seeds=(0, 1, 2),
        ),
        "target-return": _ours(
            "How much the target return matters",
            arms(("prompt-dt", "m3dt-gradient"), [{"target_return_factor": factor} for factor in (0.5, 1.0, 1.5)]),
            to_beat,
            "Every other experiment has one target return; none is picked afterwards.",
            training_seeds=(0, 1, 2),
        ),
        "ablations": Experiment(
            "Routers, experts and residuals",
            "issue 5",
            arms(
                (
                    *("m3dt-gradient", "m3dt-top-k", "m3dt-sample-router", "m3dt-big-experts", "m3dt-published-residual"),
                    *("m3dt-oracle", "m3dt-all-tasks"),
                )
            ),
            ("mt160",),
            ("m3dt-gradient", "m3dt-all-tasks"),
            "Ablations that issue 5 names; where the paper shows them is not known here.",
        ),
        "backbone-width": Experiment(
            "M3DT-Small: a backbone of half the width",
            "issue 5",
            arms(("m3dt-random", "m3dt-gradient"), [{"embed_dim": width} for width in WIDTHS[:2]]),
            ("mt160",),
            None,
            "Issue 5 names M3DT-Small and not its size; ours has the width of the small Prompt-DT.",
        ),
        "pretrained": Experiment(
            "The bank in the box: one training, several actors",
            "ours",
            (
                *arms(BANK_METHODS, [_BANK]),
                *arms(("random", "behavior"), [_DATA]),
                Arm("bank-mixture", {**_BANK, "later_seed": 1}),
            ),
            ("mt160",),
            ("bank-mixture", "bank-backbone"),
            "Made by `make pretrained`; the last arm shows how much of the score is the luck of stages 2 and 3.",
            task_set_seeds=(0,),
            training_seeds=(0,),
            condition="best",
        ),
        "methods": _ours(
            "Every method once",
            arms(_METHODS),
            to_beat,
            "One seed: shows that everything runs, and what it costs.",
            training_seeds=(0,),
        ),
    }


EXPERIMENTS: Mapping[str, Experiment] = {**_published(), **_controls()}
"""By name."""


def describe(name: str) -> str:
    """A paragraph on an experiment, for people.

    Raises:
        UnknownTaskError: there is none.
    """
    experiment = lookup(dict(EXPERIMENTS), name, "experiment")
    question = f" Named contrast: {' against '.join(experiment.contrast)}." if experiment.contrast else ""
    return f"{experiment.title} ({experiment.source}).{question} {experiment.note}".rstrip()
