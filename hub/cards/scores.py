"""The scores of a model card: what evaluation rows say about one bank, as sections and as the Hub's `model-index`.

    rows ─► bank_scores ─┬► evaluation_sections    score table, who acted, with which versions, on which tasks it is weak
                         └► eval_results           model-index: normalized score (and success rate) per task

The rows of one policy are the bank's own scores. The scores of other policies on the same tasks are shown beside them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from huggingface_hub import EvalResult

from m3dt_agent import tasks as task_table
from m3dt_agent.bank import ExpertBank
from m3dt_agent.errors import ConfigError
from m3dt_agent.hub.cards.markdown import PAPER, count, escape, figure_lines, table
from m3dt_agent.scores import AGENT_POLICIES, EpisodeResult, Interval, Summary, TaskSummary, summarize
from m3dt_agent.tasks import TaskSpec

WEAK_BELOW = 50.0
"""Half of the normalized scale; a task with a lower score is listed as weak."""
BEHAVIOR = "expert"
"""What an evaluation calls the behavior policies; a task on which the bank has less than half of their score is listed, too."""


@dataclass(frozen=True, slots=True)
class BankScores:
    """The scores of one bank and, for comparison, of other policies.

    summary: of the bank's own policy. others: policy → summary on those of the same tasks that it has rows of. rows: policy →
    the episodes counted, the bank's own policy first. content_hash, specs: the bank's hash, and its tasks by name.
    """

    summary: Summary
    others: Mapping[str, Summary]
    rows: Mapping[str, Sequence[EpisodeResult]]
    content_hash: str
    specs: Mapping[str, TaskSpec]


def bank_scores(bank: ExpertBank, rows: Sequence[EpisodeResult], policy: str | None = None) -> BankScores:
    """The scores of `bank` in `rows`.

    policy: the policy whose rows are the bank's own scores. None: the only policy that acted with this bank or, if there are
    several, that of its agent unless told otherwise (`ExpertBank.acts_with`).

    Raises:
        ConfigError: rows of another bank, no rows of this one, several policies of it and no choice, a policy with rows both
            with and without a bank, or an episode that occurs twice.
    """
    ours = bank.content_hash
    if foreign := sorted({row.bank_hash for row in rows} - {ours, ""}):
        raise ConfigError(f"these rows are not of this bank: their bank's hash is {', '.join(foreign)}; this one's is {ours}")
    own = list(dict.fromkeys(row.policy for row in rows if row.bank_hash == ours))
    if not own:
        raise ConfigError(f"no row is of this bank, {ours}; rows of other policies do not replace its own")
    if mixed := sorted({row.policy for row in rows if not row.bank_hash} & set(own)):
        raise ConfigError(f"policy {', '.join(map(repr, mixed))} has rows with this bank and rows without a bank")
    chosen = policy or (own[0] if len(own) == 1 else AGENT_POLICIES[bank.acts_with])
    if chosen not in own:
        raise ConfigError(f"choose a policy that acted with this bank: {', '.join(map(repr, own))}; got policy={policy!r}")
    tasks = {row.task for row in rows if row.policy == chosen}
    by_policy: dict[str, list[EpisodeResult]] = {chosen: []}
    for row in rows:
        if row.task in tasks:
            by_policy.setdefault(row.policy, []).append(row)
    summary, *others = (summarize(of) for of in by_policy.values())
    specs = {task.name: task for task in bank.tasks}
    return BankScores(summary, {other.policy: other for other in others}, by_policy, ours, specs)


def eval_results(scores: BankScores) -> list[EvalResult]:
    """The entries of the model-index. A task's Gymnasium id takes the place of the dataset that other models name."""
    return [result for task in scores.summary.tasks.values() for result in _task_results(task, scores.specs)]


def _task_results(task: TaskSummary, specs: Mapping[str, TaskSpec]) -> list[EvalResult]:
    metrics = [
        ("normalized_score", "mean normalized score, 0 to 100", task.mean_score)
        if task.on_scale
        else ("mean_return", "mean return", task.mean_return)
    ]
    if task.success_rate is not None:
        metrics.append(("success_rate", "success rate, 0 to 1", task.success_rate))
    return [
        EvalResult(
            task_type="reinforcement-learning",
            task_name="reinforcement-learning",
            dataset_type=specs[task.task].env_id if task.task in specs else task.task,
            dataset_name=task.task,
            metric_type=kind,
            metric_name=name,
            metric_value=round(value, 4),
        )
        for kind, name, value in metrics
    ]


def evaluation_sections(scores: BankScores, figure: str | None) -> list[str]:
    """The card's sections about scores. figure: a path inside the repository."""
    explanation = (
        f"Of {len(scores.summary.tasks)} of the bank's {count(len(scores.specs), 'task')}, normalized from 0 to 100, each task "
        f"with the same weight. The policy is {escape(scores.summary.policy)}, with the bank whose content hash is "
        f"`{scores.content_hash}`. Intervals are of 95%: Wilson's for success rates, else percentile-bootstrap intervals over "
        "episodes. They say how well these episodes measure this bank, nothing about other training seeds. Published is what "
        f"one Prompt-DT per task reached on the data of M3DT ({PAPER}, appendix A.3)."
    )
    if not all(task.on_scale for task in scores.summary.tasks.values()):
        explanation += " Tasks whose score is their return are not on this scale, and no mean counts them."
    return [
        "## Scores",
        explanation,
        _score_table(scores),
        *figure_lines(figure, "Normalized score per task"),
        "### Who acted",
        _policy_table(scores),
        _conditions([row for rows in scores.rows.values() for row in rows]),
        "### Where it is weak",
        *_weak_tasks(scores),
    ]


def _weak_tasks(scores: BankScores) -> list[str]:
    """The tasks with a low score, and those with a low score compared to the behavior policy, worst first."""
    on_scale = [task for task in scores.summary.tasks.values() if task.on_scale]
    tasks = sorted(on_scale, key=lambda task: task.mean_score)
    weak = ", ".join(f"{escape(t.task)} ({t.mean_score:.1f})" for t in tasks if t.mean_score < WEAK_BELOW)
    said = [f"Below {WEAK_BELOW:.0f}: {weak}." if weak else f"None of these tasks scores below {WEAK_BELOW:.0f}."]
    if BEHAVIOR not in scores.others:
        return said
    behavior = {name: task.mean_score for name, task in scores.others[BEHAVIOR].tasks.items()}
    half = [t for t in tasks if t.mean_score < behavior.get(t.task, 0.0) / 2]
    listed = ", ".join(f"{escape(t.task)} ({t.mean_score:.1f} of {behavior[t.task]:.1f})" for t in half)
    return [*said, f"Under half of the behavior policy: {listed or 'none of these tasks'}."]


def _score_table(scores: BankScores) -> str:
    summary, others = scores.summary, scores.others
    success = "-" if summary.success_rate is None else f"{100 * summary.success_rate:.0f}%"
    # a mean over fewer tasks could not be compared with the bank's
    whole = [other if len(other.tasks) == len(summary.tasks) else None for other in others.values()]
    means = ["-" if other is None else _number(other.mean_score) for other in whole]
    iqms = ["-" if other is None else _number(other.iqm_score) for other in whole]
    mean, iqm = (f"**{_number(summary.mean_score)}**", f"**{_number(summary.iqm_score)}**")
    rows = [_score_row(task, others, scores.specs) for task in summary.tasks.values()]
    rows.append(
        [
            *("**mean**", "", f"{summary.episodes}", "", mean, _interval(summary.mean_interval), success, *means),
            _mean_or_dash([_published_score(name) for name in summary.tasks]),
        ]
    )
    rows.append(["**IQM**", "", "", "", iqm, _interval(summary.iqm_interval), "", *iqms, ""])
    names = [escape(name) for name in others]
    return table(
        ("task", "domain", "episodes", "return", "score", "95% interval", "success", *names, "published"), rows, left=2
    )


def _score_row(task: TaskSummary, others: Mapping[str, Summary], specs: Mapping[str, TaskSpec]) -> list[str]:
    interval = task.score_interval
    if task.rule == "success" and task.success_interval is not None:
        # if all episodes succeed, the bootstrap interval has no width
        interval = (100 * task.success_interval[0], 100 * task.success_interval[1])
    return [
        escape(task.task),
        escape(next(iter(task_table.by_group([specs.get(task.task, task.task)])))),
        f"{task.episodes}",
        f"{task.mean_return:,.1f}",
        f"{task.mean_score:.1f}" if task.on_scale else "= return",
        _interval(interval),
        "-" if task.success_rate is None else f"{100 * task.success_rate:.0f}%",
        *(f"{other.tasks[task.task].mean_score:.1f}" if task.task in other.tasks else "-" for other in others.values()),
        _mean_or_dash([_published_score(task.task)]),
    ]


def _published_score(name: str) -> float | None:
    """None for a task that is not among the 160."""
    return task_table.BUILTIN[name].published_score if name in task_table.BUILTIN else None


def _mean_or_dash(scores: Sequence[float | None]) -> str:
    """The mean, or a dash where a task has none: without it, the mean could not be compared with those beside it."""
    there = [score for score in scores if score is not None]
    return f"{sum(there) / len(there):.1f}" if there and len(there) == len(scores) else "-"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


def _interval(interval: Interval) -> str:
    return "-" if math.isnan(interval[0]) else f"{interval[0]:.1f} … {interval[1]:.1f}"


def _policy_table(scores: BankScores) -> str:
    rows = []
    for summary in (scores.summary, *scores.others.values()):
        of = scores.rows[summary.policy]
        seeds = sorted({row.seed for row in of})
        rows.append(
            [
                escape(summary.policy),
                f"this bank, {scores.content_hash[:12]}" if of[0].bank_hash else "no bank",
                f"{len(summary.tasks)}",
                f"{len(of)}",
                f"{seeds[0]} … {seeds[-1]}",
                f"{_number(summary.mean_score)} ({_interval(summary.mean_interval)})",
                f"{_number(summary.iqm_score)} ({_interval(summary.iqm_interval)})",
            ]
        )
    return table(("policy", "acts with", "tasks", "episodes", "seeds", "mean", "IQM"), rows, left=2)


def _conditions(rows: Sequence[EpisodeResult]) -> str:
    """The versions and rules with which the episodes were run."""
    versions: dict[str, set[str]] = {}
    for row in rows:
        for package, version in row.versions.items():
            versions.setdefault(package, set()).add(version)
    listed = ", ".join(f"{escape(name)} {_either(versions[name])}" for name in sorted(versions))
    run_with = f"Run with {listed or 'versions that are not known'}."
    told = [run_with]
    with_success = [row for row in rows if row.success is not None]
    if meta_world := [row for row in with_success if row.task in task_table.BUILTIN]:
        rewards = {row.reward_version or "not known" for row in meta_world}
        told.append(f"Meta-World episodes {_ends(meta_world)}; reward function: {_either(rewards)}.")
    if others := [row for row in with_success if row.task not in task_table.BUILTIN]:
        told.append(f"Episodes of other tasks that have success {_ends(others)}.")
    return " ".join(told)


def _ends(rows: Sequence[EpisodeResult]) -> str:
    return _either({"end at success" if row.stop_on_success else "run their full length" for row in rows})


def _either(values: set[str]) -> str:
    return escape(" or ".join(sorted(values)))
