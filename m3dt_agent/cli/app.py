"""`m3dt`, the command line: the composition root, where all parts meet.

    m3dt tasks                       the 160 tasks and the published sets
    m3dt collect, behavior, data     demonstrations                               (cli_data.py)
    m3dt train                       the three stages, into a bank                (cli_train.py)
    m3dt eval                        scores of a bank or a behavior policy        (cli_eval.py)
    m3dt info                        what a bank holds                            (cli_info.py)
    m3dt play                        one episode of one task                      (cli_play.py)
    m3dt convert                     published weights to a bank, and back        (cli_convert.py)
    m3dt push, pull                  banks and datasets on the Hugging Face Hub   (cli_hub.py)
    m3dt doctor                      what this machine can do
    m3dt bench                       how fast it is, from a checkout              (cli_bench.py)
    m3dt quickstart                  eight tasks from nothing to a trained agent

Exit codes: 0 done; 1 an error this package names, one line on stderr (M3DT_DEBUG=1 adds the traceback); 2 wrong usage; 130
Ctrl-C. Heavy imports happen inside commands, so that `m3dt --help` answers at once.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Group
from rich.table import Table

from .bench import bench_command
from .options import AsJson, Seed, SetSeed, TaskNames, TaskSet, Workers, emit, make_table, quiet_stdout, say, size
from .convert import convert_command
from .data import behavior_app, collect_command, data_app
from .eval import eval_command
from .hub import data_pull_command, data_push_command, pull_command, push_command
from .info import info_command
from .play import play_command
from .train import train_command
from ..errors import M3DTError, WorkerError
from ..tasks import TASKS, resolve, task_set

CONTINUES = {"collect", "train", "quickstart", "behavior", "push", "pull", "import"}
"""Commands that keep what they finished and go on from there."""

app = typer.Typer(
    name="m3dt",
    help="One agent for 160 continuous-control tasks: demonstrations, training in three stages, evaluation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("collect")(collect_command)
app.add_typer(behavior_app, name="behavior")
app.add_typer(data_app, name="data")
app.command("train")(train_command)
app.command("eval")(eval_command)
app.command("play")(play_command)
app.command("info")(info_command)
app.command("convert")(convert_command)
app.command("bench")(bench_command)
app.command("push")(push_command)
app.command("pull")(pull_command)
data_app.command("push")(data_push_command)
data_app.command("pull")(data_pull_command)


@app.command("tasks")
def tasks_command(
    names: TaskNames = None,
    set_name: TaskSet = None,
    set_seed: SetSeed = 0,
    as_json: AsJson = False,
) -> None:
    """List tasks: all 160, or those of a set, a domain or by name."""
    chosen = (*resolve(names or (), seed=set_seed), *(task_set(set_name, set_seed) if set_name else ()))
    listed = chosen or TASKS
    columns = ("task", "domain", "observations", "actions", "steps", "target return", "custom")
    cells = (
        [t.name, t.domain, t.obs_dim, t.act_dim, t.max_episode_steps, t.target_return, "yes" if t.custom else ""]
        for t in listed
    )
    emit(
        [{**dataclasses.asdict(task), "env_id": task.env_id} for task in listed],
        as_json=as_json,
        table=make_table(f"{len(listed)} tasks", columns, cells, left=2),
    )


@app.command("doctor")
def doctor_command(
    folder: Annotated[Path, typer.Option(help="Where datasets and banks would go, for its free disk space.")] = Path(),
    as_json: AsJson = False,
) -> None:
    """Versions, simulators, rendering, cores, the speed of bfloat16, disk."""
    from ..machine import diagnose

    with quiet_stdout():
        found = diagnose(folder)
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, version in {"python": found.python, "system": found.system, **found.versions}.items():
        table.add_row(name, version or "not installed")
    for name, state in {**found.simulators, **{f"rendering with {k}": v for k, v in found.rendering.items()}}.items():
        table.add_row(name, state)
    table.add_row("cores", f"{found.cores} usable, torch uses {found.threads} threads")
    table.add_row("GPU", found.cuda or "none that torch can use")
    table.add_row("bfloat16", f"{found.bf16_speed:.1f} times the speed of float32 in matrix products")
    for path, free in found.disk_free.items():
        table.add_row("free disk", f"{size(free)} at {path}")
    emit({**dataclasses.asdict(found), "bf16_speed": found.bf16_speed}, as_json=as_json, table=table)


@app.command("quickstart")
def quickstart_command(
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs", "quickstart"),
    steps: Annotated[
        str | None, typer.Option(help="Steps of the three stages, 1500,300,200; default: what this machine does in time.")
    ] = None,
    precision: Annotated[
        Literal["float32", "bfloat16"] | None, typer.Option(help="Of the training; default: what is faster on this machine.")
    ] = None,
    seed: Seed = 0,
    workers: Workers = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete an earlier run in the folder instead of continuing it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Eight tasks of all four domains: collect, train three stages, evaluate, draw. About ten minutes on two cores."""
    from ..quickstart import QuickstartConfig, parse_steps, run

    config = QuickstartConfig(steps=parse_steps(steps), precision=precision, seed=seed, workers=workers)
    with quiet_stdout():
        summary = run(out, config, fresh=fresh, say=say)
    emit(summary, as_json=as_json, table=_quickstart_tables(summary))


def _quickstart_tables(summary: dict[str, Any]) -> Group:
    """The scores of all four policies per task, and the held-out action errors per group of tasks."""
    scores = Table("task", title="Mean normalized scores", title_justify="left")
    for policy in summary["scores"]:
        scores.add_column(policy, justify="right")
    for task in summary["tasks"]:
        scores.add_row(task, *(f"{summary['scores'][policy][task]:.1f}" for policy in summary["scores"]))
    scores.add_section()
    scores.add_row("mean", *(f"{summary[policy]:.1f}" for policy in summary["scores"]))
    errors = Table("expert", "its tasks", title="Action error on held-out demonstrations", title_justify="left")
    for policy in ("backbone", "final"):
        errors.add_column(policy, justify="right")
    for group in summary["held_out_error"]:
        errors.add_row(str(group["expert"]), ", ".join(group["tasks"]), f"{group['backbone']:.5f}", f"{group['final']:.5f}")
    steps = ", ".join(f"{stage} {n:,}" for stage, n in summary["steps"].items())
    closing = f"{summary['seconds']:.0f} s in all; steps: {steps} ({summary['precision']})"
    return Group(scores, errors, closing, f"bank: {summary['bank']}", f"figure: {summary['figure']}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; `arguments` default to those of the process."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(given, prog_name="m3dt")
    except M3DTError as error:
        if os.environ.get("M3DT_DEBUG"):
            traceback.print_exc()
        if (line := _error_line(error)) is not None:
            say(line)
        return 1
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        if code == 130:
            say("interrupted; " + _how_to_continue(given))
        return code
    return 0


def _error_line(error: M3DTError) -> str | None:
    """What to tell of an error; None in a worker other than the first that only says that another has failed."""
    rank = os.environ.get("RANK", "0") if os.environ.get("WORLD_SIZE", "1") != "1" else "0"
    if rank == "0":
        return f"error: {error}"
    return None if isinstance(error, WorkerError) else f"error in worker {rank}: {error}"


def _how_to_continue(arguments: Sequence[str]) -> str:
    if arguments and (arguments[0] in CONTINUES or list(arguments[:2]) in (["data", verb] for verb in CONTINUES)):
        return "run the same command again to continue where it stopped"
    return "nothing was written"


if __name__ == "__main__":
    sys.exit(main())
