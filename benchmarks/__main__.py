"""The benchmark's command line, `python -m benchmarks`.

list                          list the experiments
methods                       list the methods, also those of installed packages
run EXPERIMENT… --scale …     train and evaluate all cells that are not finished; continue after a kill
status EXPERIMENT… --scale …  show how far each cell is
report RUN… --out FOLDER      write tables, figures and one HTML page
compare RUN… --a A --b B      compare two methods by the interval of their paired difference
ship RUN                      publish the bank of the experiment "pretrained" with its card and its cells
validate FOLDER               check whether a run folder, ours or yours, is in the format of `benchmarks.records`
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group, RenderableType

from m3dt_agent.cli.shared.options import (
    AsJson,
    CpusPerJob,
    GpusPerJob,
    RayAddress,
    Retries,
    Shard,
    Workers,
    expanded,
    parse_shard,
    path_argument,
    path_option,
    ray_cluster,
)
from m3dt_agent.cli.shared.output import emit, make_table, quiet_stdout, say
from m3dt_agent.errors import M3DTError
from m3dt_agent.jobs import RETRIES, LocalProcesses

if TYPE_CHECKING:
    from .records import Cell
    from .report.records import Report

app = typer.Typer(
    name="benchmarks",
    help="Run the benchmark's experiments, report on them and compare methods.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Experiments = Annotated[list[str], typer.Argument(help="Names of experiments; `list` shows them.")]
Runs = Annotated[
    list[Path],
    typer.Argument(
        help="Run folders. Those of several machines are merged.", callback=lambda folders: [expanded(one) for one in folders]
    ),
]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        help="Only this method, on the task sets and seeds of the experiments; may be given several times. It need not be one "
        "of theirs: an installed package's method is run in this way.",
    ),
]
Scale = Annotated[str, typer.Option(help="How large the experiment runs: paper, small, laptop, box, wheel or smoke.")]
Out = Annotated[Path, path_option("--out", help="Folder of the run.")]
Datasets = Annotated[
    Path | None, path_option(help="Minari root of the demonstrations. Default: a folder beside the run, RUN-datasets.")
]
Device = Annotated[str, typer.Option(help="Where models run: cpu, cuda, or auto (a GPU if there is one).")]

RUN = Path("runs", "benchmark")


@app.command("list")
def list_command(as_json: AsJson = False) -> None:
    """List the experiments."""
    from .experiments import EXPERIMENTS

    found = [
        {"name": name, "title": e.title, "source": e.source, "methods": list(e.methods)} for name, e in EXPERIMENTS.items()
    ]
    lines = ([one["name"], one["source"], one["title"], ", ".join(one["methods"])] for one in found)
    emit(found, as_json=as_json, table=make_table("Experiments", ("name", "source", "title", "methods"), lines, left=4))


@app.command("methods")
def methods_command(as_json: AsJson = False) -> None:
    """List the methods, and which installed package each comes from if it is not one of the benchmark's own."""
    from .methods import METHODS, added_settings
    from .methods.installed import names

    found: list[dict[str, Any]] = [{"name": name, "package": "", "settings": {}} for name in METHODS]
    for name in names():
        settings = added_settings(name)
        found.append({"name": name, "package": settings.pop("package"), "settings": settings})
    lines = ([one["name"], one["package"], ", ".join(f"{k}={v}" for k, v in one["settings"].items())] for one in found)
    emit(found, as_json=as_json, table=make_table("Methods", ("name", "package", "settings"), lines, left=3))


@app.command("run")
def run_command(
    names: Experiments,
    methods: Methods = None,
    scale: Scale = "smoke",
    out: Out = RUN,
    datasets: Datasets = None,
    shard: Shard = "1/1",
    device: Device = "cpu",
    workers: Workers = None,
    ray: RayAddress = None,
    cpus_per_job: CpusPerJob = 1,
    gpus_per_job: GpusPerJob = 0.0,
    retries: Retries = RETRIES,
    keep_weights: Annotated[bool, typer.Option("--keep-weights", help="Keep the weights of finished cells.")] = False,
) -> None:
    """Train and evaluate all cells of the experiments that are not finished. A killed run continues when called again."""
    from .runs.runner import run_cells

    with quiet_stdout():
        run_cells(
            _cells(names, scale, methods or []),
            out,
            datasets or out.parent / f"{out.name}-datasets",
            shard=parse_shard(shard),
            device=device,
            workers=workers,
            engine=ray_cluster(ray, cpus_per_job, gpus_per_job, retries) or LocalProcesses(0),
            keep_weights=keep_weights,
            say=say,
        )


@app.command("status")
def status_command(
    names: Experiments, methods: Methods = None, scale: Scale = "smoke", out: Out = RUN, as_json: AsJson = False
) -> None:
    """Show how far each cell of the experiments is."""
    from .runs.runner import status

    found = status(_cells(names, scale, methods or []), out)
    columns = ("id", "experiment", "method", "task set", "seed", "rows", "finished")
    lines = (
        [
            one["id"],
            one["experiment"],
            one["method"],
            one["task_set"],
            one["training_seed"],
            ", ".join(one["rows"]),
            one["finished"],
        ]
        for one in found
    )
    title = f"{sum(one['finished'] for one in found)} of {len(found)} cells finished"
    emit(found, as_json=as_json, table=make_table(title, columns, lines, left=4))


@app.command("report")
def report_command(
    runs: Runs,
    out: Annotated[Path, path_option(help="Folder of the report.")] = Path("runs", "report"),
    as_json: AsJson = False,
) -> None:
    """Write tables, figures and one HTML page; print the scores and the named contrasts."""
    from .report import write_report
    from .report.tables import document

    with quiet_stdout():
        report = write_report(runs, out)
    emit(
        document(report),
        as_json=as_json,
        table=Group(*_shown(report), f"the whole report: {out / 'index.html'}, {out / 'report.md'}"),
    )


@app.command("compare")
def compare_command(
    runs: Runs,
    a: Annotated[str, typer.Option("--a", help="A method.")],
    b: Annotated[str, typer.Option("--b", help="The method to compare it with.")],
) -> None:
    """Compare two methods. The answer may be "undecided"."""
    from .report import compare

    print(compare(runs, a, b))


@app.command("ship")
def ship_command(
    run: Annotated[Path, path_argument(help="Folder of a run of the experiment `pretrained`.")],
    results: Annotated[Path, path_option(help="Folder that gets the run's finished cells.")],
    bank: Annotated[Path, path_option(help="Folder that gets the bank and its card.")] = Path(
        "m3dt_agent", "assets", "banks", "mt160"
    ),
    notes: Annotated[Path | None, path_option(help="Markdown file that the card shows after its scores.")] = None,
    version: Annotated[str, typer.Option(help="Version of the bank, in its manifest.")] = "",
) -> None:
    """Publish the bank that acted in a run, with its card and its cells. What was there before is replaced."""
    from .runs.publish import publish_bank

    with quiet_stdout():
        published = publish_bank(run, bank, results, [] if notes is None else [notes.read_text().strip()], version=version)
    size = sum(path.stat().st_size for path in published.path.rglob("*") if path.is_file())
    say(f"{published.path}: {size / 1e6:.1f} MB, content hash {published.content_hash}")


@app.command("validate")
def validate_command(folder: Annotated[Path, path_argument(help="A run folder.")]) -> None:
    """Check that a run folder is in the benchmark's format. If not, say what is wrong and exit with code 1."""
    from .records import read_run

    results = read_run(folder)
    say(f"{len(results)} cells, {sum(len(found) for r in results for found in r.episodes.values())} episodes, all valid")


def main() -> int:
    """Runs a command and returns the exit code."""
    try:
        app(prog_name="python -m benchmarks")
    except M3DTError as error:
        say(f"error: {error}")
        return 1
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    return 0


def _cells(names: list[str], scale: str, methods: list[str]) -> list[Cell]:
    """All cells of some experiments at a scale, or those of some methods."""
    from .experiments import Arm, cells
    from .methods import added_settings

    only = [Arm(method, added_settings(method)) for method in dict.fromkeys(methods)]
    return [cell for name in names for cell in cells(name, scale, only)]


def _shown(report: Report) -> list[RenderableType]:
    """What is printed of a report: the left columns of every table, its notes and its named contrasts."""
    from .report.tables import columns, sentence

    shown: list[RenderableType] = []
    for table in report.tables:
        header, lines = columns(table)
        shown.append(make_table(table.title, header[:9], [line[:9] for line in lines]))
        shown += [*table.notes, *(sentence(contrast) for contrast in table.contrasts if contrast.named)]
    return shown


if __name__ == "__main__":
    sys.exit(main())
