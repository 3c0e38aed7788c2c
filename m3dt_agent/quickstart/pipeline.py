"""The whole path in ten minutes on two cores: eight real tasks, from no data to an evaluated agent and a figure.

    part               what it does                                                          budget
    collect            demonstrations of eight tasks by their behavior policies             }  90 s
    held_out           a few more with other seeds, which training never sees               }
    plan               a few training steps per precision: which is faster, and how many fit
    backbone, experts, router                the three stages, small preset, four experts     300 s
    random, zero, backbone, final            ten episodes per task each, on the same seeds    150 s
    held_out_error, expert_weights, figure

    runs/quickstart/
        datasets/ held-out/ bank/           what the parts make
        parts/<part>.json                   result and seconds of each part that is done
        rows/<policy>.jsonl                 every evaluated episode
        summary.json figure.png

A part that is done is kept, so that an interrupted run continues when started again (parts.py). The eight tasks are
fixed by name and were chosen by measurement: behavior policies score 96 or more on each, random actions at most 6, and the zero
action 10 on average (standing still earns 40 on ant-dir, and the pole takes a while to fall).
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..config import STAGES, EvalConfig, ModelConfig, Stage, TrainConfig, train_preset
from ..disk import disk_space_errors, write_file
from ..errors import ConfigError
from ..plots import require_matplotlib
from ..tasks import resolve
from .figure import FigureData, save_figure
from .parts import Parts, Say

if TYPE_CHECKING:
    from ..agent import M3DTAgent
    from ..data.task_datasets import TaskDatasets

TASKS = (
    *("drawer-open", "window-close", "button-press-topdown", "faucet-open"),
    *("cartpole-balance-sparse", "walker-walk"),
    *("ant-dir-10", "cheetah-vel-22"),
)
PRECISIONS: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
POLICIES = ("random", "zero", "backbone", "final")

NOISE = {"metaworld": 0.2, "dmcontrol": 0.3, "ant-dir": 0.2, "cheetah-vel": 0.3}
"""Deviation of the action noise in half of the demonstrations, chosen from single trial runs of 1,500 backbone steps (no noise,
0.2, 0.3; three or four episodes per task; one or two of the other tasks differed too).
Scores: cheetah-vel-22 0, 87, 95; ant-dir-10 100, 96, 73; cartpole-balance-sparse not run, 49, 100. A guess at why it helps:
without noise actions are so smooth that repeating the last one fits the data."""
STAGE_SECONDS: Mapping[Stage, float] = {"backbone": 125.0, "experts": 60.0, "router": 85.0}
"""How long each stage may train; 30 s of the 300 are left for checkpoints and grouping."""
THREADS = 1
"""Torch's CPU threads. On a shared machine of two cores two threads took 20 to 50 times as long per step as one while other
processes ran, and about as long at a quieter moment."""
HELD_OUT_SEED = 1_000_000
"""Added to the run's seed for held-out demonstrations, so that no episode of theirs is one of the training data's."""

EVALUATION_SEED = 10_000
"""Of the first evaluated episode with seed 0; every seed of the run has episodes of its own."""

HELD_OUT_WINDOWS = 1024
"""Windows per task that the action error is measured on."""


@dataclass(frozen=True, slots=True)
class QuickstartConfig:
    """What a run depends on.

    steps: of the three stages; None is what this machine does in the budget. precision: None is what is faster here.
    demonstrations, held_out: episodes per task. episodes: evaluated per task and policy. workers: simulator processes (None:
    one per core); changes nothing but the time.
    """

    steps: tuple[int, int, int] | None = None
    precision: Literal["float32", "bfloat16"] | None = None
    seed: int = 0
    demonstrations: int = 200
    held_out: int = 24
    episodes: int = 10
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and (len(self.steps) != len(STAGES) or min(self.steps) < 1):
            raise ConfigError(f"steps must be three integers >= 1, one per stage; got {self.steps!r}")
        for name in ("demonstrations", "held_out"):
            if getattr(self, name) < 3:  # two are kept as prompts
                raise ConfigError(f"QuickstartConfig.{name} must be an integer >= 3; got {getattr(self, name)!r}")


def parse_steps(text: str | None) -> tuple[int, int, int] | None:
    """(1500, 300, 200) from "1500,300,200".

    Raises:
        ConfigError: not three integers.
    """
    if text is None:
        return None
    try:
        backbone, experts, router = (int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--steps takes the steps of the three stages, as in 1500,300,200; got {text!r}") from None
    return backbone, experts, router


@dataclass(frozen=True, slots=True)
class Quickstart:
    """One run in the folder `out`: what its parts do. Results are JSON-able; everything else they make is a file in `out`."""

    out: Path
    config: QuickstartConfig

    @property
    def bank(self) -> Path:
        """The folder of the bank."""
        return self.out / "bank"

    def data(self, folder: str) -> TaskDatasets:
        """The datasets of all tasks under `datasets` or `held-out`."""
        from ..data.task_datasets import TaskDatasets

        return TaskDatasets.open(self.out / folder, TASKS)

    def agent(self) -> M3DTAgent:
        """The agent of the bank as far as it is trained."""
        from ..agent import M3DTAgent

        return M3DTAgent.load(self.bank)

    def groups(self) -> dict[str, int]:
        """Task → expert."""
        from ..bank import ExpertBank

        return ExpertBank.open(self.bank).groups or {}

    def collect(self, folder: str, episodes: int, seed: int) -> dict[str, float]:
        """Demonstrations of all tasks, packed; returns the behavior policies' mean scores."""
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
        """The precision, the steps of each stage, and the measured seconds per step that decided what was left open."""
        steps, precision = self.config.steps, self.config.precision
        tried = PRECISIONS if precision is None else (precision,)
        per_step = {} if steps and precision else {name: self._seconds_per_step(name) for name in tried}
        chosen = tried[0] if len(tried) == 1 else min(tried, key=lambda name: per_step[name]["backbone"])
        if steps is None:
            fitting = {stage: max(1, round(STAGE_SECONDS[stage] / per_step[chosen][stage])) for stage in STAGES}
        else:
            fitting = dict(zip(STAGES, steps, strict=True))
        return {"precision": chosen, "steps": fitting, "seconds_per_step": per_step}

    def _seconds_per_step(self, precision: str) -> dict[str, float]:
        """Per stage the shorter of two measurements, since whatever else the machine does only ever adds."""
        from ..training.cost import estimate

        model = ModelConfig.preset("small")
        configs = {stage: stage_config(stage, 1, precision, self.config.seed) for stage in STAGES}
        return {
            stage: min(estimate(stage, config, model).seconds_per_step for _ in range(2)) for stage, config in configs.items()
        }

    def train(self, stage: Stage, plan: Mapping[str, Any]) -> dict[str, Any]:
        """One stage, from wherever it is."""
        from ..agent import M3DTAgent

        agent = M3DTAgent(ModelConfig.preset("small"), TASKS)
        config = stage_config(stage, plan["steps"][stage], plan["precision"], self.config.seed)
        agent.fit_stage(stage, self.data("datasets"), bank=self.bank, config=config)
        return {"steps": config.steps, "threads": config.threads}

    def evaluate(self, policy: str) -> dict[str, float]:
        """Mean normalized score per task; every policy gets the same episodes."""
        from ..evaluation import AgentPolicy, evaluate, summarize, write_rows

        first = EVALUATION_SEED + self.config.seed * self.config.episodes
        config = EvalConfig(self.config.episodes, first, slots=32, stop_on_success=True, workers=self.config.workers)
        who: AgentPolicy | str = policy
        if policy in ("backbone", "final"):
            agent = self.agent()
            agent.experts = "none" if policy == "backbone" else "mixture"
            who = AgentPolicy(agent, name=policy)
        rows = evaluate(who, TASKS, config)
        write_rows(self.out / "rows" / f"{policy}.jsonl", rows)
        return {task: summary.mean_score for task, summary in summarize(rows).tasks.items()}

    def held_out_errors(self) -> dict[str, dict[str, float]]:
        """Mean squared action error on held-out demonstrations, per task, of the backbone alone and of the routed mixture."""
        from ..evaluation import action_error

        agent, data = self.agent(), self.data("held-out")
        return {
            "backbone": action_error(agent, data, experts="none", n_windows=HELD_OUT_WINDOWS),
            "final": action_error(agent, data, experts="mixture", n_windows=HELD_OUT_WINDOWS),
        }

    def expert_weights(self) -> dict[str, list[float]]:
        """Task → (E,) router weights on held-out windows, mean over blocks and real steps."""
        from ..evaluation import router_usage

        return router_usage(self.agent(), self.data("held-out"), seed=self.config.seed)

    def draw(self, scores: Mapping[str, Mapping[str, float]], weights: Mapping[str, list[float]]) -> str:
        """The figure; returns its path."""
        from ..training.logs import learning_curves

        rows = np.array([weights[task] for task in TASKS])
        figure = FigureData(TASKS, learning_curves(self.bank), rows, self.groups(), scores)
        return str(save_figure(figure, self.out / "figure.png"))


def run(out: Path, config: QuickstartConfig, *, fresh: bool = False, say: Say = print) -> dict[str, Any]:
    """Everything, in order; returns the summary that is also written to `out/summary.json`.

    Raises:
        ConfigError: `out` holds a run with another config and not `fresh`.
        MissingDependencyError: a simulator or matplotlib is not installed.
    """
    require_matplotlib()
    from ..model.determinism import cpu_threads

    settings = {name: value for name, value in dataclasses.asdict(config).items() if name != "workers"}
    parts, work = Parts(out, settings, say, fresh=fresh), Quickstart(out, config)
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
    """All parts in order; their results as the summary holds them."""
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


def stage_config(stage: Stage, steps: int, precision: str, seed: int) -> TrainConfig:
    """The small preset's config of a stage, with short warm-ups.

    16 windows per step and expert in stage 2, else 32. The router learns at 3e-4: in trials on one bank and one seed it came
    close to each task's own expert there (450 steps); at 1e-3 (300) and 2e-3 (450) it did not.
    """
    of_stage: dict[Stage, dict[str, Any]] = {
        "backbone": {"batch_size": 32, "warmup_steps": 100},
        "experts": {"batch_size": 16, "warmup_steps": 50, "grouping_batches": 5, "grouping_runs": 10},
        "router": {"batch_size": 32, "warmup_steps": 50, "learning_rate": 3e-4},
    }
    shared: dict[str, Any] = {
        "precision": precision,
        "seed": seed,
        "threads": THREADS,
        "checkpoint_every": 200,
        "log_every": 20,
    }
    return train_preset("small", stage, steps=steps, **shared, **of_stage[stage])


def _by_group(errors: Mapping[str, Mapping[str, float]], groups: Mapping[str, int]) -> list[dict[str, Any]]:
    """Per expert: its tasks, and the mean of their errors for backbone and final."""
    members = {e: [task for task in TASKS if groups[task] == e] for e in sorted(set(groups.values()))}
    return [
        {"expert": e, "tasks": names, **{who: float(np.mean([errors[who][name] for name in names])) for who in errors}}
        for e, names in members.items()
    ]
