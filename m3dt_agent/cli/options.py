"""Options that several commands have, each declared once, and how their values are read.

TaskNames, TaskSet, Root, Workers, RayAddress, …       types of a command's parameters, with their help texts
choose_tasks, ray_cluster, parse_shard, parse_pairs, …   from what was typed to values, or an error that shows the form
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import typer

from .. import tasks as task_table
from ..errors import ConfigError
from ..jobs import RayCluster
from ..jobs.ray_tasks import require_ray
from ..tasks import TaskSpec

N = TypeVar("N", int, float)

DEFAULT_ROOT = Path("datasets")
"""The Minari root that commands use unless --root names another."""

TaskNames = Annotated[
    list[str] | None, typer.Argument(help="Names of tasks, sets (mt10 … mt160) or domains, in any combination.")
]
AllTasks = Annotated[bool, typer.Option("--all", help="All 160 tasks.")]
TaskSet = Annotated[str | None, typer.Option("--set", help="A published set: mt10, mt20, mt40, mt80, mt120 or mt160.")]
SetSeed = Annotated[int, typer.Option("--set-seed", help="Which of the three published draws of a set: 0, 1 or 2.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Root = Annotated[Path, typer.Option(help="Minari root folder of the datasets.")]
Source = Annotated[str | None, typer.Option(help="Source of the datasets, the last part of m3dt/<task>/<source>-v0.")]
Device = Annotated[str, typer.Option(help="Where the model runs: cpu, cuda or cuda:1.")]
Workers = Annotated[int | None, typer.Option(help="Processes that run simulators; 0: this process; default: one per core.")]
Shard = Annotated[
    str, typer.Option(help="I/N: do only every N-th part of the work, beginning with the I-th; for job arrays of a cluster.")
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray",
        help="Run on a Ray cluster: local (started here), auto (RAY_ADDRESS, or the one running here), or an address.",
    ),
]
CpusPerJob = Annotated[int, typer.Option(help="With --ray: CPUs that a job reserves.")]
GpusPerJob = Annotated[float, typer.Option(help="With --ray: GPUs that a job reserves; fractions are allowed.")]
Retries = Annotated[int, typer.Option(help="How often a job is tried again if it or its machine fails.")]
BankName = Annotated[str, typer.Argument(help="A bank: a folder, or builtin:NAME.")]
ActingExperts = Annotated[
    str | None,
    typer.Option("--experts", help="mixture, none or an expert's number; default: the mixture, if all stages are trained."),
]
RoutingMass = Annotated[
    float | None,
    typer.Option(help="Use only the mixture's experts that together carry this share of the router's weight, in (0, 1]."),
]
MaxExperts = Annotated[int | None, typer.Option(help="Use at most this many of the mixture's experts per block.")]
ActingPrecision = Annotated[
    Literal["float32", "bfloat16", "auto"],
    typer.Option("--precision", help="Precision of the agent's matrix products; auto: whichever is faster here."),
]
StopOnSuccess = Annotated[bool, typer.Option("--stop-on-success", help="End Meta-World episodes at success.")]
ReturnToGoMode = Annotated[
    Literal["rewards", "constant"],
    typer.Option("--rtg-mode", help="Return-to-go: lowered by each reward, or constant over the episode."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else there.")]


def choose_tasks(names: Sequence[str] | None, *, all_tasks: bool, task_set: str | None, seed: int) -> tuple[TaskSpec, ...]:
    """The tasks a command works on, each once.

    Raises:
        ConfigError: none were named.
        UnknownTaskError: a name that is no task, set or domain.
    """
    if all_tasks:
        names = [task.name for task in task_table.TASKS]
    chosen = named_tasks(names, task_set, seed)
    if not chosen:
        raise ConfigError("no tasks named; give task names, --set mt10 … mt160, or --all (`m3dt tasks` lists them)")
    return chosen


def named_tasks(names: Sequence[str] | None, task_set: str | None, seed: int) -> tuple[TaskSpec, ...]:
    """The tasks that were named, each once; none if none were.

    Raises:
        UnknownTaskError: a name that is no task, set or domain.
    """
    chosen: list[str | TaskSpec] = list(names or ())
    if task_set is not None:
        chosen += task_table.task_set(task_set, seed)
    return task_table.resolve(chosen, seed=seed)


def ray_cluster(address: str | None, cpus_per_job: int, gpus_per_job: float, retries: int) -> RayCluster | None:
    """The cluster that the options name; None without --ray.

    Raises:
        MissingDependencyError: Ray is not installed.
    """
    if address is None:
        return None
    require_ray()
    return RayCluster(address, cpus_per_job, gpus_per_job, retries)


def parse_shard(text: str) -> tuple[int, int]:
    """(I, N) from "I/N".

    Raises:
        ConfigError: it is written in another way.
    """
    parts = text.split("/")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise ConfigError(f"a shard is I/N, like 1/4; got {text!r}")
    return int(parts[0]), int(parts[1])


def parse_workers(text: str) -> int | tuple[int, int]:
    """4 from "4", (2, 8) from "2:8".

    Raises:
        ConfigError: it is written in another way.
    """
    parts = text.split(":")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts) or int(parts[0]) > int(parts[-1]):
        raise ConfigError(f"workers are a number, like 4, or the fewest and the most, like 2:8; got {text!r}")
    return int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1]))


def parse_experts(text: str) -> tuple[int, ...]:
    """(3, 7) from "3,7".

    Raises:
        ConfigError: it is written in another way.
    """
    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise ConfigError(f"experts are numbers with commas between them, like 3,7; got {text!r}")
    return tuple(int(part) for part in text.split(","))


def parse_pairs(text: str, number: Callable[[str], N], what: str, example: str) -> dict[str, N]:
    """{"random": 0.2, "expert": 0.8} from "random:0.2,expert:0.8". what, example: for the error message.

    Raises:
        ConfigError: it is written in another way, or a name occurs twice.
    """
    try:
        pairs = [(name.strip(), number(value)) for name, value in (part.split(":") for part in text.split(","))]
    except ValueError:
        raise ConfigError(f"{what} is written like {example}; got {text!r}") from None
    if len(dict(pairs)) < len(pairs):
        raise ConfigError(f"{what} names each of its parts once; got {text!r}")
    return dict(pairs)
