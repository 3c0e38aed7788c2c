"""`m3dt info`: what a bank holds."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from ..config import STAGES
from .shared.options import AsJson, BankName
from .shared.output import TextTable, emit, make_table, size

if TYPE_CHECKING:
    from ..bank import ExpertBank


def info_command(
    bank: BankName,
    as_json: AsJson = False,
) -> None:
    """Show what a bank holds, and verify every file of it."""
    from ..bank.builtin import open_bank

    document = describe_bank(open_bank(bank))
    emit(document, as_json=as_json, table=bank_table(document))


def describe_bank(bank: ExpertBank) -> dict[str, Any]:
    """A bank as plain values: path, hash, model, tasks, groups, status of each stage, finished experts, storage, version, file
    sizes.

    specs: of the tasks that are not among the 160. grown: task → expert, for each time that the bank has grown. untrained: the
    numbers of those experts that are not trained yet.
    """
    from ..bank.adding import untrained_experts

    return {
        "path": str(bank.path),
        "content_hash": bank.content_hash,
        "model": dataclasses.asdict(bank.config),
        "tasks": [task.name for task in bank.tasks],
        "specs": {name: spec.to_dict() for name, spec in bank.manifest.specs.items()},
        "shown": list(bank.manifest.shown),
        "grown": [growth.groups for growth in bank.growths],
        "untrained": untrained_experts(bank.manifest),
        "groups": bank.groups,
        "stages": {stage: bank.status(stage) for stage in STAGES},
        "finished_experts": list(bank.finished_experts),
        "default_experts": bank.default_experts,
        "storage": bank.storage,
        "version": bank.version,
        "files": {name: record.bytes for name, record in bank.manifest.files.items()},
    }


def bank_table(document: dict[str, Any]) -> TextTable:
    """The table of a document that `describe_bank` returned."""
    model, groups = document["model"], document["groups"] or {}
    table = make_table(f"Bank {document['path']}", ("", ""), [], left=2)
    if document["version"]:
        table.add_row("version", document["version"])
    table.add_row("model", f"{model['embed_dim']} wide, {model['n_layers']} layers, {model['n_experts']} experts per block")
    for stage, status in document["stages"].items():
        table.add_row(f"stage {stage}", status)
    table.add_row("acts with", {"none": "the backbone", "mixture": "the routed mixture"}[document["default_experts"]])
    if not groups:
        table.add_row("tasks", ", ".join(document["tasks"]))
    for expert in sorted(set(groups.values())):
        table.add_row(f"group of expert {expert}", ", ".join(task for task, group in groups.items() if group == expert))
    if document["specs"]:
        table.add_row("tasks of one's own", ", ".join(document["specs"]))
    for growth in document["grown"]:
        for expert in sorted(set(growth.values())):
            state = ", not trained yet" if expert in document["untrained"] else ""
            members = ", ".join(task for task, its in growth.items() if its == expert)
            table.add_row(f"grown by expert {expert}{state}", members)
    if document["shown"]:
        table.add_row("shown, not trained on", ", ".join(document["shown"]))
    table.add_row("weights", f"stored as {document['storage']}")
    table.add_row("files", f"{len(document['files'])}, {size(sum(document['files'].values()))}, all verified")
    table.add_row("content hash", document["content_hash"])
    return table
