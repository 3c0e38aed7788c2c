"""Counts the requests and bytes that banks and datasets cost on the Hub, with the real client and a Hub server on loopback.

    python -m benchmarks.perf.transfer [--experts 48] [--embed-dim 32] [--datasets 160] [--folder DIR] [--json [FILE]] [--quick]

For comparison, the same folders are sent with `HfApi.upload_folder` and fetched with `snapshot_download`, the obvious way.
Nothing is timed, because seconds on loopback say nothing about a network.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import numpy as np
from contracts import random_bank
from hub_server import Hub
from huggingface_hub import HfApi, constants, snapshot_download

from m3dt_agent import tasks
from m3dt_agent.bank.manifest import expert_file
from m3dt_agent.config import ModelConfig
from m3dt_agent.data.episodes import Episode, write_dataset
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.hub.banks import pull_bank, push_bank
from m3dt_agent.hub.datasets import pull_datasets, push_datasets

from .frame import add_options, begin, finish, table_wanted

TOKEN = "hf_benchmark"
BANK, DATA = "user/bank", "user/demonstrations"


@dataclass(frozen=True, slots=True)
class Cost:
    """What one action cost: requests, successful commits among them, and bytes of request and response bodies."""

    what: str
    requests: int
    commits: int
    bytes_up: int
    bytes_down: int


def measured(hub: Hub, what: str, deed: Callable[[], object]) -> Cost:
    hub.clear()
    deed()
    commits = sum(request.status == 200 for request in hub.seen("POST .*/commit/"))
    return Cost(what, hub.count(), commits, hub.bytes_in(), hub.bytes_out())


def small_datasets(root: Path, count: int) -> None:
    """One short episode for each of the first `count` tasks."""
    generator = np.random.default_rng(0)
    for task in tasks.TASKS[:count]:
        if (root / "m3dt" / task.name).exists():
            continue
        ends = np.arange(20) == 19
        episodes = [
            Episode(
                generator.normal(size=(21, task.obs_dim)),
                generator.uniform(-1, 1, (20, task.act_dim)),
                generator.normal(size=20),
                ends & False,
                ends,
                seed=i,
            )
            for i in range(3)
        ]
        write_dataset(root, task, "small", episodes, metadata={})


def bank_costs(hub: Hub, folder: Path, config: ModelConfig, data: TaskDatasets) -> list[Cost]:
    bank = random_bank(folder / "bank", data, config)
    costs = [
        measured(hub, f"push a bank of {config.n_experts} experts, three stages", lambda: push_bank(bank, BANK, token=TOKEN))
    ]
    changed = {name: tensor + 1 for name, tensor in bank.read(expert_file(config.n_experts // 2)).items()}
    bank.commit({expert_file(config.n_experts // 2): changed})
    costs.append(measured(hub, "push it again, one expert changed", lambda: push_bank(bank, BANK, token=TOKEN, overwrite=True)))
    costs.append(measured(hub, "push it again, nothing changed", lambda: push_bank(bank, BANK, token=TOKEN)))
    sha = pull_bank(BANK, cache_dir=folder / "other", endpoint=hub.endpoint).sha

    def pull(revision: str | None = None, experts: list[int] | None = None, cache: str = "cache") -> Callable[[], object]:
        return lambda: pull_bank(BANK, revision, experts=experts, cache_dir=folder / cache, endpoint=hub.endpoint)

    costs.append(measured(hub, "pull it", pull()))
    costs.append(measured(hub, "pull main again", pull()))
    costs.append(measured(hub, "pull the same sha again", pull(sha)))
    costs.append(measured(hub, "pull two of its experts", pull(experts=[1, 2], cache="two")))
    return costs


def dataset_costs(hub: Hub, folder: Path, root: Path) -> list[Cost]:
    costs = [measured(hub, "push the datasets", lambda: push_datasets(root, DATA, token=TOKEN))]
    costs.append(measured(hub, "push them again, nothing changed", lambda: push_datasets(root, DATA, token=TOKEN)))

    def pull(names: list[str] | None, where: str) -> Callable[[], object]:
        return lambda: pull_datasets(DATA, folder / where, names, cache_dir=folder / "cache", endpoint=hub.endpoint)

    costs.append(measured(hub, "pull two of them", pull([task.name for task in tasks.TASKS[:2]], "two")))
    costs.append(measured(hub, "pull all", pull(None, "all")))
    costs.append(measured(hub, "pull all again", pull(None, "all")))
    return costs


def plain_costs(hub: Hub, folder: Path, kind: str, source: Path, what: str) -> list[Cost]:
    """Counts `upload_folder` and `snapshot_download` without any of our code."""
    api, repo = HfApi(endpoint=hub.endpoint, token=TOKEN), f"user/plain-{what}"
    api.create_repo(repo, repo_type=kind)

    def upload() -> object:
        return api.upload_folder(repo_id=repo, repo_type=kind, folder_path=source, ignore_patterns=[".*", "logs/*"])

    def download() -> object:
        return snapshot_download(repo, repo_type=kind, cache_dir=folder / "plain", endpoint=hub.endpoint)

    costs = [measured(hub, f"plain upload_folder of the {what}", upload)]
    costs.append(measured(hub, "plain upload_folder again, nothing changed", upload))
    costs.append(measured(hub, f"plain snapshot_download of the {what}", download))
    costs.append(measured(hub, "plain snapshot_download again", download))
    return costs


def main() -> None:
    """Parses the command line, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experts", type=int, default=48)
    parser.add_argument("--embed-dim", type=int, default=32)
    parser.add_argument("--datasets", type=int, default=160)
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    add_options(parser)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.experts, arguments.datasets = 4, 4
    record = begin("transfer", experts=arguments.experts, datasets=arguments.datasets, quick=arguments.quick)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder, root = Path(name), Path(name, "datasets")
        small_datasets(root, arguments.datasets)
        data = TaskDatasets.open(root, tasks.TASKS[: min(arguments.datasets, 8)])
        config = ModelConfig(arguments.embed_dim, 2, 2, n_experts=arguments.experts, context_length=4, prompt_length=2)
        with Hub(folder / "hub", tokens={TOKEN: "user"}) as hub:
            use_endpoint(hub.endpoint)
            costs = bank_costs(hub, folder, config, data) + dataset_costs(hub, folder, root)
        with Hub(folder / "plain-hub", tokens={TOKEN: "user"}) as hub:
            use_endpoint(hub.endpoint)
            costs += plain_costs(hub, folder, "model", folder / "bank", "bank")
            costs += plain_costs(hub, folder, "dataset", root, "datasets")
    finish(record, costs, json_path=arguments.json)
    if not table_wanted(arguments.json):
        return
    print(f"{'':52}{'requests':>10}{'commits':>9}{'MB up':>10}{'MB down':>10}")
    for cost in costs:
        print(f"{cost.what:52}{cost.requests:10,}{cost.commits:9}{cost.bytes_up / 1e6:10.3f}{cost.bytes_down / 1e6:10.3f}")


def use_endpoint(endpoint: str) -> None:
    """Points huggingface_hub at the server; it read its endpoint when it was imported, before there was one."""
    constants.ENDPOINT = endpoint
    constants.HUGGINGFACE_CO_URL_TEMPLATE = endpoint + "/{repo_id}/resolve/{revision}/{filename}"


if __name__ == "__main__":
    main()
