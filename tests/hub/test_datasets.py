"""Collections of datasets on a loopback Hub: Minari sees what was pulled, and only what is sound gets that far."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pickle
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import minari
import numpy as np
import pytest
from contracts import random_datasets
from hub_server import Hub
from huggingface_hub import HfApi, snapshot_download

from m3dt_agent.data.episodes import Episode, read_episodes, write_dataset
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import DatasetError, HubConflictError, HubError, M3DTError, UnknownTaskError
from m3dt_agent.hub.dataset_records import describe
from m3dt_agent.hub.datasets import PulledDatasets, open_pulled, pull_datasets, push_datasets
from m3dt_agent.tasks import get

REPO, ALICE, BOB = "alice/demonstrations", "hf_alice", "hf_bob"
TASKS = ("cheetah-vel-3", "reacher-easy", "reach")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small datasets; not to be changed."""
    folder = tmp_path_factory.mktemp("root")
    random_datasets(folder, TASKS)
    return folder


@pytest.fixture
def own(root: Path, tmp_path: Path) -> Path:
    """A copy of them."""
    return Path(shutil.copytree(root, tmp_path / "own", ignore=shutil.ignore_patterns(".packed")))


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.glob("m3dt/**/*") if path.is_file()}


def test_a_pulled_collection_is_the_one_that_was_pushed(hub: Hub, root: Path, tmp_path: Path) -> None:
    pushed = push_datasets(root, REPO, token=ALICE)
    assert (len(pushed.datasets), pushed.commits) == (3, 1)
    pulled = pull_datasets(REPO, tmp_path / "new")
    assert pulled.sha == pushed.sha
    assert files(tmp_path / "new") == files(root)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [".pull", "m3dt"]
    data = TaskDatasets.open(tmp_path / "new", TASKS)
    assert [task.name for task in data.tasks] == list(TASKS)


def test_unmodified_minari_lists_and_loads_it(
    lfs_hub: Hub, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_datasets(root, REPO, token=ALICE)
    pull_datasets(REPO, tmp_path / "new")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "new"))
    assert set(minari.list_local_datasets()) == {f"m3dt/{task}/random-v0" for task in TASKS}
    dataset = minari.load_dataset("m3dt/reach/random-v0")
    assert dataset.total_episodes == 4
    for ours, theirs in zip(read_episodes(root / "m3dt/reach/random-v0"), dataset.iterate_episodes(), strict=True):
        np.testing.assert_array_equal(ours.observations, theirs.observations)
        np.testing.assert_array_equal(ours.actions, theirs.actions)


def test_huggingface_hub_alone_lists_and_downloads_it(
    hub: Hub, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha = push_datasets(root, REPO, token=ALICE).sha
    assert [info.id for info in HfApi(endpoint=hub.endpoint).list_datasets(author="alice")] == [REPO]
    snapshot_download(REPO, repo_type="dataset", revision=sha, local_dir=tmp_path / "raw", endpoint=hub.endpoint)
    assert files(tmp_path / "raw") == files(root)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "raw"))  # the layout is Minari's own
    assert minari.load_dataset("m3dt/reacher-easy/random-v0").total_steps == 48


def test_only_what_is_asked_for_travels(lfs_hub: Hub, root: Path, tmp_path: Path) -> None:
    push_datasets(root, REPO, ["reach", "reacher-easy"], token=ALICE)
    lfs_hub.clear()
    pulled = pull_datasets(REPO, tmp_path / "new", ["reach"])
    assert list(pulled.paths) == ["m3dt/reach/random-v0"]
    assert not lfs_hub.count("reacher-easy")
    assert push_datasets(root, REPO, token=ALICE).datasets == ("m3dt/cheetah-vel-3/random-v0",)
    with pytest.raises(DatasetError, match=r"holds no dataset of walker-run; it holds 3"):
        pull_datasets(REPO, tmp_path / "new", ["walker-run"])
    with pytest.raises(DatasetError, match=r"from source 'expert'"):
        pull_datasets(REPO, tmp_path / "new", source="expert")
    with pytest.raises(DatasetError, match="no dataset of walker-run"):
        push_datasets(root, REPO, ["walker-run"], token=ALICE)
    with pytest.raises(UnknownTaskError):
        pull_datasets(REPO, tmp_path / "new", ["walker-fly"])
    with pytest.raises(HubError, match="no such repository"):
        pull_datasets("alice/nothing", tmp_path / "new")


def test_what_is_there_already_is_kept(lfs_hub: Hub, root: Path, tmp_path: Path) -> None:
    sha = push_datasets(root, REPO, token=ALICE).sha
    assert len(pull_datasets(REPO, tmp_path / "new", revision=sha).new) == 3
    lfs_hub.clear()
    again = pull_datasets(REPO, tmp_path / "new", revision=sha)
    assert (len(again.paths), again.new) == (3, ())
    assert not lfs_hub.requests
    shutil.rmtree(tmp_path / "new/m3dt/reach")
    assert pull_datasets(REPO, tmp_path / "new", revision=sha).new == ("m3dt/reach/random-v0",)
    assert not lfs_hub.count("cheetah|reacher")
    lfs_hub.clear()
    assert push_datasets(root, REPO, token=ALICE).commits == 0
    assert not lfs_hub.bytes_in("commit|_lfs")


def test_another_dataset_of_the_same_name(lfs_hub: Hub, root: Path, own: Path, tmp_path: Path) -> None:
    push_datasets(root, REPO, token=ALICE)
    shutil.rmtree(own / "m3dt/reach")
    random_datasets(own, ["reach"], episodes=5)
    with pytest.raises(HubConflictError, match="m3dt/reach/random-v0"):
        push_datasets(own, REPO, token=ALICE)
    with pytest.raises(DatasetError, match="exists and holds something else"):
        pull_datasets(REPO, own)
    assert len(list(read_episodes(own / "m3dt/reach/random-v0"))) == 5
    assert pull_datasets(REPO, own, overwrite=True).new == ("m3dt/reach/random-v0",)
    assert len(list(read_episodes(own / "m3dt/reach/random-v0"))) == 4
    random_datasets(tmp_path / "five", ["reach"], episodes=5)
    assert push_datasets(tmp_path / "five", REPO, token=ALICE, overwrite=True).datasets == ("m3dt/reach/random-v0",)
    assert len(pull_datasets(REPO, tmp_path / "new").paths) == 3


def test_two_who_push_at_once(hub: Hub, root: Path) -> None:
    push_datasets(root, REPO, ["reach"], token=ALICE)
    hub.grant("datasets", REPO, "bob")
    hub.before("POST .*/commit/", lambda: push_datasets(root, REPO, ["reacher-easy"], token=BOB))
    push_datasets(root, REPO, ["cheetah-vel-3"], token=ALICE)
    assert len(json.loads(hub.read("datasets", REPO, "datasets.json"))["datasets"]) == 3


def test_many_datasets_take_few_commits(lfs_hub: Hub, tmp_path: Path) -> None:
    tasks = [f"cheetah-vel-{i}" for i in range(36)]
    for name in tasks:
        write_one_episode(tmp_path / "root", name)
    pushed = push_datasets(tmp_path / "root", REPO, token=ALICE)
    assert (len(pushed.datasets), pushed.commits) == (36, 2)


def write_one_episode(root: Path, name: str) -> None:
    task = get(name)
    flags = np.array([False, True])
    episode = Episode(np.zeros((3, task.obs_dim)), np.zeros((2, task.act_dim)), np.zeros(2), flags & False, flags, seed=0)
    write_dataset(root, task, "tiny", [episode], metadata={})


def test_folders(root: Path, tmp_path: Path) -> None:
    pulled = pull_datasets(root, tmp_path / "copy", iter(["reach"]))
    assert (pulled.sha, pulled.new) == (None, ("m3dt/reach/random-v0",))
    others = {"m3dt/cheetah-vel-3/random-v0", "m3dt/reacher-easy/random-v0"}
    assert set(push_datasets(root, tmp_path / "copy").datasets) == others
    assert files(tmp_path / "copy") == files(root)


class TestReplacing:
    """The old dataset is there until the new one is, whatever happens in between: bytes on the disk are compared."""

    @pytest.fixture
    def five(self, tmp_path: Path) -> Path:
        """Another dataset of the same name."""
        random_datasets(tmp_path / "five", ["reach"], episodes=5)
        return tmp_path / "five"

    def test_a_folder_that_cannot_be_moved_in(self, own: Path, five: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before, rename = files(own), os.rename
        target = own / "m3dt/reach/random-v0"

        def refuse(source: Path, to: Path) -> None:
            if Path(to) == target and ".pull" in str(source):
                raise PermissionError(errno.EACCES, "no", str(to))
            rename(source, to)

        monkeypatch.setattr(os, "rename", refuse)
        with pytest.raises(M3DTError, match="random-v0 cannot be used"):
            pull_datasets(five, own, overwrite=True)
        assert files(own) == before
        monkeypatch.undo()
        pull_datasets(five, own, overwrite=True)
        assert files(own) == before | files(five)

    def test_a_kill_at_every_step(self, own: Path, five: Path, tmp_path: Path) -> None:
        before, after = files(own), files(own) | files(five)
        steps = 0
        while True:
            shutil.rmtree(tmp_path / "root", ignore_errors=True)
            root = Path(shutil.copytree(own, tmp_path / "root"))
            if not self.killed_at(steps, five, root):
                break
            everything = {path.read_bytes() for path in (root / "m3dt/reach").rglob("*") if path.is_file()}
            whole = [{content for name, content in kind.items() if "/reach/random" in name} for kind in (before, after)]
            assert any(kind <= everything for kind in whole)  # the old one or the new one, each file of it
            with contextlib.suppress(DatasetError):
                pull_datasets(five, root)  # says that another is there, if it is
            assert files(root) in (before, after)
            pull_datasets(five, root, overwrite=True)
            assert files(root) == after
            steps += 1
        assert steps >= 3
        assert files(root) == after

    def killed_at(self, step: int, source: Path, root: Path) -> bool:
        """Replaces a dataset in a process that is killed before its rename number `step`; False: it made fewer."""
        child = os.fork()
        if child == 0:
            rename, count = os.rename, iter(range(step, -1, -1))

            def kill_or_rename(*paths: Path) -> None:
                if next(count, -1) == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                rename(*paths)

            os.rename = kill_or_rename  # type: ignore[assignment]
            try:
                pull_datasets(source, root, overwrite=True, progress=False)
                os._exit(0)
            finally:
                os._exit(1)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        return os.WIFSIGNALED(status)


class TestForeign:
    """What others may have put there."""

    def plant(self, hub: Hub, root: Path, name: str, change: Callable[[Path], object]) -> None:
        """Replaces a dataset on the Hub by a changed one, with a manifest that vouches for it."""
        task = get(name)
        path = root / "m3dt" / name / "random-v0"
        change(path)
        manifest = json.loads(hub.read("datasets", REPO, "datasets.json"))
        for file in ("data/metadata.json", "data/main_data.hdf5"):
            content = (path / file).read_bytes()
            manifest["datasets"][f"m3dt/{task.name}/random-v0"]["files"][file] = {
                "sha256": hashlib.sha256(content).hexdigest(),
                "bytes": len(content),
            }
            hub.plant("datasets", REPO, f"m3dt/{task.name}/random-v0/{file}", content)
        hub.plant("datasets", REPO, "datasets.json", json.dumps(manifest).encode())

    @pytest.fixture
    def pushed(self, lfs_hub: Hub, root: Path) -> Hub:
        push_datasets(root, REPO, token=ALICE)
        return lfs_hub

    @pytest.mark.parametrize(
        "change",
        [
            {"entry_point": "os:system"},
            {"id": "Other-v0"},
            {"kwargs": {"command": "touch executed"}},
            {"additional_wrappers": [{"name": "x", "entry_point": "os:system", "kwargs": {}}]},
            {"vector_entry_point": "os:system"},
        ],
    )
    def test_an_env_spec_that_names_a_command(self, pushed: Hub, own: Path, tmp_path: Path, change: dict[str, Any]) -> None:
        def edit(path: Path) -> None:
            file = path / "data/metadata.json"
            metadata = json.loads(file.read_text())
            metadata["env_spec"] = json.dumps(json.loads(metadata["env_spec"]) | change)
            file.write_text(json.dumps(metadata))

        self.plant(pushed, own, "reach", edit)
        with pytest.raises(DatasetError, match="env_spec names something other than M3DT/reach-v0"):
            pull_datasets(REPO, tmp_path / "new", ["reach"])
        assert not (tmp_path / "new/m3dt/reach").exists() or not list((tmp_path / "new/m3dt/reach").glob("*-v0"))
        with pytest.raises(DatasetError, match="env_spec"):
            push_datasets(own, "alice/other", token=ALICE)
        assert pull_datasets(REPO, tmp_path / "new", ["reacher-easy"]).new

    def test_missing_spaces(self, pushed: Hub, own: Path, tmp_path: Path) -> None:
        def edit(path: Path) -> None:
            file = path / "data/metadata.json"
            metadata = json.loads(file.read_text())
            del metadata["observation_space"]  # Minari would make the environment to find out
            file.write_text(json.dumps(metadata))

        self.plant(pushed, own, "reach", edit)
        with pytest.raises(DatasetError, match="observation_space is missing"):
            pull_datasets(REPO, tmp_path / "new", ["reach"])

    def test_nan(self, pushed: Hub, own: Path, tmp_path: Path) -> None:
        def edit(path: Path) -> None:
            with h5py.File(path / "data/main_data.hdf5", "r+") as file:
                file["episode_1/rewards"][3] = np.nan

        self.plant(pushed, own, "reach", edit)
        with pytest.raises(DatasetError, match=r"episode 1, step 3: rewards holds NaN"):
            pull_datasets(REPO, tmp_path / "new", ["reach"])

    @pytest.mark.parametrize(
        ("edit", "match"),
        [
            (lambda m: m.update(format_version=2), "format version 2; this version of m3dt-agent reads 1"),
            (lambda m: m.update(format="lerobot"), "damaged or foreign"),
            (lambda m: m["datasets"].update({"../../evil": m["datasets"]["m3dt/reach/random-v0"]}), "not a dataset's id"),
            (lambda m: m["datasets"]["m3dt/reach/random-v0"].update(source="../../x"), "source name takes"),
            (
                lambda m: m["datasets"]["m3dt/reach/random-v0"]["files"].update({"../x": {"sha256": "0" * 64, "bytes": 1}}),
                "not a",
            ),
            (lambda m: m["datasets"]["m3dt/reach/random-v0"].update(task="walk"), "damaged or foreign"),
            (lambda m: m["datasets"]["m3dt/reach/random-v0"].pop("steps"), "damaged or foreign"),
        ],
    )
    def test_a_manifest_that_cannot_be(
        self, pushed: Hub, tmp_path: Path, edit: Callable[[dict[str, Any]], object], match: str
    ) -> None:
        manifest = json.loads(pushed.read("datasets", REPO, "datasets.json"))
        edit(manifest)
        pushed.plant("datasets", REPO, "datasets.json", json.dumps(manifest).encode())
        with pytest.raises(DatasetError, match=match):
            pull_datasets(REPO, tmp_path / "new")
        assert not list(tmp_path.glob("new/m3dt/*/*-v0"))

    def test_a_file_of_another_size_is_not_downloaded(self, pushed: Hub, tmp_path: Path) -> None:
        manifest = json.loads(pushed.read("datasets", REPO, "datasets.json"))
        manifest["datasets"]["m3dt/reach/random-v0"]["files"]["data/main_data.hdf5"]["bytes"] = 1
        pushed.plant("datasets", REPO, "datasets.json", json.dumps(manifest).encode())
        pushed.clear()
        with pytest.raises(DatasetError, match=r"main_data\.hdf5 has [0-9,]+ bytes, and 1 in its datasets\.json"):
            pull_datasets(REPO, tmp_path / "new", ["reach"])
        assert not pushed.count("main_data|_cdn")
        assert not list(tmp_path.glob("new/m3dt/*/*-v0"))

    def test_a_listed_dataset_that_is_not_there(self, pushed: Hub, tmp_path: Path) -> None:
        pushed.plant("datasets", REPO, "m3dt/reach/random-v0/data/main_data.hdf5", None)
        with pytest.raises(HubError, match=r"holds no m3dt/reach/random-v0/data/main_data\.hdf5"):
            pull_datasets(REPO, tmp_path / "new")
        again: PulledDatasets = pull_datasets(REPO, tmp_path / "new", ["reacher-easy", "cheetah-vel-3"])
        assert len(again.paths) == 2

    def test_a_repository_of_something_else(self, lfs_hub: Hub, root: Path, tmp_path: Path) -> None:
        api = HfApi(endpoint=lfs_hub.endpoint, token=ALICE)
        api.create_repo(REPO, repo_type="dataset")
        api.upload_file(path_or_fileobj=b"{}", path_in_repo="data.json", repo_id=REPO, repo_type="dataset")
        with pytest.raises(DatasetError, match=r"no datasets\.json; it holds .*data\.json"):
            pull_datasets(REPO, tmp_path / "new")
        with pytest.raises(DatasetError, match=r"something other than datasets: data\.json"):
            push_datasets(root, REPO, token=ALICE)


def test_a_record_says_what_is_in_the_dataset(root: Path) -> None:
    task = get("reach")
    record = describe(root / "m3dt/reach/random-v0", task)
    episodes = list(read_episodes(root / "m3dt/reach/random-v0"))
    assert (record.episodes, record.steps) == (4, 48)
    assert record.mean_return == pytest.approx(np.mean([episode.episode_return for episode in episodes]))
    assert record.mean_score == 100.0  # every random episode ends in success
    assert record.row.sha256 == record.files["data/main_data.hdf5"].sha256


def test_pulled_datasets_reopen_where_they_are_not_yet(lfs_hub: Hub, root: Path, tmp_path: Path) -> None:
    """As on another machine: what is sent there is a function, which pulls the same commit."""
    pushed = push_datasets(root, REPO, token=ALICE)
    data = open_pulled(REPO, tmp_path / "here", TASKS, endpoint=lfs_hub.endpoint)
    shutil.rmtree(tmp_path / "here")
    (changed := root.parent / "changed").mkdir(exist_ok=True)
    random_datasets(changed, TASKS[:1], episodes=5)
    push_datasets(changed, REPO, token=ALICE, overwrite=True)  # the branch moves on
    assert data.reopen is not None
    again = pickle.loads(pickle.dumps(data.reopen))()
    assert again.reopen.keywords["revision"] == pushed.sha
    assert (tmp_path / "here/m3dt/reach/random-v0").is_dir()
    for ours, theirs in zip(again.packed, TaskDatasets.open(root, TASKS).packed, strict=True):
        np.testing.assert_array_equal(ours.steps, theirs.steps)
