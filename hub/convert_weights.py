"""Converts the authors' published weights into a bank, and a bank into their files.

               read_published              bank_from_published
    folder ─────────────────────► tensors ─────────────────────► ExpertBank, residual="published"
           ◄─────────────────────         ◄─────────────────────
              write_published                 to_published

published/weight_files.py says what the folder holds, and published/weight_names.py which of their tensors is which of ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from m3dt_agent import tasks as task_table
from m3dt_agent.bank import ExpertBank
from m3dt_agent.bank.manifest import expert_file
from m3dt_agent.config import STAGES
from m3dt_agent.data.prompts import make_prompts
from m3dt_agent.data.stats import compute_statistics
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import ConfigError
from m3dt_agent.hub.published.weight_files import read_published, write_published_files
from m3dt_agent.hub.published.weight_names import from_published, published_config, to_published
from m3dt_agent.model import M3DT
from m3dt_agent.system.disk import path_errors, publish, require_new_folder, scratch_folder, user_path
from m3dt_agent.system.documents import read_document

__all__ = ["bank_from_published", "from_published", "published_config", "read_published", "to_published", "write_published"]

_GROUP = re.compile(r"expert_([0-9]{1,3})")


def bank_from_published(
    folder: str | Path, path: str | Path, data: TaskDatasets, *, groups: str | Path | None = None, n_heads: int = 8
) -> ExpertBank:
    """Makes a bank at `path` from the authors' weights in `folder`, with residual="published". A failure leaves nothing behind.

    Args:
        data: datasets of the tasks that the weights were trained on, from which statistics and prompts are made. These are as
            published only if `data` was opened with `DataConfig.preset("paper")`.
        groups: the authors' grouping, a JSON file of "expert_<e>" → published task names; None: unknown.
        n_heads: attention heads, which the weights do not show; every published model has 8
            (docs/architecture.md#sources-of-numbers).

    Raises:
        BankError: as `read_published`, or `path` exists and is not an empty folder.
        ConfigError: `n_heads` does not fit, or the groups do not fit the tasks of the data and the experts.
        UnknownTaskError: the groups name a task that does not exist.
        DiskSpaceError: no room.
    """
    path = user_path(path)
    require_new_folder(path)
    changes = {} if groups is None else {"groups": _read_groups(user_path(groups))}
    tensors = read_published(folder)
    config = published_config(tensors, n_heads=n_heads)
    has_router = any(name.startswith("router/") for name in tensors)
    model = from_published(tensors, config, router=has_router)
    files: dict[str, Mapping[str, Tensor]] = {"backbone.safetensors": model.backbone_tensors()}
    files |= {expert_file(e): model.expert_slice(e) for e in range(config.n_experts)}
    if has_router:
        files["router.safetensors"] = model.router_tensors()
    statistics, prompts = compute_statistics(data), make_prompts(data, config.prompt_length)
    with path_errors(path), scratch_folder(path.parent) as scratch:
        ExpertBank.create(scratch, config, data.tasks, statistics, prompts, data.config).commit(files, **changes)
        publish(scratch, path)
    return ExpertBank.open(path, check="sizes")


def write_published(source: ExpertBank | M3DT, folder: str | Path, *, allow_standard_residual: bool = False) -> None:
    """Writes a bank or a model to `folder` as files that the authors' scripts load. A failure leaves nothing behind.

    An unfinished bank gives what it has: its finished experts, and the mixture only if it has a router. Iterations and seed in
    the names of the files are those of the bank's stages, or 0 if unknown.

    Args:
        allow_standard_residual: also write experts whose residual continues from x. The authors' code, which continues from
            LN(x), computes something else with them.

    Raises:
        ConfigError: the model has experts and residual="standard", and that is not allowed; or it has `top_k`, or an
            `ffn_multiple` other than 4, which the authors' code does not support.
        BankError: `folder` exists and is not an empty folder, or a file of the bank is damaged.
        StageError: the bank has no backbone.
        DiskSpaceError: no room.
    """
    folder = user_path(folder)
    require_new_folder(folder)
    bank = source if isinstance(source, ExpertBank) else None
    model = source.model() if isinstance(source, ExpertBank) else source
    config = model.config
    if config.n_experts and config.residual != "published" and not allow_standard_residual:
        raise ConfigError(
            f"residual={config.residual!r}: with these experts the authors' code, which is residual='published', computes "
            "something else; allow_standard_residual=True writes them nevertheless"
        )
    if config.ffn_multiple != 4:
        raise ConfigError(f"ffn_multiple={config.ffn_multiple}: the authors' code has 4 and cannot load other weights")
    if config.top_k is not None:
        raise ConfigError(f"top_k={config.top_k}: the authors' code uses all experts, so it would compute something else")
    kept = {"backbone", "router", *(f"expert_{e}" for e in range(config.n_experts))}
    if bank is not None and bank.default_experts != "mixture":
        kept = {"backbone", *(f"expert_{e}" for e in bank.finished_experts)}
    settings = {} if bank is None else {stage: record["config"] for stage, record in bank.manifest.stages.items()}
    write_published_files(
        folder,
        {name: tensor for name, tensor in to_published(model).items() if name.partition("/")[0] in kept},
        steps={stage: _setting(settings, stage, "steps") for stage in STAGES},
        seed=_setting(settings, "backbone", "seed"),
    )


def _setting(settings: Mapping[str, Mapping[str, Any]], stage: str, name: str) -> int:
    """A number that a stage was trained with; 0 if the bank does not say."""
    value = settings.get(stage, {}).get(name, 0)
    return value if type(value) is int and value >= 0 else 0


def _read_groups(file: Path) -> dict[str, int]:
    """Reads task → expert from the authors' JSON, {"expert_<e>": [published task name, …]}."""
    try:
        content = read_document(file, Any, ConfigError)
    except ConfigError as error:
        raise ConfigError(f"{file} is not a JSON file of groups: {error}") from error
    published = {task.published_name: task.name for task in task_table.TASKS if task.published_name}
    groups: dict[str, int] = {}
    for key, names in content.items() if isinstance(content, dict) else [(content, None)]:
        match = _GROUP.fullmatch(str(key))
        if match is None or not isinstance(names, list):
            raise ConfigError(f"{file} must hold 'expert_<e>' → list of tasks; got {str(key)[:40]!r}")
        for name in names:
            task = task_table.lookup(published, name, "published task")
            if task in groups:
                raise ConfigError(f"{file} gives {name!r} to experts {groups[task]} and {match[1]}")
            groups[task] = int(match[1])
    return groups
