"""The authors' weights into a bank of ours, and back.

               read_published              bank_from_published
    folder ─────────────────────► tensors ─────────────────────► ExpertBank, residual="published"
           ◄─────────────────────         ◄─────────────────────
              write_published                 to_published

What lies in the folder: published/weight_files.py. Which tensor is which: published/weight_names.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from m3dt_agent import tasks as task_table
from m3dt_agent.bank import ExpertBank
from m3dt_agent.bank.manifest import expert_file
from m3dt_agent.config import STAGES
from m3dt_agent.data.prompts import make_prompts
from m3dt_agent.data.stats import compute_statistics
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.disk import disk_space_errors, publish, require_new_folder, scratch_folder
from m3dt_agent.errors import ConfigError
from m3dt_agent.hub.published.weight_files import read_published, write_published_files
from m3dt_agent.hub.published.weight_names import from_published, published_config, to_published
from m3dt_agent.model import M3DT

__all__ = ["bank_from_published", "from_published", "published_config", "read_published", "to_published", "write_published"]

_GROUP = re.compile(r"expert_(\d{1,3})")


def bank_from_published(
    folder: str | Path, path: str | Path, data: TaskDatasets, *, groups: str | Path | None = None, n_heads: int = 8
) -> ExpertBank:
    """A new bank at `path` with the authors' weights in `folder` and residual="published"; whole or not at all.

    Args:
        data: of the tasks the weights were trained on; statistics and prompts are made from it, so as published only if it was
            opened with `DataConfig.preset("paper")`.
        groups: the authors' grouping, a JSON file of "expert_<e>" → published task names; None: not known.
        n_heads: the weights do not tell; 8 in every published model (DESIGN section 5).

    Raises:
        BankError: as `read_published`, or `path` exists and is not an empty folder.
        ConfigError: `n_heads` that does not fit, or groups that are not those of the data's tasks and the experts.
        UnknownTaskError: groups with a task that does not exist.
        DiskSpaceError: no room.
    """
    path = Path(path)
    require_new_folder(path)
    changes = {} if groups is None else {"groups": _read_groups(Path(groups))}
    tensors = read_published(folder)
    config = published_config(tensors, n_heads=n_heads)
    has_router = any(name.startswith("router/") for name in tensors)
    model = from_published(tensors, config, router=has_router)
    files: dict[str, Mapping[str, Tensor]] = {"backbone.safetensors": model.backbone_tensors()}
    files |= {expert_file(e): model.expert_slice(e) for e in range(config.n_experts)}
    if has_router:
        files["router.safetensors"] = model.router_tensors()
    statistics, prompts = compute_statistics(data), make_prompts(data, config.prompt_length)
    with disk_space_errors(path), scratch_folder(path.parent) as scratch:
        ExpertBank.create(scratch, config, data.tasks, statistics, prompts, data.config).commit(files, **changes)
        publish(scratch, path)
    return ExpertBank.open(path)


def write_published(source: ExpertBank | M3DT, folder: str | Path, *, allow_standard_residual: bool = False) -> None:
    """Writes a bank or a model to `folder` as the authors' files, which their scripts load; whole or not at all.

    Of an unfinished bank what there is: no mixture without the router, and only finished experts. Iterations and seed in the
    names of the files are those the bank's stages were trained with, 0 where it does not know. allow_standard_residual: write
    experts that continue from x too; the authors' code, which continues from LN(x), computes something else with them.

    Raises:
        ConfigError: residual="standard" and experts, and this is not allowed; or `top_k` or another `ffn_multiple`
            than 4, which the authors' code has not got.
        BankError: `folder` exists and is not an empty folder, or a damaged file of the bank.
        StageError: a bank without a backbone.
        DiskSpaceError: no room.
    """
    folder = Path(folder)
    require_new_folder(folder)
    bank = source if isinstance(source, ExpertBank) else None
    model = source.model() if isinstance(source, ExpertBank) else source
    config = model.config
    if config.n_experts and config.residual != "published" and not allow_standard_residual:
        raise ConfigError(
            f"residual={config.residual!r}: with these experts the authors' code, which is residual='published', computes "
            "something else; allow_standard_residual=True writes them all the same"
        )
    if config.ffn_multiple != 4:
        raise ConfigError(f"ffn_multiple={config.ffn_multiple}: the authors' code has 4, and could not load the weights")
    if config.top_k is not None:
        raise ConfigError(f"top_k={config.top_k}: the authors' code weighs all experts, and would compute something else")
    kept = {"backbone", "router", *(f"expert_{e}" for e in range(config.n_experts))}
    if bank is not None and bank.default_experts != "mixture":
        kept = {"backbone", *(f"expert_{e}" for e in bank.finished_experts)}
    settings = {} if bank is None else {stage: record["config"] for stage, record in bank.manifest.stages.items()}
    write_published_files(
        folder,
        {name: tensor for name, tensor in to_published(model).items() if name.partition("/")[0] in kept},
        steps={stage: settings.get(stage, {}).get("steps", 0) for stage in STAGES},
        seed=settings.get("backbone", {}).get("seed", 0),
    )


def _read_groups(file: Path) -> dict[str, int]:
    """Task → expert from the authors' JSON, {"expert_<e>": [published task name, …]}."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} is not a JSON file of groups: {error}") from error
    published = {task.published_name: task.name for task in task_table.TASKS}
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
