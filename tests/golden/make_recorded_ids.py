"""Writes `recorded_ids.json`: `PYTHONPATH=.:tests python tests/golden/make_recorded_ids.py`, from the repository root.

By these ids people's banks, collections, imports, packs, unfinished runs and benchmark cells are found again, so moving code
about may not change them. They come from plain arithmetic: every number is a whole one over a power of two, and means are over
powers of two, so that nothing is rounded that another machine could round otherwise; and from files that are empty, or text.
Those of collections and imports are made in `tests/recorded_datasets.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from recorded_datasets import asked_for, collections, imports, lay_dataset, staging

from benchmarks.experiments import EXPERIMENTS, SCALES, cells
from benchmarks.runs.data import collection_seeds
from m3dt_agent.bank import ExpertBank
from m3dt_agent.bank.builtin import open_bank
from m3dt_agent.bank.manifest import expert_file
from m3dt_agent.config import STAGES, ModelConfig, train_preset
from m3dt_agent.data.episodes import Episode, write_dataset
from m3dt_agent.data.pack import pack_dataset
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import DatasetError
from m3dt_agent.model import M3DT
from m3dt_agent.tasks import TaskSpec, get
from m3dt_agent.training.stage_inputs import StageInputs, create_bank, data_fingerprint

FILE = Path(__file__).with_name("recorded_ids.json")
TASKS = ("reach", "cartpole-balance", "cheetah-vel-20")
MODEL = ModelConfig(embed_dim=8, n_layers=1, n_heads=2, n_experts=2, context_length=3, prompt_length=2)
LENGTHS = (4, 4, 8, 16)  # each as long as all before it, so that merged means are exact


def recorded_ids(scratch: Path) -> dict[str, dict[str, Any]]:
    """All of them, by what they are of; made in the empty folder `scratch`."""
    data = small_datasets(scratch / "datasets")
    bank = small_bank(scratch / "float32", data)
    job = StageInputs(data=data, bank=bank, config=train_preset("tiny", "experts"))
    makers = {"m3dt_collect": collections(), "m3dt_import": imports(scratch / "published")}
    roots = (scratch / "roots" / str(i) for i in itertools.count())
    return {
        "banks": bank_ids(bank, bank.copy_to(scratch / "bfloat16", storage="bfloat16")),
        "data": {"all tasks": data_fingerprint(data), "one task": data_fingerprint(data.subset(TASKS[1:2]))},
        "unfinished runs": job.built_on("backbone.safetensors", groups=bank.groups),
        "packs": pack_ids(scratch / "datasets", scratch / "text"),
        **{key: {name: asked_for(make, next(roots), name) for name, make in makers[key].items()} for key in makers},
        "unfinished collections": {name: staging(make, next(roots)) for name, make in makers["m3dt_collect"].items()},
        "episode seeds": {str(seed): task for seed, task in collection_seeds(TASKS, 2, 1).items()},
        "cells": {f"{name} {scale}": cell_ids(name, scale) for name in EXPERIMENTS for scale in SCALES},
    }


# -- banks, data, packs --------------------------------------------------------------------------------------------------------


def fractions(shape: tuple[int, ...], seed: int, bits: int = 5) -> NDArray[np.float64]:
    """Numbers in [-1/2, 1/2) with `bits` binary digits."""
    numbers = np.arange(np.prod(shape, dtype=int)) * 7919 + seed * 31
    return ((numbers % 2**bits - 2 ** (bits - 1)) / 2**bits).reshape(shape)


def small_datasets(root: Path) -> TaskDatasets:
    for task in map(get, TASKS):
        write_dataset(root, task, "small", [_episode(task, length, i) for i, length in enumerate(LENGTHS)], metadata={})
    return TaskDatasets.open(root, TASKS)


def _episode(task: TaskSpec, length: int, seed: int) -> Episode:
    ends = np.arange(length) == length - 1
    return Episode(
        observations=fractions((length + 1, task.obs_dim), seed),
        actions=fractions((length, task.act_dim), seed + 1),
        rewards=fractions((length,), seed + 2),
        terminations=np.zeros(length, bool),
        truncations=ends,
        success=ends if task.domain == "metaworld" else None,
        seed=seed,
    )


def small_bank(path: Path, data: TaskDatasets) -> ExpertBank:
    """A bank with every stage done; bfloat16 rounds its weights."""
    with torch.device("meta"):  # shapes alone
        model = M3DT(MODEL)
    files = {"backbone.safetensors": model.backbone_tensors(), "router.safetensors": model.router_tensors()}
    files |= {expert_file(e): model.expert_slice(e) for e in range(MODEL.n_experts)}
    seeds = itertools.count()
    weights = {
        file: {
            name: torch.from_numpy(fractions(tuple(shape), next(seeds), 16).astype(np.float32))
            for name, shape in sorted((name, tensor.shape) for name, tensor in tensors.items())
        }
        for file, tensors in sorted(files.items())
    }
    bank = create_bank(path, MODEL, data)
    stages = {s: {"config": train_preset("tiny", s).to_dict(), "threads": 1, "data": "0" * 64} for s in STAGES}
    bank.commit(weights, stages=stages, groups=dict(zip(TASKS, (0, 1, 1), strict=True)))
    return bank


def bank_ids(wide: ExpertBank, narrow: ExpertBank) -> dict[str, Any]:
    """Content hashes; of the small bank in both storages also the format's version, and the keys of bank.json."""
    found: dict[str, Any] = {"builtin:mt160": open_bank("builtin:mt160").content_hash}
    for bank in (wide, narrow):
        manifest = json.loads((bank.path / "bank.json").read_text())
        version = {name: manifest[name] for name in ("format", "format_version")}
        manifest["files"] = {name: " ".join(record) for name, record in manifest["files"].items()}
        found[bank.storage] = {"content_hash": bank.content_hash, **version, "keys": dict(_keys("bank.json", manifest))}
    return found


def _keys(where: str, value: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield where, " ".join(value)
    for name, inner in value.items():
        if isinstance(inner, dict):
            yield from _keys(f"{where} {name}", inner)


def pack_ids(datasets: Path, text: Path) -> dict[str, Any]:
    """Of real packs what is not of the HDF5 library's making; the key alone of a dataset whose files hold a line of text."""
    found: dict[str, Any] = {}
    for task in TASKS:
        [folder] = (path for path in (datasets / ".packed" / task).iterdir() if path.is_dir())
        content = json.loads((folder / "pack.json").read_text())
        named = folder.name == f"small-v0-{content.pop('source_sha256')[:16]}"
        del content["episodes_sha256"]
        steps = hashlib.sha256((folder / "steps.f32").read_bytes()).hexdigest()
        files = sorted(file.name for file in folder.iterdir())
        found[task] = {"named by its key": named, "files": files, "pack.json": content, "steps.f32": steps}
    path = lay_dataset(text, "m3dt/reach/text-v0", {}, "This is no HDF5.\n")
    with contextlib.suppress(DatasetError):  # the key comes first
        pack_dataset(path, get("reach"))
    return found | {"key": json.loads((text / ".packed" / "reach" / "text-v0.source.json").read_text())["sha256"]}


# -- benchmark cells -----------------------------------------------------------------------------------------------------------


def cell_ids(experiment: str, scale: str) -> str:
    """How many cells there are, the first one's id, and the sha256 of all, sorted."""
    ids = [cell.id for cell in cells(experiment, scale)]
    return f"{len(ids)} from {ids[0]}, {hashlib.sha256(' '.join(sorted(ids)).encode()).hexdigest()}"


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        FILE.write_text(json.dumps(recorded_ids(Path(scratch)), indent=1) + "\n")


if __name__ == "__main__":
    main()
