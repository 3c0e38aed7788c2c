"""Model cards, made from a bank and its evaluation rows; datasets.py makes dataset cards.

    README.md  =  ---                 YAML the Hub indexes: license, tags, library, model-index (score per task)
                  …
                  ---
                  # owner/name        how to use it, how to train it further, stages, model, tasks and experts,
                  …                   scores (scores.py), training configuration, integrity

A card depends on its arguments only: it holds no date, path or user. It says which tasks each expert serves and whether all
experts are done, but not which ones are, so that only the push of the last expert needs a new card. Text that comes from a file
(settings, policies, versions, sources) is escaped, so that it is never markup.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import torch
from huggingface_hub import ModelCardData

from m3dt_agent import tasks as task_table
from m3dt_agent.bank import ExpertBank
from m3dt_agent.config import STAGES, Stage
from m3dt_agent.errors import BankError, StageError
from m3dt_agent.hub.cards.datasets import DatasetRow, dataset_card
from m3dt_agent.hub.cards.markdown import MARK, PAPER, card, check_names, count, escape, own_task_sections, shown, table
from m3dt_agent.hub.cards.scores import BankScores, bank_scores, eval_results, evaluation_sections
from m3dt_agent.model import M3DT
from m3dt_agent.scores import EpisodeResult

__all__ = ["MARK", "DatasetRow", "dataset_card", "model_card"]


def model_card(
    bank: ExpertBank,
    repo_id: str,
    *,
    rows: Sequence[EpisodeResult] = (),
    policy: str | None = None,
    figure: str | None = None,
    license: str = "apache-2.0",  # noqa: A002
    notes: Sequence[str] = (),
) -> str:
    """The text of README.md for `bank`, which is published as `repo_id` or part of the package as `builtin:NAME`.

    Args:
        rows: evaluated episodes of this bank, and of policies without a bank for comparison.
        policy: the policy whose rows are the bank's scores. None: the only policy that acted with this bank or, if there are
            several, the one with the bank's default experts.
        figure: path of a figure of the scores inside the repository. license: one of the Hub's identifiers.
        notes: paragraphs and sections of Markdown to insert, unchanged, after the scores.

    Raises:
        ConfigError: rows of another bank, no rows of this one, several policies and no choice, or an invalid repo id, figure or
            license.
        StageError: no backbone yet.
        BankError: `bank.json` holds invalid settings.
    """
    check_names(repo_id, figure, license)
    if bank.status("backbone") != "done":
        raise StageError("a bank without a backbone cannot act, so it gets no card; run fit_stage('backbone', ...) first")
    scores = bank_scores(bank, rows, policy) if rows else None
    sections = [
        f"# {repo_id}",
        _introduction(bank),
        *_usage(bank, repo_id),
        *_training(bank, repo_id),
        *_stages(bank),
        *_model(bank),
        *_tasks(bank),
        *([] if scores is None else evaluation_sections(scores, figure)),
        *notes,
        *_settings(bank),
        *_integrity(scores),
    ]
    return card(_metadata(bank, repo_id, scores, license), sections)


def _metadata(bank: ExpertBank, repo_id: str, scores: BankScores | None, license_id: str) -> ModelCardData:
    domains = dict.fromkeys(task.domain for task in bank.tasks)
    return ModelCardData(
        license=license_id,
        library_name="m3dt-agent",
        pipeline_tag="reinforcement-learning",
        tags=[
            *("reinforcement-learning", "offline-reinforcement-learning", "decision-transformer", "mixture-of-experts", "m3dt"),
            *domains,
        ],
        model_name=None if scores is None else repo_id,
        eval_results=None if scores is None else eval_results(scores),
    )


def _introduction(bank: ExpertBank) -> str:
    return (
        f"One agent for {count(len(bank.tasks), 'continuous-control task')}: a bank of experts for M3DT ({PAPER}, ICML 2025), "
        "a Prompt Decision Transformer whose blocks carry feed-forward experts and a router, trained offline in three stages: "
        "backbone, experts, router. The Python package `m3dt-agent` runs it and trains it further."
    )


def _usage(bank: ExpertBank, repo_id: str) -> list[str]:
    own = bank.manifest.specs
    task = next((task for task in bank.tasks if task.name not in own), bank.tasks[0])
    if task.name in own:
        imports = "from m3dt_agent import M3DTAgent\nfrom m3dt_agent.envs.make import make_env"
        make = "env = make_env(agent.tasks[0])  # once you have registered the task; see below"
    else:
        imports = "import gymnasium as gym\nimport m3dt_agent  # registers the environments\nfrom m3dt_agent import M3DTAgent"
        make = f"env = gym.make({json.dumps(task.env_id)})"
    snippet = f"""\
```python
{imports}

agent = M3DTAgent.from_pretrained("{repo_id}")
{make}
obs, info = env.reset(seed=0)
agent.reset(task={json.dumps(task.name)})
reward, done, total = None, False, 0.0
while not done:
    action = agent.act(obs, reward=reward)
    obs, reward, terminated, truncated, info = env.step(action)
    total += reward
    done = terminated or truncated
print(total)
```"""
    if bank.default_experts == "mixture":
        acts = "It acts with the routed mixture of its experts."
    elif bank.config.n_experts:
        acts = "It acts with the backbone alone; `agent.experts = e` adds expert `e`, once that is finished."
    else:
        acts = "It acts with its backbone and has no experts."
    return ["## How to use it", snippet, f"{acts} `from_pretrained(..., revision=...)` pins a tag or a commit."]


def _training(bank: ExpertBank, repo_id: str) -> list[str]:
    """How to train the first stage that is not done; empty if all are done."""
    missing = [stage for stage in _stages_of(bank) if not bank.is_done(stage)]
    if not missing or bank.growths:
        return []
    text = f"The next stage is **{missing[0]}**. With datasets of the tasks under `datasets/`, it continues from what is here:"
    commands = f"```console\n$ m3dt pull {repo_id} bank\n$ m3dt train --bank bank --root datasets --stage {missing[0]}\n```"
    return ["## How to train it further", text, commands]


def _stages_of(bank: ExpertBank) -> tuple[Stage, ...]:
    return STAGES if bank.config.n_experts else ("backbone",)


def _record(bank: ExpertBank, stage: Stage) -> dict[str, Any]:
    """The record of a finished stage's training; {} if it is unknown, as for a bank made of published weights."""
    if not bank.is_done(stage):
        return {}
    record = _checked(bank.manifest.stages.get(stage, {}), f"stage {stage!r}")
    _checked(record.get("config", {}), f"stage {stage!r}")
    return record


def _checked(settings: Any, what: str) -> dict[str, Any]:
    if not isinstance(settings, dict):
        raise BankError(f"bank.json must hold the settings of {what}; it holds {settings!r}")
    return settings


def _stages(bank: ExpertBank) -> list[str]:
    rows = []
    for stage in _stages_of(bank):
        record = _record(bank, stage)
        config, data = record.get("config", {}), record.get("data")
        known = (config.get("steps"), None if data is None else str(data)[:12], record.get("threads"), config.get("precision"))
        rows.append([stage, "done" if bank.is_done(stage) else "not done", *(shown(value) for value in known)])
    note = (
        "Steps of stage experts are per expert; which experts are finished is in `bank.json`. Data is the fingerprint of the "
        "episodes trained on. CPU threads are part of the result."
    )
    return ["## Stages", table(("stage", "status", "steps", "data", "threads", "precision"), rows, left=2), note]


def _model(bank: ExpertBank) -> list[str]:
    config = bank.config
    with torch.device("meta"):  # shapes without memory
        model = M3DT(config)
    parts = {"backbone": model.backbone_tensors(), "experts": model.expert_tensors(), "router": model.router_tensors()}
    sizes = {part: sum(parameter.numel() for parameter in tensors.values()) for part, tensors in parts.items()}
    each = f" ({sizes['experts'] // config.n_experts:,} each)" if config.n_experts else ""
    rows = [
        ("width, layers, heads", f"{config.embed_dim}, {config.n_layers}, {config.n_heads}"),
        ("experts per block", f"{config.n_experts}" + (f", the {config.top_k} heaviest per token" if config.top_k else "")),
        ("context, prompt", f"{config.context_length} steps, {config.prompt_length} steps"),
        ("residual", config.residual),
        ("parameters of the backbone", f"{sizes['backbone']:,}"),
        ("parameters of the experts", f"{sizes['experts']:,}{each}"),
        ("parameters of the router", f"{sizes['router']:,}"),
        ("parameters, all", f"{sum(sizes.values()):,}"),
    ]
    if later := [expert for growth in bank.growths for expert in growth.experts]:
        rows.append(("experts that came later", f"{len(later)}, for tasks of their own"))
    if left_out := [name for name in ("returns", "timesteps") if not getattr(config, f"use_{name}")]:
        rows.append(("it does not see", " or ".join(left_out)))
    if not config.use_embed_norm:
        rows.append(("embedded tokens", "not normalized"))
    if bank.version:
        rows.append(("version", escape(bank.version)))
    if bank.storage != "float32":
        rows.append(("weights", f"stored as {bank.storage}, used as float32"))
    return ["## Model", table(("", "when all stages are done"), rows)]


def _tasks(bank: ExpertBank) -> list[str]:
    text = "These tasks are not among the 160 that come with the package. The agent acts in them; to make their environments"
    return [*_task_table(bank), *_grown(bank), *_shown(bank), *own_task_sections(bank.manifest.specs.values(), text)]


def _grown(bank: ExpertBank) -> list[str]:
    """The tasks by which the bank has grown, and how their experts were trained."""
    rows = []
    for growth in bank.growths:
        record = _checked(growth.training, "a growth")
        config, data = _checked(record.get("config", {}), "a growth"), record.get("data")
        known = (config.get("steps"), config.get("batch_size"), config.get("learning_rate"))
        for expert in growth.experts:
            tasks = escape(", ".join(growth.members(expert)))
            rows.append([f"{expert}", tasks, *map(shown, known), shown(None if data is None else str(data)[:12])])
    text = (
        "The bank has grown: after its stages it got these tasks, each with an expert of its own over the same backbone. The "
        "router does not know these experts, and what the bank does in its other tasks is as it was, to the last bit."
    )
    columns = ("expert", "tasks", "steps", "windows per step", "learning rate", "data")
    return ["## Tasks that came later", text, table(columns, rows, left=2)] if rows else []


def _shown(bank: ExpertBank) -> list[str]:
    """What is said of the tasks that the bank was not trained on."""
    if not (names := bank.manifest.shown):
        return []
    text = "Nothing was trained on these tasks; the bank has statistics and prompts of them, from demonstrations: "
    return [text + escape(", ".join(names)) + "."]


def _task_table(bank: ExpertBank) -> list[str]:
    groups, names = bank.groups, [task.name for task in bank.tasks]
    if groups is None:
        by_domain = task_table.by_group(bank.tasks)
        rows = [(escape(domain), f"{len(of)}", escape(", ".join(of))) for domain, of in by_domain.items()]
        return ["## Tasks", table(("domain", "tasks", ""), rows, left=3)]
    by_expert = {e: [name for name in names if groups.get(name) == e] for e in range(bank.config.n_experts)}
    rows = [(f"{e}", f"{len(of)}", escape(", ".join(of))) for e, of in by_expert.items()]
    text = "Each expert is trained on the tasks of its group. The router weighs all experts, for every task."
    return ["## Tasks and experts", text, table(("expert", "tasks", ""), rows, left=3)]


def _settings(bank: ExpertBank) -> list[str]:
    """Every setting of every stage, collapsed."""
    stages = _stages_of(bank)
    configs = [_record(bank, stage).get("config", {}) for stage in stages]
    fields = dict.fromkeys(field for config in configs for field in config)
    training = [(escape(field), *(shown(config.get(field)) for config in configs)) for field in fields]
    other = {"data": dataclasses.asdict(bank.data_config), "grouping": _checked(bank.manifest.grouping or {}, "the grouping")}
    tables = [table(("training", *stages), training)] if training else ["How it was trained is not known."]
    for name, values in other.items():
        tables += [table((name, ""), [(escape(field), shown(value)) for field, value in values.items()])] if values else []
    summary = "Settings of the stages, the data and the grouping"
    return ["## Training configuration", f"<details>\n<summary>{summary}</summary>", *tables, "</details>"]


def _integrity(scores: BankScores | None) -> list[str]:
    text = (
        "`bank.json` holds the sha256 of every file, and each file is checked against it before a tensor of it is used. "
        "Nothing in this repository is executed: the weights are safetensors, there is no pickle and no code."
    )
    tested = f" The scores above belong to the bank with content hash `{scores.content_hash}`." if scores else ""
    return ["## Integrity", text + tested]
