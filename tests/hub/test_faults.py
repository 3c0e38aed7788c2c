"""Every fault at every step of a push and a pull: it ends well, or in a named error, after which doing it again ends well.

    step × status × (once | for ever)                    a server that refuses, is busy, is broken
    step × connection closed after the server has acted  the answer is lost, not the deed
    file × (cut in the middle | a byte flipped)          on the way down

In no case may a half bank load, or the token appear anywhere but in the requests it is for.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from hub_server import Hub

from m3dt_agent.bank import ExpertBank
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import HubError, M3DTError
from m3dt_agent.hub.bank_stages import stage_manifests
from m3dt_agent.hub.banks import PulledBank, pull_bank, push_bank
from m3dt_agent.hub.datasets import pull_datasets, push_datasets

REPO, DATA = "alice/bank", "alice/demonstrations"
ALICE = "hf_alice"
TASKS = ("cheetah-vel-3", "reacher-easy")
STATUSES = (401, 403, 404, 412, 429, 500, 503)
TRANSIENT = (429, 500, 503)
PUSH_STEPS = {
    "look": "GET /api/models/alice/bank",
    "create": "POST /api/repos/create",
    "tags": "GET /api/models/alice/bank/refs",
    "card": "POST /api/validate-yaml",
    "preupload": "POST /api/models/alice/bank/preupload",
    "batch": "POST .*/info/lfs/objects/batch",
    "upload": "PUT /_lfs/",
    "verify": "POST /_lfs_verify/",
    "commit": "POST /api/models/alice/bank/commit/",
    "tag": "POST /api/models/alice/bank/tag/",
}
PULL_STEPS = {
    "look": "GET /api/models/alice/bank",
    "manifest": "GET .*/bank.json",
    "file": "GET .*/backbone.safetensors",
    "storage": "GET /_cdn/",
}


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory, bank: ExpertBank) -> ExpertBank:
    """The bank with one of its two experts, so that a push is two commits."""
    part = ExpertBank(bank.path, stage_manifests(bank.manifest)[1].with_experts((1,)))
    return part.copy_to(tmp_path_factory.mktemp("part") / "bank")


@pytest.fixture
def push(bank: ExpertBank) -> Callable[[], object]:
    return lambda: push_bank(bank, REPO, token=ALICE)


def outcome(attempt: Callable[[], object]) -> M3DTError | None:
    """The named error of an attempt, or None if it went well; any other exception is a failure."""
    error = None
    try:
        attempt()
    except M3DTError as named:
        error = named
    assert ALICE not in str(error)
    assert "http://" not in str(error)  # addresses may carry signatures
    return error


def cases(steps: dict[str, str], statuses: tuple[int, ...]) -> list[object]:
    """Every step with every status, once and for ever; the fast suite takes a slice in which each step and status occurs."""
    made = []
    for i, step in enumerate(steps):
        for j, status in enumerate(statuses):
            for times in (1, None):
                marks = () if j == (i + (times is None)) % len(statuses) else pytest.mark.slow
                made.append(pytest.param(step, status, times, marks=marks, id=f"{step}-{status}-{times or 'for ever'}"))
    return made


def holds(hub: Hub, bank: ExpertBank, cache: Path) -> None:
    """The repository is this bank, and its tags are there."""
    pulled = pull_bank(REPO, token=ALICE, cache_dir=cache)
    assert pulled.bank.manifest == bank.manifest
    assert {"stage-backbone", "stage-experts-1"} <= set(hub.repos["models", REPO].tags)


@pytest.mark.parametrize(("step", "status", "times"), cases(PUSH_STEPS, STATUSES))
def test_pushing_to_a_hub_that_fails(
    lfs_hub: Hub, bank: ExpertBank, push: Callable[[], object], tmp_path: Path, step: str, status: int, times: int | None
) -> None:
    lfs_hub.fail(PUSH_STEPS[step], status, times)
    error = outcome(push)
    assert lfs_hub.count(PUSH_STEPS[step])
    if times is None:
        assert error is not None
    if times and (status in TRANSIENT or (step, status) == ("commit", 412)):
        assert error is None
    if error is not None:
        assert isinstance(error, HubError)
        assert REPO in str(error)
    lfs_hub.heal()
    assert outcome(push) is None
    holds(lfs_hub, bank, tmp_path / "cache")


@pytest.mark.parametrize("step", PUSH_STEPS)
def test_pushing_when_answers_are_lost(
    lfs_hub: Hub, bank: ExpertBank, push: Callable[[], object], tmp_path: Path, step: str
) -> None:
    lfs_hub.drop(PUSH_STEPS[step])
    assert outcome(push) is None
    holds(lfs_hub, bank, tmp_path / "cache")
    commits = [commit.title for _, commit in lfs_hub.repos["models", REPO].history("main")]
    assert len(commits) == len(set(commits)) == 3  # the repository's own, backbone, expert: none twice


@pytest.mark.parametrize(("step", "status", "times"), cases(PULL_STEPS, STATUSES))
def test_pulling_from_a_hub_that_fails(
    lfs_hub: Hub, bank: ExpertBank, push: Callable[[], object], tmp_path: Path, step: str, status: int, times: int | None
) -> None:
    push()
    lfs_hub.clear()
    lfs_hub.fail(PULL_STEPS[step], status, times)
    error = outcome(lambda: pull_bank(REPO, cache_dir=tmp_path / "cache", to=tmp_path / "copy"))
    assert lfs_hub.count(PULL_STEPS[step])
    if times is None:
        assert error is not None
    if times and status in TRANSIENT:
        assert error is None
    if error is not None:
        assert isinstance(error, HubError)
        assert REPO in str(error)
        assert not (tmp_path / "copy").exists()
    lfs_hub.heal()
    assert pull_bank(REPO, cache_dir=tmp_path / "cache").bank.manifest == bank.manifest


@pytest.mark.parametrize("step", PULL_STEPS)
def test_pulling_when_connections_close(
    lfs_hub: Hub, bank: ExpertBank, push: Callable[[], object], tmp_path: Path, step: str
) -> None:
    push()
    lfs_hub.drop(PULL_STEPS[step])
    assert pull_bank(REPO, cache_dir=tmp_path / "cache").bank.manifest == bank.manifest


@pytest.mark.parametrize("name", ["bank.json", "backbone.safetensors", "experts/001.safetensors", "prompts.safetensors"])
def test_downloads_that_are_cut_or_flipped(
    hub: Hub, bank: ExpertBank, push: Callable[[], object], tmp_path: Path, name: str
) -> None:
    push()
    hub.cut(name, after_bytes=10, times=2)
    assert pull_bank(REPO, cache_dir=tmp_path / "cut").bank.manifest == bank.manifest
    hub.corrupt(name, times=1)
    assert pull_bank(REPO, cache_dir=tmp_path / "flipped").bank.manifest == bank.manifest
    hub.corrupt(name, times=None)
    error = outcome(lambda: pull_bank(REPO, cache_dir=tmp_path / "flipped-for-ever", to=tmp_path / "copy"))
    assert error is not None
    assert f"{name} arrived damaged twice" in str(error)
    assert not (tmp_path / "copy").exists()
    hub.heal()
    assert pull_bank(REPO, cache_dir=tmp_path / "flipped-for-ever").bank.manifest == bank.manifest


def test_the_token_goes_where_it_is_meant_to_go(
    hub: Hub, push: Callable[[], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")  # a login for huggingface.co
    push()
    pull_bank(REPO, cache_dir=tmp_path / "cache")
    hosts = {request.headers["host"].partition(":")[0] for request in hub.requests}
    assert "127.0.0.1" in hosts
    for request in hub.requests:
        authorization = request.headers.get("authorization", "")
        assert "hf_secret" not in authorization
        if request.headers["host"].startswith("localhost"):
            assert not authorization


DATA_STEPS = {name: step.replace("models/alice/bank", f"datasets/{DATA}") for name, step in PUSH_STEPS.items()}
del DATA_STEPS["tag"], DATA_STEPS["tags"]  # datasets are pinned by sha


@pytest.mark.parametrize("step", DATA_STEPS)
def test_pushing_datasets_to_a_hub_that_fails(lfs_hub: Hub, data: tuple[Path, TaskDatasets], tmp_path: Path, step: str) -> None:
    lfs_hub.fail(DATA_STEPS[step], 403, times=None)
    error = outcome(lambda: push_datasets(data[0], DATA, token=ALICE))
    assert isinstance(error, HubError)
    assert DATA in str(error)
    lfs_hub.heal()
    lfs_hub.drop(DATA_STEPS[step])
    lfs_hub.fail(DATA_STEPS[step], 503)
    assert outcome(lambda: push_datasets(data[0], DATA, token=ALICE)) is None
    assert lfs_hub.count(DATA_STEPS[step]) >= 2
    assert len(pull_datasets(DATA, tmp_path / "root", cache_dir=tmp_path / "cache").new) == len(TASKS)


@pytest.mark.parametrize("name", ["datasets.json", "data/metadata.json", "main_data.hdf5"])
@pytest.mark.parametrize("fault", ["cut", "corrupt"])
def test_datasets_that_are_cut_or_flipped(
    lfs_hub: Hub, data: tuple[Path, TaskDatasets], tmp_path: Path, name: str, fault: str
) -> None:
    push_datasets(data[0], DATA, token=ALICE)
    root, cache = tmp_path / "root", tmp_path / "cache"
    if fault == "cut":
        lfs_hub.cut(name, after_bytes=10, times=None)
    else:
        lfs_hub.corrupt(name, times=None)
    assert outcome(lambda: pull_datasets(DATA, root, cache_dir=cache)) is not None
    assert not list(root.glob("m3dt/*/*-v0"))
    lfs_hub.heal()
    assert len(pull_datasets(DATA, root, cache_dir=cache).new) == len(TASKS)


SCRIPT = """
import sys
from pathlib import Path
from m3dt_agent.hub.banks import pull_bank, push_bank
what, bank, repo, endpoint, cache = sys.argv[1:]
print("ready", flush=True)
if what == "push":
    push_bank(bank, repo, token="hf_alice", endpoint=endpoint)
else:
    pull_bank(repo, endpoint=endpoint, cache_dir=cache, to=Path(cache, "copy"))
"""


def run(hub: Hub, what: str, bank: Path, cache: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, what, str(bank), REPO, hub.endpoint, str(cache)]
    environment = os.environ | {"HF_HUB_DISABLE_XET": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize(
    ("what", "pattern", "number"),
    [
        ("push", "POST .*/commit/", signal.SIGKILL),
        pytest.param("pull", "GET .*/_cdn/", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("push", "POST .*/commit/", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("push", "PUT /_lfs/", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("push", "PUT /_lfs/", signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param("pull", "GET .*/_cdn/", signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_interrupted_in_the_middle(
    lfs_hub: Hub, bank: ExpertBank, tmp_path: Path, what: str, pattern: str, number: signal.Signals
) -> None:
    if what == "pull":
        push_bank(bank, REPO, token=ALICE)
    process: list[subprocess.Popen[str]] = []

    def interrupt() -> None:
        process[0].send_signal(number)
        if number == signal.SIGINT:
            time.sleep(0.5)
        else:
            process[0].wait(20)

    lfs_hub.before(pattern, interrupt)
    process.append(run(lfs_hub, what, bank.path, tmp_path / "cache"))
    _, stderr = process[0].communicate(timeout=60)
    assert process[0].returncode != 0
    assert ALICE not in stderr
    assert not psutil.pid_exists(process[0].pid)
    assert not (tmp_path / "cache" / "copy").exists()
    again = run(lfs_hub, what, bank.path, tmp_path / "cache")
    assert again.wait(60) == 0, again.stderr and again.stderr.read()
    again.communicate()
    holds(lfs_hub, bank, tmp_path / "other-cache")


def test_no_room_on_the_disk(lfs_hub: Hub, push: Callable[[], object], tmp_path: Path) -> None:
    push()
    script = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))\n" + SCRIPT
    command = [sys.executable, "-c", script, "pull", "-", REPO, lfs_hub.endpoint, str(tmp_path / "cache")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, env=os.environ | {"HF_HUB_DISABLE_XET": "1"}
    )
    assert done.returncode != 0
    assert "m3dt_agent.errors.DiskSpaceError: " in done.stderr
    assert not (tmp_path / "cache" / "copy").exists()
    pulled: PulledBank = pull_bank(REPO, cache_dir=tmp_path / "cache", to=tmp_path / "copy")
    shutil.rmtree(pulled.bank.path)
