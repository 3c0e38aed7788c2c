"""A bank as it was at the end of each stage, and how two people's versions of one bank become one.

backbone                          ─► stage-backbone
backbone, groups, 3 of 8 experts  ─► stage-experts-3          mine: experts 0 1 2 ┐
backbone, groups, all experts     ─► stage-experts                                ├─► 0 1 2 5: every file of both,
… and the router                  ─► stage-router             yours: experts 2 5  ┘    if expert 2 is the same in both
… and what it has grown by         ─► stage-grown-1, …         a bank that has grown, and the bank that it was: the grown one
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from m3dt_agent.bank.manifest import Manifest, expert_file
from m3dt_agent.bank.tensor_files import FileRecord
from m3dt_agent.config import STAGES, Stage
from m3dt_agent.errors import HubConflictError

FREE_SETTINGS = ("threads", "experts_at_once", "log_every", "checkpoint_every")
"""Training settings that may differ between two people's experts of one bank."""


def stage_tag(manifest: Manifest) -> str:
    """The tag of what a bank has reached: stage-backbone, stage-experts-<n>, stage-experts, stage-router or stage-grown-<n>."""
    if manifest.grown:
        return f"stage-grown-{len(manifest.grown)}"
    finished = len(manifest.finished_experts)
    if "router.safetensors" in manifest.files:
        return "stage-router"
    if finished and finished == manifest.model.n_experts:
        return "stage-experts"
    return f"stage-experts-{finished}" if finished else "stage-backbone"


def stage_manifests(manifest: Manifest) -> list[Manifest]:
    """The bank's manifest at the end of each stage, and each time that it has grown; the last one is `manifest` itself."""
    whole = manifest.with_growths(())
    backbone = _without(whole, "experts", "router")
    parts = [dataclasses.replace(backbone, groups=None, grouping=None), _without(whole, "router"), whole]
    reached = [bool(manifest.finished_experts), "router.safetensors" in manifest.files]
    grown = [manifest.with_growths(manifest.grown[:count]) for count in range(1, len(manifest.grown) + 1)]
    return [*(part for part, more in zip(parts, reached, strict=False) if more), whole, *grown]


def _without(manifest: Manifest, *stages: Stage) -> Manifest:
    files = {name: record for name, record in manifest.files.items() if name.partition("/")[0].partition(".")[0] not in stages}
    return dataclasses.replace(
        manifest, files=files, stages={stage: record for stage, record in manifest.stages.items() if stage not in stages}
    )


def merge(theirs: Manifest, ours: Manifest, where: str) -> Manifest:
    """The bank that has the files of both. where: the name of theirs in error messages.

    Raises:
        HubConflictError: these are not versions of one bank: a file, the groups or the settings of a stage differ.
    """
    problems = [f"another {what}" for what in ("model", "data", "tasks") if getattr(theirs, what) != getattr(ours, what)]
    problems = [problem.replace("another data", "another data configuration") for problem in problems]
    more, fewer = sorted((theirs.grown, ours.grown), key=len, reverse=True)
    if more[: len(fewer)] != fewer:
        problems.append(f"growth by other tasks or experts ({_grown_by(theirs)} there, {_grown_by(ours)} here)")
    specs = set(theirs.specs) & set(ours.specs)
    problems += [f"another spec of task {name!r}" for name in sorted(specs) if theirs.specs[name] != ours.specs[name]]
    if theirs.storage != ours.storage:
        problems.append(f"another storage of weights ({theirs.storage} there, {ours.storage} here)")
    both = set(theirs.files) & set(ours.files)
    problems += [
        _difference(name, theirs.files[name], ours.files[name])
        for name in sorted(both)
        if theirs.files[name] != ours.files[name]
    ]
    if None not in (theirs.groups, ours.groups) and theirs.groups != ours.groups:
        problems.append("other groups of tasks")
    for stage in STAGES:
        problems += _other_settings(stage, theirs.stages.get(stage), ours.stages.get(stage))
    if problems:
        raise HubConflictError(
            f"{where} holds {'; '.join(problems)} than this bank; pull it and train what is missing, push to another name, or "
            "overwrite it"
        )
    return dataclasses.replace(
        theirs,
        groups=theirs.groups or ours.groups,
        grouping=theirs.grouping if theirs.groups else ours.grouping,
        stages=ours.stages | theirs.stages,
        files=ours.files | theirs.files,
        specs=ours.specs | theirs.specs,
        grown=more,
    )


def _grown_by(manifest: Manifest) -> str:
    return ", ".join(task for growth in manifest.grown for task in growth.tasks) or "none"


def _difference(name: str, theirs: FileRecord, ours: FileRecord) -> str:
    return f"another {name} ({theirs.sha256[:12]}… there, {ours.sha256[:12]}… here)"


def _other_settings(stage: Stage, theirs: Mapping[str, Any] | None, ours: Mapping[str, Any] | None) -> list[str]:
    if theirs is None or ours is None:
        return []
    there, here = theirs["config"], ours["config"]
    differ = sorted(key for key in {*there, *here} if key not in FREE_SETTINGS and there.get(key) != here.get(key))
    return [f"other settings of stage {stage!r} ({', '.join(differ)})"] if differ else []


def statuses(manifest: Manifest) -> tuple[bool, bool, bool, int]:
    """Whether each of the three stages is done, and how often the bank has grown."""
    experts = [expert_file(e) in manifest.files for e in range(manifest.model.n_experts)]
    done = all(experts) and bool(experts)
    return "backbone.safetensors" in manifest.files, done, "router.safetensors" in manifest.files, len(manifest.grown)
