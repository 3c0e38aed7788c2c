"""Options that several commands have, each declared once, and how their values are read.

TaskNames, TaskSet, Root, Workers, RayAddress, …       types of a command's parameters, with their help texts
path_option, path_argument                             parameters whose value is, or may be, a path: ~ is the user's folder
with_options_of                                        one parameter for each field of a dataclass, for commands that share them
choose_tasks, ray_cluster, parse_shard, parse_pairs, …   from what was typed to values, or an error that shows the form
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import typer

from ... import tasks as task_table
from ...errors import ConfigError
from ...jobs import RayCluster
from ...jobs.ray_tasks import require_ray
from ...tasks import TaskSpec

N = TypeVar("N", int, float)

SETS = ("mt10", "mt20", "mt40", "mt80", "mt120", "mt160")
DEFAULT_ROOT = Path("datasets")
"""The Minari root that commands use unless --root names another."""


def expanded(value: Any) -> Any:
    """A path, or several, or a text that may be one, with ~ for the user's folder: shells leave `--root=~/x` as it is.

    Raises:
        ConfigError: it is empty, or there is no such user.
    """
    if value is None:
        return None
    if isinstance(value, list | tuple):
        return [expanded(one) for one in value]
    text = os.path.expanduser(value)
    if not text:
        raise ConfigError("a path is empty; write . for the folder you are in")
    if text.startswith("~"):
        raise ConfigError(f"there is no home folder for {text!r}; write ./{text} if it is a path")
    return type(value)(text)


path_option = functools.partial(typer.Option, callback=expanded)
path_argument = functools.partial(typer.Argument, callback=expanded)


def complete_tasks(incomplete: str) -> list[str]:
    """The tasks, sets and domains whose names begin so, for the shell's completion."""
    names = (*(task.name for task in task_table.known()), *task_table.DOMAINS, *SETS)
    return [name for name in names if name.startswith(incomplete)]


TaskNames = Annotated[
    list[str] | None,
    typer.Argument(help="Names of tasks, sets (mt10 … mt160) or domains, in any combination.", autocompletion=complete_tasks),
]
AllTasks = Annotated[bool, typer.Option("--all", help="All 160 tasks.")]
TaskSet = Annotated[str | None, typer.Option("--set", help="A published set: mt10, mt20, mt40, mt80, mt120 or mt160.")]
SetSeed = Annotated[int, typer.Option("--set-seed", help="Which of the three published draws of a set: 0, 1 or 2.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Root = Annotated[Path, path_option(help="Minari root folder of the datasets.")]
Cache = Annotated[
    Path | None,
    path_option(help="Folder of packed copies; default: .packed in the root, or in the user's cache if that is read-only."),
]
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
BankName = Annotated[str, path_argument(help="A bank: a folder, or builtin:NAME.")]
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
PromptFrom = Annotated[
    Path | None,
    path_option(help="Minari root with demonstrations of tasks that the bank does not have; one of a task is enough."),
]
StopOnSuccess = Annotated[bool, typer.Option("--stop-on-success", help="End Meta-World episodes at success.")]
ReturnToGoMode = Annotated[
    Literal["rewards", "constant"],
    typer.Option("--rtg-mode", help="Return-to-go: lowered by each reward, or constant over the episode."),
]
Track = Annotated[
    str | None,
    typer.Option(help="Trackers of experiments, with commas between them: tensorboard, wandb, trackio."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else there.")]


def with_options_of(kind: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorates a command whose first parameter is a `kind`: in its place, typer sees one parameter for each field of it."""
    hints = get_type_hints(kind, include_extras=True)
    fields = {
        field.name: inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in dataclasses.fields(kind)
    }

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        _, *others = inspect.signature(command, eval_str=True).parameters.values()

        @functools.wraps(command)
        def run(**values: Any) -> None:
            command(kind(**{name: values.pop(name) for name in fields}), **values)

        own = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in others]
        run.__signature__ = inspect.Signature([*fields.values(), *own])  # type: ignore[attr-defined]
        return run

    return decorate


def choose_tasks(
    names: Sequence[str] | None, *, all_tasks: bool, task_set: str | None, seed: int, first: Sequence[TaskSpec] = ()
) -> tuple[TaskSpec, ...]:
    """The tasks a command works on, each once. first: as in `tasks.resolve`.

    Raises:
        ConfigError: none were named.
        UnknownTaskError: a name that is no task, set or domain.
    """
    if all_tasks:
        names = [task.name for task in task_table.TASKS]
    chosen = named_tasks(names, task_set, seed, first)
    if not chosen:
        raise ConfigError("no tasks named; give task names, --set mt10 … mt160, or --all (`m3dt tasks` lists them)")
    return chosen


def named_tasks(
    names: Sequence[str] | None, task_set: str | None, seed: int, first: Sequence[TaskSpec] = ()
) -> tuple[TaskSpec, ...]:
    """The tasks that were named, each once; none if none were. first: as in `tasks.resolve`.

    Raises:
        UnknownTaskError: a name that is no task, set or domain.
    """
    chosen: list[str | TaskSpec] = list(names or ())
    if task_set is not None:
        chosen += task_table.task_set(task_set, seed)
    return task_table.resolve(chosen, seed=seed, first=first)


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
