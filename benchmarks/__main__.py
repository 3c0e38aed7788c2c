"""`python -m benchmarks`: run experiments, look how far they are, report, compare, validate others' results.

list                          the experiments
run EXPERIMENT… --scale …     every cell that is not done yet; killed, it continues when run again
status EXPERIMENT… --scale …  what there is of every cell
report RUN… --out FOLDER      tables, figures and one HTML page
compare RUN… --a A --b B      one method against another, with the interval of their paired difference
ship RUN                      the bank of the experiment "pretrained" into the package, with its card; its rows into results
validate FOLDER               whether result rows, yours or ours, are in the format of `records`
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group, RenderableType

from m3dt_agent.cli.options import AsJson, CpusPerJob, GpusPerJob, RayAddress, Retries, Shard, Workers, parse_shard, ray_cluster
from m3dt_agent.cli.output import emit, make_table, quiet_stdout, say
from m3dt_agent.errors import M3DTError
from m3dt_agent.jobs import RETRIES, LocalProcesses

app = typer.Typer(name="benchmarks", help="The benchmark harness.", no_args_is_help=True, pretty_exceptions_enable=False)

Experiments = Annotated[list[str], typer.Argument(help="Experiments, as `list` names them.")]
Scale = Annotated[str, typer.Option(help="paper, small, laptop or smoke: the same procedure in four sizes.")]
Run = Annotated[Path, typer.Option("--out", help="Folder of the run.")]


@app.command("list")
def list_command(as_json: AsJson = False) -> None:
    """The experiments."""
    from .experiments import EXPERIMENTS

    rows = [{"name": name, "title": e.title, "source": e.source, "methods": list(e.methods)} for name, e in EXPERIMENTS.items()]
    cells = ([row["name"], row["source"], row["title"], ", ".join(row["methods"])] for row in rows)
    emit(rows, as_json=as_json, table=make_table("Experiments", ("name", "source", "title", "methods"), cells, left=4))


@app.command("run")
def run_command(
    names: Experiments,
    scale: Scale = "smoke",
    out: Run = Path("runs", "benchmark"),
    datasets: Annotated[Path | None, typer.Option(help="Minari root of the demonstrations; default: beside the run.")] = None,
    shard: Shard = "1/1",
    device: Annotated[str, typer.Option(help="Where models run: cpu, cuda, or auto, a GPU if there is one.")] = "cpu",
    workers: Workers = None,
    ray: RayAddress = None,
    cpus_per_job: CpusPerJob = 1,
    gpus_per_job: GpusPerJob = 0.0,
    retries: Retries = RETRIES,
    keep_weights: Annotated[bool, typer.Option("--keep-weights", help="Keep the weights of finished cells.")] = False,
) -> None:
    """Run every cell that is not done yet."""
    from .experiments import cells
    from .runs.runner import run_cells

    chosen = [cell for name in names for cell in cells(name, scale)]
    root = datasets or out.parent / f"{out.name}-datasets"
    with quiet_stdout():
        run_cells(
            chosen,
            out,
            root,
            shard=parse_shard(shard),
            device=device,
            workers=workers,
            engine=ray_cluster(ray, cpus_per_job, gpus_per_job, retries) or LocalProcesses(0),
            keep_weights=keep_weights,
            say=say,
        )


@app.command("status")
def status_command(
    names: Experiments, scale: Scale = "smoke", out: Run = Path("runs", "benchmark"), as_json: AsJson = False
) -> None:
    """What there is of every cell."""
    from .experiments import cells
    from .runs.runner import status

    rows = status([cell for name in names for cell in cells(name, scale)], out)
    columns = ("id", "experiment", "method", "task set", "seed", "rows", "finished")
    table_rows = (
        [r["id"], r["experiment"], r["method"], r["task_set"], r["training_seed"], ", ".join(r["rows"]), r["finished"]]
        for r in rows
    )
    title = f"{sum(r['finished'] for r in rows)} of {len(rows)} cells finished"
    emit(rows, as_json=as_json, table=make_table(title, columns, table_rows, left=4))


@app.command("report")
def report_command(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; cells of several machines are merged.")],
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("runs", "report"),
    as_json: AsJson = False,
) -> None:
    """Tables, figures and one HTML page; what is printed are the scores and what was to be tested."""
    from .report import write_report
    from .report.tables import columns, document, sentence

    with quiet_stdout():
        report = write_report(runs, out)
    shown: list[RenderableType] = []
    for table in report.tables:
        header, rows = columns(table)
        shown.append(make_table(table.title, header[:9], [row[:9] for row in rows]))
        shown += [*table.notes, *(sentence(contrast) for contrast in table.contrasts if contrast.named)]
    shown.append(f"the whole report: {out / 'index.html'}, {out / 'report.md'}")
    emit(document(report), as_json=as_json, table=Group(*shown))


@app.command("compare")
def compare_command(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.")],
    a: Annotated[str, typer.Option("--a", help="A method.")],
    b: Annotated[str, typer.Option("--b", help="The method it is compared with.")],
) -> None:
    """One method against another; the answer may be "undecided"."""
    from .report import compare

    print(compare(runs, a, b))


@app.command("ship")
def ship_command(
    run: Annotated[Path, typer.Argument(help="Folder of a run of `pretrained`.")],
    results: Annotated[Path, typer.Option(help="Where its cells are kept.")],
    bank: Annotated[Path, typer.Option(help="Where the bank goes.")] = Path("m3dt_agent", "assets", "banks", "mt160"),
    notes: Annotated[Path | None, typer.Option(help="Markdown that the card has after its scores.")] = None,
) -> None:
    """The bank that acted, its card and its rows, where they are committed."""
    from .runs.publish import ship

    with quiet_stdout():
        shipped = ship(run, bank, results, [] if notes is None else [notes.read_text().strip()])
    size = sum(path.stat().st_size for path in shipped.path.rglob("*") if path.is_file())
    say(f"{shipped.path}: {size / 1e6:.1f} MB, content hash {shipped.content_hash}")


@app.command("validate")
def validate_command(folder: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Whether a folder of cells and rows is in the benchmark's format; exit code 1 if not, with what is wrong."""
    from .records import read_run

    results = read_run(folder)
    say(f"{len(results)} cells, {sum(len(rows) for r in results for rows in r.rows.values())} episodes, all valid")


def main() -> int:
    try:
        app(prog_name="python -m benchmarks")
    except M3DTError as error:
        say(f"error: {error}")
        return 1
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
