"""`m3dt export`: a bank as one file that acts without torch and without this package."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .shared.acting import Acting
from .shared.options import (
    ActingExperts,
    AllTasks,
    AsJson,
    BankName,
    MaxExperts,
    RoutingMass,
    SetSeed,
    TaskNames,
    TaskSet,
    choose_tasks,
    path_option,
)
from .shared.output import TextTable, emit, make_table, quiet_stdout, size

if TYPE_CHECKING:
    from ..export import Description


def export_command(
    bank: BankName,
    names: TaskNames = None,
    to: Annotated[Path, path_option(help="New file NAME.onnx; NAME.json beside it will say what it is.")] = Path("policy.onnx"),
    all_tasks: AllTasks = False,
    task_set: TaskSet = None,
    set_seed: SetSeed = 0,
    experts: ActingExperts = None,
    routing_mass: RoutingMass = None,
    max_experts: MaxExperts = None,
    least_share: Annotated[
        float,
        typer.Option(help="Leave out experts that carry less than this share of the router's weight on each of the tasks."),
    ] = 0.0,
    int8: Annotated[bool, typer.Option("--int8", help="Weights as 8-bit integers: a smaller file, other actions.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write an ONNX file that acts in the named tasks as the bank's agent does, with onnxruntime alone."""
    from ..bank.builtin import open_bank
    from ..export import export_policy

    acting = Acting.from_options(experts, routing_mass, max_experts, "float32", "cpu")
    opened = open_bank(bank, check="sizes")
    tasks = choose_tasks(names, all_tasks=all_tasks, task_set=task_set, seed=set_seed, first=opened.tasks)
    with quiet_stdout():
        description = export_policy(acting.load(opened), tasks, to, least_share=least_share, int8=int8)
    n_bytes = to.stat().st_size
    document = {"path": str(to), "bytes": n_bytes, **dataclasses.asdict(description)}
    emit(document, as_json=as_json, table=_table(to, n_bytes, description))


def _table(to: Path, n_bytes: int, description: Description) -> TextTable:
    kept = [len(layer) for layer in description.kept_experts]
    left_out = max(task.left_out_share for task in description.tasks)
    cells = {
        "tasks": ", ".join(task.name for task in description.tasks),
        "acts with": f"{description.experts}, of bank {description.bank_hash[:12]}…",
        "experts per layer": ", ".join(map(str, kept)) + (f"; {left_out:.1%} of a task's weight left out" if left_out else ""),
        "weights": description.weights,
        "size": size(n_bytes),
        "differs from the agent by": f"{description.largest_difference:.1e}, in steps of random observations",
        **{f"input {tensor.name}": _shown(tensor.dtype, tensor.shape, tensor.meaning) for tensor in description.inputs},
        **{f"output {tensor.name}": _shown(tensor.dtype, tensor.shape, tensor.meaning) for tensor in description.outputs},
    }
    return make_table(f"{to}", ("", ""), list(cells.items()), left=2)


def _shown(dtype: str, shape: tuple[int | str, ...], meaning: str) -> str:
    return f"{dtype} ({', '.join(map(str, shape))}{',' * (len(shape) == 1)}): {meaning}"
