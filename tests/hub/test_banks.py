"""Banks on a loopback Hub, through the real client: what travels, what is refused, and what a pulled bank goes on to become."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts import random_bank, random_datasets
from hub_server import Hub
from huggingface_hub import HfApi

from m3dt_agent.agent import M3DTAgent
from m3dt_agent.bank import ExpertBank
from m3dt_agent.bank.expert_bank import expert_file
from m3dt_agent.config import ModelConfig, train_preset
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import BankError, ConfigError, HubConflictError, HubError, StageError, UnknownTaskError
from m3dt_agent.hub.bank_stages import merge, stage_manifests, stage_tag
from m3dt_agent.hub.banks import pull_bank, push_bank
from m3dt_agent.scores import EpisodeResult

TASKS = ("cheetah-vel-3", "reacher-easy", "ant-dir-7", "pendulum-swingup", "reach", "cheetah-vel-30", "ant-dir-9", "cup-catch")
CONFIG = ModelConfig(16, 2, 2, n_experts=4, context_length=3, prompt_length=2, max_timesteps=60, dropout=0.0)
REPO = "alice/bank"
ALICE, BOB = "hf_alice", "hf_bob"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TaskDatasets:
    return random_datasets(tmp_path_factory.mktemp("data"), TASKS)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data: TaskDatasets) -> Path:
    """A bank of random weights with every stage done and its tasks grouped; not to be changed."""
    bank = random_bank(tmp_path_factory.mktemp("finished") / "bank", data, CONFIG)
    bank.commit({}, groups={task: i % 4 for i, task in enumerate(TASKS)})
    return bank.path


def part(bank: Path, to: Path, *, experts: tuple[int, ...] = (), router: bool = False) -> Path:
    """A copy of `bank` that has come as far as its backbone and these experts."""
    opened = ExpertBank.open(bank)
    manifest = opened.manifest if router else stage_manifests(opened.manifest)[1].with_experts(experts)
    return ExpertBank(bank, manifest).copy_to(to).path


def changed(bank: Path, to: Path, name: str) -> Path:
    """A copy of `bank` with other numbers in one of its files."""
    copy = ExpertBank.open(bank).copy_to(to)
    copy.commit({name: {key: tensor + 1 for key, tensor in copy.read(name).items()}})
    return to


def episode(bank_hash: str) -> EpisodeResult:
    return EpisodeResult("cheetah-vel-3", 7, -40.0, 200, None, "m3dt-backbone", bank_hash, None, False, {"torch": "2"})


def same_files(one: Path, other: Path) -> bool:
    first, second = (json.loads((path / "bank.json").read_text()) for path in (one, other))
    return bool(first == second)


@pytest.mark.parametrize("hub", ["xet", pytest.param("lfs", marks=pytest.mark.slow)], indirect=True)
class TestTrainingGoesOn:
    """Must show 1: a machine is lost after a push; what was pushed goes on to the weights that it would have had."""

    def train(
        self, folder: Path, data: TaskDatasets, config: ModelConfig, stages: tuple[str, ...], **changes: Any
    ) -> M3DTAgent:
        agent = M3DTAgent(config, data.tasks) if not folder.exists() else M3DTAgent.load(folder)
        for stage in stages:
            settings = train_preset("tiny", stage, steps=6, checkpoint_every=3, warmup_steps=0, seed=3, threads=1, **changes)
            agent.fit_stage(stage, data, bank=folder, config=settings, progress=False)
        return agent

    def test_every_stage_is_a_tag_to_resume_from(self, hub: Hub, tmp_path: Path, data: TaskDatasets) -> None:
        whole = self.train(tmp_path / "whole", data, CONFIG, ("backbone", "experts", "router"))
        lost = tmp_path / "lost"
        for stage in ("backbone", "experts", "router"):
            agent = self.train(lost, data, CONFIG, (stage,))
            assert agent.push_to_hub(REPO, token=ALICE).tag == f"stage-{stage}"
        assert set(HfApi(endpoint=hub.endpoint).list_repo_refs(REPO).tags[0].__dict__) >= {"name", "target_commit"}
        for stage, rest in (("backbone", ("experts", "router")), ("experts", ("router",)), ("router", ())):
            shutil.rmtree(lost)
            pull_bank(REPO, f"stage-{stage}", to=lost)
            assert [s for s in ("backbone", "experts", "router") if ExpertBank.open(lost).status(s) == "absent"] == list(rest)
            self.train(lost, data, CONFIG, rest)
            assert same_files(lost, whole.bank.path)  # type: ignore[union-attr]

    def test_three_of_eight_experts_are_enough_to_go_on(self, hub: Hub, tmp_path: Path, data: TaskDatasets) -> None:
        config = dataclasses.replace(CONFIG, n_experts=8)
        whole = self.train(tmp_path / "whole", data, config, ("backbone",))
        settings = train_preset("tiny", "experts", steps=5, warmup_steps=0, experts_at_once=3, threads=1)
        whole.fit_stage("experts", data, bank=tmp_path / "whole", config=settings, progress=False)
        self.train(tmp_path / "lost", data, config, ("backbone",))
        agent = M3DTAgent.load(tmp_path / "lost")
        agent.fit_stage("experts", data, bank=tmp_path / "lost", config=settings, experts=[0, 1, 2], progress=False)
        assert push_bank(tmp_path / "lost", REPO, token=ALICE).tag == "stage-experts-3"
        shutil.rmtree(tmp_path / "lost")
        agent = M3DTAgent.from_pretrained(REPO, "stage-experts-3")
        agent.fit_stage("experts", data, bank=tmp_path / "new", progress=False)
        assert same_files(tmp_path / "new", tmp_path / "whole")


class TestPush:
    def test_one_commit_and_one_tag_per_stage(self, hub: Hub, finished: Path) -> None:
        pushed = push_bank(finished, REPO, token=ALICE)
        api = HfApi(endpoint=hub.endpoint)
        commits = {commit.commit_id: commit.title for commit in api.list_repo_commits(REPO)}
        tags = {tag.name: tag.target_commit for tag in api.list_repo_refs(REPO).tags}
        assert pushed.commits == 3
        assert len(commits) == 4  # and the one that made the repository
        assert set(tags) == {"stage-backbone", "stage-experts", "stage-router"}
        assert tags["stage-router"] == pushed.sha
        for tag, sha in tags.items():
            assert commits[sha].startswith(tag)
        assert "README.md" in pushed.files

    def test_nothing_new_makes_no_commit(self, hub: Hub, finished: Path) -> None:
        first = push_bank(finished, REPO, token=ALICE)
        hub.clear()
        second = push_bank(finished, REPO, token=ALICE)
        assert (second.sha, second.commits, second.files) == (first.sha, 0, ())
        assert not hub.count("POST .*/commit/")

    def test_only_what_changed_travels(self, hub: Hub, tmp_path: Path, finished: Path) -> None:
        push_bank(finished, REPO, token=ALICE)
        other = changed(finished, tmp_path / "other", expert_file(2))
        pushed = push_bank(other, REPO, token=ALICE, overwrite=True)
        assert pushed.files == (expert_file(2), "bank.json")
        assert pull_bank(REPO).bank.manifest.files == ExpertBank.open(other).manifest.files

    def test_experts_come_one_by_one(self, lfs_hub: Hub, tmp_path: Path, finished: Path) -> None:
        for n in (1, 2, 3):
            some = part(finished, tmp_path / str(n), experts=tuple(range(n)))
            pushed = push_bank(some, REPO, token=ALICE)
            assert pushed.tag == f"stage-experts-{n}"
            assert [name for name in pushed.files if name.startswith("experts/")] == [expert_file(n - 1)]
        assert pull_bank(REPO, "stage-experts-2").bank.finished_experts == (0, 1)

    def test_two_who_push_different_experts_at_once_both_succeed(self, hub: Hub, tmp_path: Path, finished: Path) -> None:
        push_bank(part(finished, tmp_path / "backbone"), REPO, token=ALICE)
        hub.grant("models", REPO, "bob")
        alice, bob = (part(finished, tmp_path / str(e), experts=(e,)) for e in (1, 3))
        hub.before("POST .*/commit/", lambda: push_bank(bob, REPO, token=BOB))
        pushed = push_bank(alice, REPO, token=ALICE)
        assert [request.status for request in hub.seen("POST .*/commit/")][-3:] == [412, 200, 200] or 412 in [
            request.status for request in hub.seen("POST .*/commit/")
        ]
        assert pushed.tag == "stage-experts-2"
        assert pull_bank(REPO).bank.finished_experts == (1, 3)
        assert same_files(pull_bank(REPO).bank.path, pull_bank(REPO, "stage-experts-2").bank.path)

    def test_the_second_to_push_the_same_expert_is_told(self, hub: Hub, tmp_path: Path, finished: Path) -> None:
        push_bank(part(finished, tmp_path / "backbone"), REPO, token=ALICE)
        hub.grant("models", REPO, "bob")
        alice = part(finished, tmp_path / "alice", experts=(1,))
        bob = changed(alice, tmp_path / "bob", expert_file(1))
        hub.before("POST .*/commit/", lambda: push_bank(bob, REPO, token=BOB))
        with pytest.raises(HubConflictError, match=r"another experts/001\.safetensors"):
            push_bank(alice, REPO, token=ALICE)
        assert pull_bank(REPO).bank.manifest.files[expert_file(1)] == ExpertBank.open(bob).manifest.files[expert_file(1)]

    def test_a_bank_of_other_tasks_or_another_backbone_is_refused(
        self, lfs_hub: Hub, tmp_path: Path, finished: Path, data: TaskDatasets
    ) -> None:
        push_bank(finished, REPO, token=ALICE)
        with pytest.raises(HubConflictError, match="another tasks"):
            push_bank(random_bank(tmp_path / "few", data.subset(TASKS[:4]), CONFIG), REPO, token=ALICE)
        with pytest.raises(HubConflictError, match="another model"):
            push_bank(random_bank(tmp_path / "big", data, dataclasses.replace(CONFIG, n_layers=3)), REPO, token=ALICE)
        with pytest.raises(HubConflictError, match=r"another backbone\.safetensors"):
            push_bank(changed(finished, tmp_path / "other", "backbone.safetensors"), REPO, token=ALICE)
        assert not lfs_hub.count("POST .*/commit/.*412")

    def test_overwriting_removes_what_this_bank_does_not_have(self, lfs_hub: Hub, tmp_path: Path, finished: Path) -> None:
        push_bank(finished, REPO, token=ALICE)
        young = changed(part(finished, tmp_path / "part", experts=(0,)), tmp_path / "young", "backbone.safetensors")
        pushed = push_bank(young, REPO, token=ALICE, overwrite=True)
        assert pushed.tag == "stage-experts-1"
        assert pull_bank(REPO).bank.manifest.files == ExpertBank.open(young).manifest.files
        files = HfApi(endpoint=lfs_hub.endpoint).list_repo_files(REPO)
        assert not [name for name in files if name.startswith("router") or name == expert_file(1)]
        assert pushed.commits == 1  # there is no moment with the old experts beside the new backbone
        assert set(lfs_hub.repos["models", REPO].tags) == {"stage-experts-1"}  # the others were of the old bank

    def test_overwriting_keeps_the_tags_of_stages_that_are_as_they_were(
        self, lfs_hub: Hub, tmp_path: Path, finished: Path
    ) -> None:
        push_bank(part(finished, tmp_path / "two", experts=(0, 1)), REPO, token=ALICE)
        push_bank(finished, REPO, token=ALICE)
        tags = dict(lfs_hub.repos["models", REPO].tags)
        assert set(tags) == {"stage-backbone", "stage-experts-2", "stage-experts", "stage-router"}
        sha = push_bank(changed(finished, tmp_path / "other", "router.safetensors"), REPO, token=ALICE, overwrite=True).sha
        assert lfs_hub.repos["models", REPO].tags == tags | {"stage-router": sha}
        sha = push_bank(changed(finished, tmp_path / "third", expert_file(1)), REPO, token=ALICE, overwrite=True).sha
        assert lfs_hub.repos["models", REPO].tags == {"stage-backbone": tags["stage-backbone"], "stage-router": sha}

    def test_a_bank_without_a_backbone_is_not_pushed(self, lfs_hub: Hub, tmp_path: Path, finished: Path) -> None:
        opened = ExpertBank.open(finished)
        bank = ExpertBank.create(tmp_path / "new", CONFIG, opened.tasks, opened.statistics, opened.prompts, opened.data_config)
        with pytest.raises(StageError, match="no backbone"):
            push_bank(bank, REPO, token=ALICE)
        with pytest.raises(StageError, match="nothing to push"):
            M3DTAgent(CONFIG, TASKS).push_to_hub(REPO, token=ALICE)
        assert not lfs_hub.requests

    def test_a_damaged_bank_is_not_pushed(self, lfs_hub: Hub, tmp_path: Path, finished: Path) -> None:
        copy = ExpertBank.open(finished).copy_to(tmp_path / "copy")
        (copy.path / "router.safetensors").write_bytes(b"?" * 100)
        with pytest.raises(BankError, match=r"router\.safetensors"):
            push_bank(copy, REPO, token=ALICE)
        assert not lfs_hub.requests

    def test_a_repository_of_something_else_is_left_alone(self, lfs_hub: Hub, finished: Path) -> None:
        api = HfApi(endpoint=lfs_hub.endpoint, token=ALICE)
        api.create_repo(REPO)
        api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id=REPO)
        with pytest.raises(BankError, match=r"something other than a bank: config\.json"):
            push_bank(finished, REPO, token=ALICE)
        with pytest.raises(BankError, match=r"not a bank.*config\.json"):
            pull_bank(REPO)

    def test_a_card_written_by_hand_stays(self, lfs_hub: Hub, tmp_path: Path, finished: Path) -> None:
        push_bank(part(finished, tmp_path / "part"), REPO, token=ALICE)
        lfs_hub.plant("models", REPO, "README.md", b"# mine\n")
        push_bank(finished, REPO, token=ALICE)
        assert lfs_hub.read("models", REPO, "README.md") == b"# mine\n"

    def test_rows_of_another_bank_are_refused_before_anything_travels(
        self, lfs_hub: Hub, tmp_path: Path, finished: Path
    ) -> None:
        mine, yours = (part(finished, tmp_path / str(e), experts=(e,)) for e in (0, 1))
        rows = [episode(ExpertBank.open(mine).content_hash)]
        with pytest.raises(ConfigError, match="not of this bank"):
            push_bank(yours, REPO, token=ALICE, rows=rows)
        assert not lfs_hub.requests
        push_bank(yours, REPO, token=ALICE)
        with pytest.raises(ConfigError, match=r"has experts/001\.safetensors, which this bank does not have"):
            push_bank(mine, REPO, token=ALICE, rows=rows)
        assert pull_bank(REPO).bank.finished_experts == (1,)
        pushed = push_bank(mine, REPO, token=ALICE, rows=rows, overwrite=True)
        assert b"model-index" in lfs_hub.read("models", REPO, "README.md")
        assert pushed.tag == "stage-experts-1"
        assert push_bank(mine, REPO, token=ALICE, rows=rows).files == ()

    def test_private_and_gated_repositories(self, lfs_hub: Hub, finished: Path) -> None:
        push_bank(finished, REPO, token=ALICE, private=True)
        with pytest.raises(HubError, match=r"no such repository .*without a token"):
            pull_bank(REPO)
        with pytest.raises(HubError, match=r"no such repository .*with the token given"):
            pull_bank(REPO, token=BOB)
        assert pull_bank(REPO, token=ALICE).bank.status("router") == "done"
        push_bank(finished, "alice/gated", token=ALICE)
        lfs_hub.gate("models", "alice/gated")
        with pytest.raises(HubError, match="gated"):
            pull_bank("alice/gated", token=BOB)
        assert pull_bank("alice/gated", token=ALICE).bank.status("router") == "done"


class TestPull:
    def test_an_agent_from_the_hub_acts_as_the_one_that_was_pushed(self, hub: Hub, finished: Path) -> None:
        pushed = push_bank(finished, REPO, token=ALICE)
        local, remote = M3DTAgent.load(finished), M3DTAgent.from_pretrained(REPO, revision="stage-router")
        assert remote.content_hash == local.content_hash
        for agent in (local, remote):
            agent.reset(task="reacher-easy")
        observation = np.ones(6, np.float32)
        np.testing.assert_array_equal(local.act(observation), remote.act(observation))
        assert pull_bank(REPO).sha == pushed.sha

    def test_a_pinned_sha_is_pulled_once(self, hub: Hub, finished: Path) -> None:
        sha = push_bank(finished, REPO, token=ALICE).sha
        pull_bank(REPO, sha)
        hub.clear()
        assert pull_bank(REPO, sha).sha == sha
        assert not hub.requests

    def test_some_experts(self, hub: Hub, finished: Path) -> None:
        push_bank(finished, REPO, token=ALICE)
        hub.clear()
        bank = pull_bank(REPO, experts=[3, 1]).bank
        assert bank.finished_experts == (1, 3)
        assert bank.status("router") == "absent"
        assert bank.default_experts == "none"
        assert not hub.count(r"experts/000|experts/002|router\.safetensors")
        assert pull_bank(REPO, tasks=["ant-dir-7"]).bank.finished_experts == (2,)
        sha = pull_bank(REPO, experts=[1]).sha  # of which the cache now lacks expert 0, so it is chosen twice
        assert pull_bank(REPO, sha, experts=iter([0])).bank.finished_experts == (0,)
        agent = M3DTAgent.from_pretrained(REPO, tasks=["ant-dir-7", "reacher-easy"])
        agent.experts = 2
        with pytest.raises(ConfigError, match="must be one of 'none', 1, 2"):
            agent.experts = 0
        assert M3DTAgent.from_pretrained(REPO).experts == "mixture"

    def test_a_working_copy_of_some_experts_is_a_bank_of_its_own(self, lfs_hub: Hub, tmp_path: Path, finished: Path) -> None:
        push_bank(finished, REPO, token=ALICE)
        pull_bank(REPO, experts=[0], to=tmp_path / "copy")
        assert ExpertBank.open(tmp_path / "copy").finished_experts == (0,)
        assert push_bank(tmp_path / "copy", REPO, token=ALICE).commits == 0  # the others' experts stay
        assert pull_bank(REPO).bank.finished_experts == (0, 1, 2, 3)

    def test_the_cache_is_not_trained_in(self, lfs_hub: Hub, tmp_path: Path, finished: Path, data: TaskDatasets) -> None:
        push_bank(part(finished, tmp_path / "part"), REPO, token=ALICE)
        agent = M3DTAgent.from_pretrained(REPO)
        before = sorted(agent.bank.path.rglob("*"))  # type: ignore[union-attr]
        for bank in (agent.bank, pull_bank(REPO).bank):
            with pytest.raises(BankError, match="in the Hub's cache"):
                agent.fit_stage("experts", data, bank=bank)  # type: ignore[arg-type]
            with pytest.raises(BankError, match="in the Hub's cache"):
                bank.commit({})  # type: ignore[union-attr]
        assert sorted(agent.bank.path.rglob("*")) == before  # type: ignore[union-attr]

    def test_what_cannot_be_chosen(self, lfs_hub: Hub, tmp_path: Path, finished: Path) -> None:
        push_bank(part(finished, tmp_path / "part", experts=(0, 1)), REPO, token=ALICE)
        with pytest.raises(ConfigError, match=r"no experts \[7\] in the bank; it has \[0, 1\]"):
            pull_bank(REPO, experts=[7])
        with pytest.raises(UnknownTaskError, match="walker-run"):
            pull_bank(REPO, tasks=["walker-run"])
        with pytest.raises(StageError, match="not grouped"):
            pull_bank(REPO, "stage-backbone", tasks=["reach"])
        with pytest.raises(HubError, match="no such revision"):
            pull_bank(REPO, "stage-router")
        for name in ("bank", "a/b/c", "alice/bank--one", "alice/..", "https://huggingface.co/alice/bank"):
            with pytest.raises(BankError, match="neither a folder nor an id"):
                M3DTAgent.from_pretrained(name)

    def test_a_name_that_may_have_meant_a_folder(self, lfs_hub: Hub) -> None:
        with pytest.raises(HubError, match=r"there is no folder runs/bakn here, and the Hub at .* has no such repository"):
            M3DTAgent.from_pretrained("runs/bakn")
        with pytest.raises(HubError, match="there is no folder runs/bakn here, and the Hub cannot be reached"):
            M3DTAgent.from_pretrained("runs/bakn", endpoint="http://127.0.0.1:9")
        lfs_hub.clear()
        with pytest.raises(BankError, match="runs/bakn"):
            M3DTAgent.load("runs/bakn")
        assert not lfs_hub.requests

    def test_offline_a_cached_revision_loads_without_a_request(self, hub: Hub, finished: Path) -> None:
        sha = push_bank(finished, REPO, token=ALICE).sha
        pull_bank(REPO, "stage-router")
        hub.clear()
        for revision in ("stage-router", sha):
            assert pull_bank(REPO, revision, offline=True).sha == sha
        with pytest.raises(HubError, match=r"offline .*'stage-backbone' is not in the cache"):
            pull_bank(REPO, "stage-backbone", offline=True)
        assert not hub.requests

    def test_a_moved_branch_is_seen(self, lfs_hub: Hub, tmp_path: Path, finished: Path) -> None:
        push_bank(part(finished, tmp_path / "part"), REPO, token=ALICE)
        assert pull_bank(REPO).bank.finished_experts == ()
        push_bank(finished, REPO, token=ALICE)
        assert pull_bank(REPO).bank.finished_experts == (0, 1, 2, 3)

    def test_a_failing_hub_never_means_an_old_copy(self, lfs_hub: Hub, tmp_path: Path, finished: Path) -> None:
        push_bank(part(finished, tmp_path / "part"), REPO, token=ALICE)
        pull_bank(REPO)
        push_bank(finished, REPO, token=ALICE)
        for status in (401, 503):
            lfs_hub.fail("GET /api/models/", status, times=None)
            with pytest.raises(HubError):
                pull_bank(REPO)
            lfs_hub.heal()


class TestDamagedRepositories:
    """What others may have put there: never a half bank that loads, never code executed."""

    @pytest.fixture
    def pushed(self, lfs_hub: Hub, finished: Path) -> Hub:
        push_bank(finished, REPO, token=ALICE)
        return lfs_hub

    def edit(self, hub: Hub, change: Callable[[dict[str, Any]], object]) -> None:
        manifest = json.loads(hub.read("models", REPO, "bank.json"))
        change(manifest)
        hub.plant("models", REPO, "bank.json", json.dumps(manifest).encode())

    def test_a_listed_file_that_is_not_there(self, pushed: Hub) -> None:
        pushed.plant("models", REPO, expert_file(2), None)
        pushed.clear()
        with pytest.raises(BankError, match=r"lists experts/002\.safetensors, which it does not hold"):
            pull_bank(REPO)
        assert not pushed.count("safetensors")  # known before anything was downloaded
        assert pull_bank(REPO, experts=[0, 1]).bank.finished_experts == (0, 1)

    def test_a_file_of_other_bytes(self, pushed: Hub) -> None:
        pushed.plant("models", REPO, "router.safetensors", b"?" * 1234)
        with pytest.raises(BankError, match=r"router\.safetensors is not what its bank\.json lists"):
            pull_bank(REPO)

    def test_a_pickle_under_a_safetensors_name(self, pushed: Hub, tmp_path: Path) -> None:
        class Bomb:
            def __reduce__(self) -> tuple[Any, ...]:
                return (Path.touch, (tmp_path / "executed",))

        content = pickle.dumps(Bomb())
        pushed.plant("models", REPO, "router.safetensors", content)
        record = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        self.edit(pushed, lambda manifest: manifest["files"].update({"router.safetensors": record}))
        with pytest.raises(BankError, match=r"not a safetensors file|does not fit this bank"):
            M3DTAgent.from_pretrained(REPO)
        assert not (tmp_path / "executed").exists()

    @pytest.mark.parametrize("name", ["../../evil.safetensors", "/etc/evil", "experts/../../x.safetensors", "model.pkl"])
    def test_names_that_lead_elsewhere(self, pushed: Hub, name: str) -> None:
        self.edit(pushed, lambda manifest: manifest["files"].update({name: {"sha256": "0" * 64, "bytes": 1}}))
        with pytest.raises(BankError, match="which is not a file of a bank"):
            pull_bank(REPO)

    def test_a_manifest_of_a_newer_format(self, pushed: Hub) -> None:
        self.edit(pushed, lambda manifest: manifest.update(format_version=5))
        with pytest.raises(BankError, match="format version 5; this version of m3dt-agent reads 1, 2, 3 and 4"):
            pull_bank(REPO)
        with pytest.raises(BankError, match="format version 5"):
            push_bank(pull_bank(REPO, "stage-router").bank, REPO, token=ALICE)

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"format": "other"}'])
    def test_a_manifest_that_is_none(self, pushed: Hub, content: bytes) -> None:
        pushed.plant("models", REPO, "bank.json", content)
        with pytest.raises(BankError, match="damaged or foreign"):
            pull_bank(REPO)

    def test_a_cached_file_that_went_bad_is_fetched_again(self, pushed: Hub) -> None:
        pulled = pull_bank(REPO)
        blob = (pulled.bank.path / "backbone.safetensors").resolve()
        blob.write_bytes(blob.read_bytes()[:-1] + b"?")
        with pytest.raises(BankError, match=r"backbone\.safetensors"):
            pull_bank(REPO, offline=True)
        for revision in (pulled.sha, None):
            assert torch.equal(
                pull_bank(REPO, revision).bank.read("backbone.safetensors")["final_norm.weight"],
                pulled.bank.read("backbone.safetensors")["final_norm.weight"],
            )
            blob.write_bytes(blob.read_bytes()[:-1] + b"!")


class TestFolders:
    """A folder works wherever an id on the Hub does."""

    def test_pushing_into_a_folder_and_pulling_from_it(self, tmp_path: Path, finished: Path) -> None:
        shared = tmp_path / "shared"
        assert push_bank(part(finished, tmp_path / "0", experts=(0,)), str(shared)).tag == "stage-experts-1"
        pushed = push_bank(part(finished, tmp_path / "2", experts=(2,)), shared)
        assert (pushed.tag, pushed.files) == ("stage-experts-2", (expert_file(2),))
        assert pull_bank(shared).bank.finished_experts == (0, 2)
        assert pull_bank(shared, experts=[2], to=tmp_path / "copy").bank.finished_experts == (2,)
        assert push_bank(finished, shared).tag == "stage-router"
        assert M3DTAgent.from_pretrained(shared).content_hash == ExpertBank.open(finished).content_hash
        with pytest.raises(HubConflictError, match="another router"):
            push_bank(changed(finished, tmp_path / "other", "router.safetensors"), shared)
        with pytest.raises(ConfigError, match="no revisions"):
            pull_bank(shared, "main")
        with pytest.raises(BankError, match="neither a folder nor an id"):
            pull_bank("./no/such")


class TestStoredSmall:
    """A bank whose weights are stored as bfloat16 travels as any other, and stays what it is."""

    @pytest.fixture
    def narrow(self, tmp_path: Path, finished: Path) -> ExpertBank:
        return ExpertBank.open(finished).copy_to(tmp_path / "narrow", storage="bfloat16")

    def test_there_and_back(self, hub: Hub, tmp_path: Path, narrow: ExpertBank) -> None:
        first = part(narrow.path, tmp_path / "first", experts=(0, 2))
        assert push_bank(first, REPO, token=ALICE).tag == "stage-experts-2"
        assert push_bank(narrow, REPO, token=ALICE).tag == "stage-router"
        pulled = pull_bank(REPO, to=tmp_path / "pulled").bank
        assert (pulled.manifest, pulled.storage) == (narrow.manifest, "bfloat16")
        assert push_bank(pulled, REPO, token=ALICE).commits == 0
        torch.testing.assert_close(dict(pulled.model().state_dict()), dict(narrow.model().state_dict()), rtol=0, atol=0)
        assert "stored as bfloat16, used as float32" in hub.read("models", REPO, "README.md").decode()

    def test_some_experts(self, lfs_hub: Hub, narrow: ExpertBank) -> None:
        push_bank(narrow, REPO, token=ALICE)
        bank = pull_bank(REPO, experts=[1]).bank
        assert (bank.finished_experts, bank.storage) == ((1,), "bfloat16")
        assert bank.read(expert_file(1)).keys() == narrow.read(expert_file(1)).keys()

    def test_into_a_folder_that_has_a_part_of_it(self, tmp_path: Path, narrow: ExpertBank) -> None:
        shared = tmp_path / "shared"
        push_bank(part(narrow.path, tmp_path / "first", experts=(0,)), shared)
        assert push_bank(narrow, shared).tag == "stage-router"
        assert ExpertBank.open(shared).manifest == narrow.manifest

    def test_the_same_bank_stored_otherwise_is_another(self, lfs_hub: Hub, finished: Path, narrow: ExpertBank) -> None:
        push_bank(finished, REPO, token=ALICE)
        with pytest.raises(HubConflictError, match=r"another storage of weights \(float32 there, bfloat16 here\)"):
            push_bank(narrow, REPO, token=ALICE)
        push_bank(narrow, REPO, token=ALICE, overwrite=True)
        assert pull_bank(REPO).bank.manifest == narrow.manifest


class TestManifests:
    def test_stages_of_a_manifest(self, tmp_path: Path, finished: Path) -> None:
        whole = ExpertBank.open(finished).manifest
        assert [stage_tag(m) for m in stage_manifests(whole)] == ["stage-backbone", "stage-experts", "stage-router"]
        assert stage_manifests(whole)[0].groups is None
        two = stage_manifests(whole)[1].with_experts((0, 1))
        assert [stage_tag(m) for m in stage_manifests(two)] == ["stage-backbone", "stage-experts-2"]

    def test_merging_is_symmetric_and_refuses_other_settings(self, finished: Path) -> None:
        whole = ExpertBank.open(finished).manifest
        base = stage_manifests(whole)[1]
        record = {"config": {"steps": 5, "log_every": 1}, "threads": 1, "data": "x"}
        one = dataclasses.replace(base.with_experts((0,)), stages={"experts": record})
        two = dataclasses.replace(base.with_experts((1,)), stages={"experts": record | {"threads": 2}})
        assert merge(one, two, "here").files == merge(two, one, "here").files
        assert merge(one, two, "here").finished_experts == (0, 1)
        longer = dataclasses.replace(two, stages={"experts": record | {"config": {"steps": 6, "log_every": 1}}})
        with pytest.raises(HubConflictError, match=r"other settings of stage 'experts' \(steps\)"):
            merge(one, longer, "here")
        with pytest.raises(HubConflictError, match="other groups"):
            merge(one, dataclasses.replace(two, groups=dict.fromkeys(TASKS, 0)), "here")
