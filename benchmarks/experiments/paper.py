"""The paper's experiments: a table or figure each, as far as its settings are known. Where each fact comes from: `planned`."""

from __future__ import annotations

from collections.abc import Mapping

from m3dt_agent.tasks import TASKS

from . import task_sets
from .arms import Experiment, arms
from .scales import EXPERT_COUNTS, LARGE, SMALL, WIDTHS

_SUMMARY = "From a machine-made summary of the paper"

_SETS = tuple(task_sets.PUBLISHED_SETS)
_ALL_TASKS = ("mt160",)
_BASELINES = ("mtdt", "prompt-dt", "harmo-dt")
_M3DT = ("m3dt-random", "m3dt-gradient")
_MAIN = (*arms(_BASELINES, ({"embed_dim": SMALL}, {"embed_dim": LARGE})), *arms(_M3DT))
_MAIN_CONTRAST = ("m3dt-gradient", "harmo-dt")
_EXPERT_SWEEP = tuple({"n_experts": count} for count in EXPERT_COUNTS)
_BACKBONE_SWEEP = tuple({"backbone_steps": steps} for steps in (200_000, 400_000, 600_000, 800_000, 1_000_000))
_WIDTH_SWEEP = tuple({"embed_dim": width} for width in WIDTHS)


def _by_domain(number: int) -> Experiment:
    """Table 6 or 7."""
    return Experiment(
        title=f"Main comparison by domain ({number})",
        source=f"Table {number}",
        arms=_MAIN,
        task_sets=_SETS,
        contrast=_MAIN_CONTRAST,
        note=f"{_SUMMARY}: appendix B gives the results by domain. This experiment has the same cells as table1; the report "
        "splits every table by domain and into MW+DMC and Ant+Cheetah. It is not known here which half Table 6 shows and which "
        "Table 7.",
    )


def _stand_in(number: int) -> Experiment:
    """For a figure of which only the number is known."""
    return Experiment(
        title=f"Figure {number}",
        source=f"Figure {number}",
        arms=_MAIN,
        task_sets=_ALL_TASKS,
        contrast=_MAIN_CONTRAST,
        note="What this figure varies is not known here. In its place stands the main comparison on 160 tasks with 40 experts. "
        "The ablations whose figure is not known are in the experiment 'ablations'.",
    )


PAPER_EXPERIMENTS: Mapping[str, Experiment] = {
    "table1": Experiment(
        title="Main comparison, 10 to 160 tasks",
        source="Table 1",
        arms=_MAIN,
        task_sets=_SETS,
        contrast=_MAIN_CONTRAST,
        note=f"{_SUMMARY}: every baseline at 1.47M and at 173.30M parameters, both groupings of M3DT, three seeds.",
    ),
    "table2": Experiment(
        title="Ablation of the three stages, the grouping and the freezing of experts",
        source="Table 2",
        arms=arms((*_M3DT, "m3dt-end-to-end", "m3dt-no-grouping", "m3dt-random-unfrozen", "m3dt-gradient-unfrozen")),
        task_sets=_ALL_TASKS,
        contrast=("m3dt-gradient", "m3dt-no-grouping"),
        note=f"{_SUMMARY}, and from the benchmark's specification.",
    ),
    "table6": _by_domain(6),
    "table7": _by_domain(7),
    "figure2": Experiment(
        title="Score against the number of tasks, and gradient conflict",
        source="Figure 2",
        arms=arms(_BASELINES),
        task_sets=_SETS,
        contrast=None,
        note="From a review of the paper: more tasks bring more conflict and lower scores. Which baselines the figure shows is "
        "not known here.",
    ),
    "figure3": Experiment(
        title="Prompt-DT's width against the number of tasks",
        source="Figure 3",
        arms=arms(("prompt-dt",), _WIDTH_SWEEP),
        task_sets=_SETS,
        contrast=None,
        note=f"{_SUMMARY}: a heat map of model sizes and numbers of tasks. The sizes are those of appendix A.5.",
    ),
    "figure5": _stand_in(5),
    "figure6": Experiment(
        title="Number of experts on 80 and 160 tasks",
        source="Figure 6",
        arms=arms(_M3DT, _EXPERT_SWEEP),
        task_sets=("mt80", "mt160"),
        contrast=("m3dt-gradient", "m3dt-random"),
        note=f"{_SUMMARY}: 8 to 48 experts. The counts in between are not known here; ours are the multiples of 8.",
    ),
    "figure7": Experiment(
        title="Where the backbone stops",
        source="Figure 7",
        arms=arms(("m3dt-gradient",), _BACKBONE_SWEEP),
        task_sets=_ALL_TASKS,
        contrast=None,
        note=f"{_SUMMARY}: 200k steps are too few, 400k are best, more are too many. Those beyond 400k are not known here.",
    ),
    "figure8": _stand_in(8),
    "figure9": Experiment(
        title="Top-k against dense routing, by number of experts",
        source="Figure 9",
        arms=arms(("m3dt-gradient", "m3dt-top-k"), _EXPERT_SWEEP),
        task_sets=_ALL_TASKS,
        contrast=("m3dt-gradient", "m3dt-top-k"),
        note=f"{_SUMMARY}: top-4 does not scale with the number of experts.",
    ),
    "figure10": _stand_in(10),
    "figure11": Experiment(
        title="Score against the number of tasks, by domain",
        source="Figure 11",
        arms=arms(_BASELINES),
        task_sets=_SETS,
        contrast=None,
        note="From the benchmark's specification: appendix B.1. This experiment has the same cells as figure2, read by domain. "
        "Which methods the figure shows is not known here.",
    ),
    "figure12": Experiment(
        title="Gradient conflict by module",
        source="Figure 12",
        arms=arms(("prompt-dt", "m3dt-end-to-end")),
        task_sets=_ALL_TASKS,
        contrast=None,
        note=f"{_SUMMARY}: conflict by module. A model with experts trained end to end has more of it than Prompt-DT.",
    ),
    "expert-sweep": Experiment(
        title="8 to 48 experts on 160 tasks",
        source="the benchmark's specification",
        arms=arms(("m3dt-gradient",), _EXPERT_SWEEP),
        task_sets=_ALL_TASKS,
        contrast=None,
        note="Its cells are some of figure6's.",
    ),
    "single": Experiment(
        title="160 single-task runs",
        source="appendix A.3",
        arms=arms(("prompt-dt",)),
        task_sets=tuple(f"only-{task.name}" for task in TASKS),
        contrast=None,
        note="Prompt-DT on each task alone, which measures the task's difficulty. How many seeds the paper has is not known "
        "here; ours is one.",
        task_set_seeds=(0,),
        training_seeds=(0,),
    ),
}
"""The experiments by name."""
