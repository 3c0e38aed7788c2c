"""`m3dt quickstart`: from nothing to an agent trained on eight tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import RenderableType

from .shared.options import AsJson, Seed, Track, Workers, path_option
from .shared.output import emit, make_table, quiet_stdout, say, together


def quickstart_command(
    out: Annotated[Path, path_option(help="Folder of the run.")] = Path("runs", "quickstart"),
    steps: Annotated[
        str | None,
        typer.Option(help="Steps of the three stages, like 1500,300,200; default: what this machine can do."),
    ] = None,
    precision: Annotated[
        Literal["float32", "bfloat16"],
        typer.Option(help="Precision of the training; bfloat16 may be faster, and costs precision of the actions."),
    ] = "float32",
    seed: Seed = 0,
    workers: Workers = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete an earlier run in the folder instead of continuing it.")
    ] = False,
    track: Track = None,
    as_json: AsJson = False,
) -> None:
    """Collect data of eight tasks, train all three stages, evaluate and draw a figure. Takes eight minutes on two cores."""
    from ..quickstart import QuickstartConfig, parse_steps, run

    config = QuickstartConfig(steps=parse_steps(steps), precision=precision, seed=seed, workers=workers)
    with quiet_stdout():
        summary = run(out, config, fresh=fresh, say=say, trackers=track or ())
    emit(summary, as_json=as_json, table=_quickstart_tables(summary))


def _quickstart_tables(summary: dict[str, Any]) -> RenderableType:
    """Two tables: the scores of all four policies per task, and the held-out action errors per group of tasks."""
    scores = make_table("Mean normalized scores", ("task", *summary["scores"]), ())
    for task in summary["tasks"]:
        scores.add_row(task, *(f"{summary['scores'][policy][task]:.1f}" for policy in summary["scores"]))
    scores.add_section()
    scores.add_row("mean", *(f"{summary[policy]:.1f}" for policy in summary["scores"]))
    columns = ("expert", "its tasks", "backbone", "final")
    errors = make_table("Action error on held-out demonstrations", columns, (), left=2)
    for group in summary["held_out_error"]:
        errors.add_row(str(group["expert"]), ", ".join(group["tasks"]), f"{group['backbone']:.5f}", f"{group['final']:.5f}")
    steps = ", ".join(f"{stage} {n:,}" for stage, n in summary["steps"].items())
    closing = f"{summary['seconds']:.0f} s in all; steps: {steps} ({summary['precision']})"
    return together(scores, errors, closing, f"bank: {summary['bank']}", f"figure: {summary['figure']}")
