"""Loopback Hubs for the tests, and a machine of their own for each: no token, caches in the test's folder, no waiting."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants as constants
import huggingface_hub.file_download as file_download
import pytest
from contracts import random_bank, random_datasets
from hub_server import Hub
from huggingface_hub import _tree_cache
from huggingface_hub.utils import _http, _xet
from tqdm import tqdm

from m3dt_agent.bank import ExpertBank
from m3dt_agent.config import ModelConfig
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.hub import failures

TASKS = ("cheetah-vel-3", "reacher-easy")
TOKENS = {"hf_alice": "alice", "hf_bob": "bob"}
tqdm.monitor_interval = 0  # no thread that watches progress bars


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TaskDatasets]:
    """Datasets of two tasks, with their root; not to be changed."""
    root = tmp_path_factory.mktemp("two-tasks")
    return root, random_datasets(root, TASKS)


@pytest.fixture(scope="session")
def bank(tmp_path_factory: pytest.TempPathFactory, data: tuple[Path, TaskDatasets]) -> ExpertBank:
    """A small bank of these tasks with two experts and a router; not to be changed."""
    config = ModelConfig(8, 1, 2, n_experts=2, context_length=2, prompt_length=1, max_timesteps=60)
    return random_bank(tmp_path_factory.mktemp("small") / "bank", data[1], config)


@pytest.fixture
def waits() -> list[float]:
    """Seconds that huggingface_hub and we would have slept before trying again."""
    return []


@pytest.fixture(autouse=True)
def _own_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> Iterator[None]:
    home = tmp_path / "hf-home"
    for name, path in {"HF_HOME": home, "HF_HUB_CACHE": home / "hub"}.items():
        monkeypatch.setenv(name, str(path))
        monkeypatch.setattr(constants, name, str(path))
    for name, file in {"HF_TOKEN_PATH": "token", "HF_STORED_TOKENS_PATH": "stored_tokens"}.items():
        monkeypatch.setattr(constants, name, str(home / file))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    patient = SimpleNamespace(**{**vars(time), "sleep": waits.append})
    monkeypatch.setattr(_http, "time", patient)
    monkeypatch.setattr(file_download, "time", patient)
    monkeypatch.setattr(failures, "time", patient)
    _tree_cache._IN_MEMORY_TREE_CACHE.clear()  # both are kept per process, by paths and ports that other tests may have had
    _xet.XET_CONNECTION_INFO_CACHE.clear()
    yield
    _http.close_session()
    _xet.abort_xet_session()  # ends hf_xet's threads


@pytest.fixture
def start_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], Hub]]:
    """Starts the Hub that huggingface_hub takes for its default from then on."""
    hubs: list[Hub] = []

    def start(xet: bool) -> Hub:
        hub = Hub(tmp_path / "hub", tokens=TOKENS, cdn_host="localhost", xet=xet).start()
        hubs.append(hub)
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "0" if xet else "1")
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not xet)
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        return hub

    yield start
    for hub in hubs:
        hub.stop()


@pytest.fixture(params=["lfs", "xet"])
def hub(request: pytest.FixtureRequest, start_hub: Callable[[bool], Hub]) -> Hub:
    """A Hub, once with a client that speaks LFS and once with Xet; users alice and bob."""
    return start_hub(request.param == "xet")


@pytest.fixture
def lfs_hub(start_hub: Callable[[bool], Hub]) -> Hub:
    """A Hub where the transport does not matter: LFS only."""
    return start_hub(False)
