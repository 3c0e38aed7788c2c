"""The whole path in eight minutes on two cores: eight real tasks, from no data to an evaluated agent and a figure.

    part               what it does                                                          budget
    collect            demonstrations of eight tasks by their behavior policies             }  90 s
    held_out           a few more with other seeds, which training never sees               }
    plan               a few training steps: how many fit
    backbone, experts, router                the three stages, four experts                   220 s
    random, zero, backbone, final            ten episodes per task each, on the same seeds    150 s
    held_out_error, expert_weights, figure

    runs/quickstart/
        datasets/ held-out/ bank/           what the parts make
        parts/<part>.json                   result and seconds of each part that is done
        rows/<policy>.jsonl                 every evaluated episode
        summary.json figure.png

A part that is done is kept (parts.py), so a run that was interrupted continues when it is started again. settings.py says what
the tasks and the settings are, and why.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import EVALUATION_SEED, STAGES, DataConfig, EvalConfig, Stage
from ..scores.plots import require_matplotlib
from ..system.disk import disk_space_errors, write_file
from ..tasks import resolve
from .figure import FigureData, save_figure
from .parts import Parts, Say
from .settings import (
    HELD_OUT_SEED,
    HELD_OUT_WINDOWS,
    MODEL,
    NOISE,
    POLICIES,
    STAGE_SECONDS,
    TASKS,
    THREADS,
    QuickstartConfig,
    stage_config,
)

if TYPE_CHECKING:
    from ..agent import M3DTAgent
    from ..data.task_datasets import TaskDatasets
    from ..training.tracking import Guarded
    from ..training.tracking.trackers import Trackers


@dataclass(frozen=True, slots=True)
class Quickstart:
    """What the parts of one run do. Each returns a JSON-able result; everything else that it makes is a file in `out`."""

    out: Path
    config: QuickstartConfig
    trackers: tuple[Guarded, ...] = ()

    @property
    def bank(self) -> Path:
        """The folder of the bank."""
        return self.out / "bank"

    def data(self, folder: str) -> TaskDatasets:
        """The datasets of all tasks in `folder`, which is "datasets" or "held-out"."""
        from ..data.task_datasets import TaskDatasets

        return TaskDatasets.open(self.out / folder, TASKS)

    def agent(self) -> M3DTAgent:
        """The agent of the bank, trained as far as the bank is."""
        from ..agent import M3DTAgent

        return M3DTAgent.load(self.bank)

    def groups(self) -> dict[str, int]:
        """Task → the expert that is trained on it."""
        from ..bank import ExpertBank

        return ExpertBank.open(self.bank).groups or {}

    def collect(self, folder: str, episodes: int, seed: int) -> dict[str, float]:
        """Collects demonstrations of all tasks in `folder`; returns each task's mean score in them."""
        from ..data.collect import CollectConfig, collect

        shared: dict[str, Any] = {"episodes": episodes, "seed": seed, "source": "demonstrations", "stop_after_success": 1}
        scores = {}
        for noise in sorted(set(NOISE.values())):
            config = CollectConfig({"expert": 0.5, f"expert+{noise}": 0.5}, **shared)
            tasks = [task for task in resolve(TASKS) if NOISE[task.domain] == noise]
            for summary in collect(tasks, self.out / folder, config, workers=self.config.workers):
                scores[summary.task.name] = summary.mean_normalized_score
        self.data(folder)
        return scores

    def plan(self) -> dict[str, Any]:
        """Decides the steps of each stage, as configured or else by measuring seconds per step."""
        steps, precision = self.config.steps, self.config.precision
        per_step = {} if steps else self._seconds_per_step()
        if steps is None:
            fitting = {stage: max(1, round(STAGE_SECONDS[stage] / per_step[stage])) for stage in STAGES}
        else:
            fitting = dict(zip(STAGES, steps, strict=True))
        return {"precision": precision, "steps": fitting, "seconds_per_step": per_step}

    def _seconds_per_step(self) -> dict[str, float]:
        """Stage → the shorter of two measurements, since other work on the machine can only add to them."""
        from ..training.planning.cost import estimate

        configs = {stage: stage_config(stage, 1, self.config.precision, self.config.seed) for stage in STAGES}
        prompts = DataConfig().n_prompts * len(TASKS)
        return {
            stage: min(estimate(stage, config, MODEL, prompts=prompts).seconds_per_step for _ in range(2))
            for stage, config in configs.items()
        }

    def train(self, stage: Stage, plan: Mapping[str, Any]) -> dict[str, Any]:
        """Trains one stage, from where it was interrupted if it was."""
        from ..agent import M3DTAgent

        agent = M3DTAgent(MODEL, TASKS)
        config = stage_config(stage, plan["steps"][stage], plan["precision"], self.config.seed)
        agent.fit_stage(stage, self.data("datasets"), bank=self.bank, config=config, trackers=self.trackers)
        return {"steps": config.steps, "threads": config.threads}

    def evaluate(self, policy: str) -> dict[str, float]:
        """Task → mean normalized score of one of POLICIES; all of them get the same episodes."""
        from ..bank import ExpertBank
        from ..evaluation import AgentPolicy, evaluate, summarize, write_rows
        from ..training.tracking.runs import track_scores

        first = EVALUATION_SEED + self.config.seed * self.config.episodes  # runs with other seeds have other episodes
        config = EvalConfig(
            episodes=self.config.episodes, seed=first, slots=32, workers=self.config.workers, stop_on_success=True
        )
        who: AgentPolicy | str = policy
        if policy in ("backbone", "final"):
            agent = self.agent()
            agent.experts = "none" if policy == "backbone" else "mixture"
            who = AgentPolicy(agent, name=policy)
        rows = evaluate(who, TASKS, config)
        write_rows(self.out / "rows" / f"{policy}.jsonl", rows)
        summary = summarize(rows)
        track_scores(self.trackers, ExpertBank.open(self.bank, check="sizes"), summary, dataclasses.asdict(config))
        return {task: found.mean_score for task, found in summary.tasks.items()}

    def held_out_errors(self) -> dict[str, dict[str, float]]:
        """Policy → task → mean squared action error on held-out demonstrations, for "backbone" and "final"."""
        from ..evaluation import action_error

        agent, data = self.agent(), self.data("held-out")
        return {
            "backbone": action_error(agent, data, experts="none", n_windows=HELD_OUT_WINDOWS),
            "final": action_error(agent, data, experts="mixture", n_windows=HELD_OUT_WINDOWS),
        }

    def expert_weights(self) -> dict[str, list[float]]:
        """Task → (E,) router weights on held-out windows, averaged over blocks and real steps."""
        from ..evaluation import router_usage

        return router_usage(self.agent(), self.data("held-out"), seed=self.config.seed)

    def draw(self, scores: Mapping[str, Mapping[str, float]], weights: Mapping[str, list[float]]) -> str:
        """Draws the figure and returns its path."""
        from ..training.logs import learning_curves

        rows = np.array([weights[task] for task in TASKS])
        figure = FigureData(TASKS, learning_curves(self.bank), rows, self.groups(), scores)
        return str(save_figure(figure, self.out / "figure.png"))


def run(
    out: Path, config: QuickstartConfig, *, fresh: bool = False, say: Say = print, trackers: Trackers = ()
) -> dict[str, Any]:
    """Runs all parts in order; returns the summary, which is also written to `out/summary.json`.

    Args:
        fresh: delete an earlier run in `out` instead of continuing it.
        say: called with one line at the start and at the end of each part.
        trackers: told of training and of the evaluations, as `training.fit_stage` takes them.

    Raises:
        ConfigError: `out` holds something else, or a run with another config and `fresh` is not set; no such tracker.
        MissingDependencyError: a simulator or matplotlib is not installed.
    """
    require_matplotlib()
    from ..model.determinism import cpu_threads
    from ..training.tracking.trackers import make_trackers

    following = make_trackers(trackers)
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name != "workers"}
    parts, work = Parts(out, settings, say, fresh=fresh), Quickstart(out, config, following)
    with cpu_threads(THREADS):
        results = _do(parts, work)
    summary = {
        "tasks": list(TASKS),
        "seconds": sum(parts.seconds().values()),
        "seconds_per_part": parts.seconds(),
        **results,
        "threads": THREADS,
        "episodes_per_task": config.episodes,
        "seed": config.seed,
        "bank": str(work.bank),
        "figure": str(out / "figure.png"),
    }
    with disk_space_errors(out / "summary.json"):
        write_file(out / "summary.json", json.dumps(summary, indent=2, allow_nan=False).encode())
    return summary


def _do(parts: Parts, work: Quickstart) -> dict[str, Any]:
    """Does all parts in order; returns their results as they stand in the summary."""
    config = work.config
    demonstrators = parts.do("collect", lambda: work.collect("datasets", config.demonstrations, config.seed))
    parts.do("held_out", lambda: work.collect("held-out", config.held_out, config.seed + HELD_OUT_SEED))
    plan = parts.do("plan", work.plan)
    for stage in STAGES:
        parts.do(f"train_{stage}", functools.partial(work.train, stage, plan))
    scores = {policy: parts.do(f"evaluate_{policy}", functools.partial(work.evaluate, policy)) for policy in POLICIES}
    errors = parts.do("held_out_error", work.held_out_errors)
    weights = parts.do("expert_weights", work.expert_weights)
    parts.do("figure", lambda: work.draw(scores, weights))
    return {
        **plan,
        **{policy: float(np.mean(list(scores[policy].values()))) for policy in POLICIES},
        "scores": scores,
        "demonstrations": demonstrators,
        "held_out_error": _by_group(errors, work.groups()),
        "held_out_error_per_task": errors,
        "expert_weights": weights,
    }


def _by_group(errors: Mapping[str, Mapping[str, float]], groups: Mapping[str, int]) -> list[dict[str, Any]]:
    """For each expert: its tasks, and the mean of their errors for "backbone" and "final"."""
    members = {e: [task for task in TASKS if groups[task] == e] for e in sorted(set(groups.values()))}
    return [
        {"expert": e, "tasks": names, **{who: float(np.mean([errors[who][name] for name in names])) for who in errors}}
        for e, names in members.items()
    ]
