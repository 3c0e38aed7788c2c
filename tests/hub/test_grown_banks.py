"""Banks that have grown, on the Hub: what travels, who may push what, and what the card says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from grown_banks import data_of_spec, grown_bank
from hub_server import Hub
from huggingface_hub import HfApi
from own_tasks import POINT, WIDE
from small_banks import TASKS, new_bank, parts, random_model

from m3dt_agent import M3DTAgent, tasks
from m3dt_agent.bank import ExpertBank
from m3dt_agent.errors import HubConflictError, StageError
from m3dt_agent.hub.banks import pull_bank, push_bank
from m3dt_agent.hub.cards import model_card

REPO, ALICE = "alice/bank", "hf_alice"


@pytest.fixture
def bank(tmp_path: Path) -> ExpertBank:
    made = new_bank(tmp_path / "bank")
    made.commit(parts(random_model()), groups={"walker-run": 0, "reach": 1})
    return made


def test_a_grown_bank_joins_the_bank_that_it_was(lfs_hub: Hub, bank: ExpertBank, tmp_path: Path) -> None:
    push_bank(bank, REPO, token=ALICE)
    once = grown_bank(bank, tmp_path / "once", WIDE)
    twice = grown_bank(once, tmp_path / "twice", tasks.get("ant-dir-7"), POINT)
    pushed = push_bank(twice, REPO, token=ALICE)
    assert (pushed.tag, pushed.commits) == ("stage-grown-2", 2)
    assert set(pushed.files) - {"bank.json", "README.md"} == set(twice.manifest.files) - set(bank.manifest.files)
    assert push_bank(bank, REPO, token=ALICE).commits == 0  # the grown bank has all of it
    assert push_bank(once, REPO, token=ALICE).commits == 0
    found = {ref.name for ref in HfApi(token=ALICE).list_repo_refs(REPO).tags}
    assert found >= {"stage-router", "stage-grown-1", "stage-grown-2"}
    pulled = pull_bank(REPO, token=ALICE).bank
    assert pulled.content_hash == twice.content_hash
    assert pull_bank(REPO, "stage-grown-1", token=ALICE).bank.content_hash == once.content_hash
    assert pull_bank(REPO, "stage-router", token=ALICE).bank.content_hash == bank.content_hash
    agent, same = M3DTAgent.from_pretrained(REPO, token=ALICE), M3DTAgent.load(bank.path)
    agent.reset("own-wide")
    assert agent.act(np.zeros(46)).shape == (28,)
    for name in TASKS:
        agent.reset(name), same.reset(name)
        obs = np.full(tasks.get(name).obs_dim, 0.3)
        assert np.array_equal(agent.act(obs), same.act(obs))
    some = pull_bank(REPO, token=ALICE, tasks=["own-wide"]).bank
    assert (some.manifest.all_experts, [growth.tasks for growth in some.growths]) == ((2,), [("own-wide",)])
    assert pull_bank(REPO, token=ALICE, to=tmp_path / "copy").bank.content_hash == twice.content_hash
    again = pulled.grown(tmp_path / "from the Hub", data_of_spec(tasks.get("cup-catch")))
    assert again.growths[-1].groups == {"cup-catch": 4}


def test_two_people_who_grow_one_bank_by_different_tasks_are_told(lfs_hub: Hub, bank: ExpertBank, tmp_path: Path) -> None:
    mine, yours = grown_bank(bank, tmp_path / "mine", WIDE), grown_bank(bank, tmp_path / "yours", POINT)
    other = grown_bank(bank, tmp_path / "other", WIDE, seed=1)
    for target in (REPO, tmp_path / "folder"):
        push_bank(mine, target, token=ALICE)
        with pytest.raises(HubConflictError, match=r"growth by other tasks or experts \(own-wide there, own-point here\)"):
            push_bank(yours, target, token=ALICE)
        with pytest.raises(HubConflictError, match=r"another experts/002\.safetensors"):
            push_bank(other, target, token=ALICE)


def test_a_folder_gets_what_the_bank_has_grown_by(bank: ExpertBank, tmp_path: Path) -> None:
    push_bank(bank, tmp_path / "there")
    grown = grown_bank(bank, tmp_path / "grown", WIDE)
    seen = ExpertBank.open(tmp_path / "there")
    assert "own-wide" not in seen.statistics
    pushed = push_bank(grown, tmp_path / "there")
    assert (pushed.tag, set(pushed.files)) == ("stage-grown-1", set(grown.manifest.files) - set(bank.manifest.files))
    assert ExpertBank.open(tmp_path / "there").content_hash == grown.content_hash
    seen.commit({}, stages={})  # whoever had it open goes on
    assert seen.growths == grown.growths
    assert "own-wide" in seen.statistics


def test_what_is_not_trained_is_not_pushed(lfs_hub: Hub, bank: ExpertBank, tmp_path: Path) -> None:
    pending = bank.grown(tmp_path / "pending", data_of_spec(WIDE))
    with pytest.raises(StageError, match=r"its experts \[2\] are not trained yet; train them, or push"):
        push_bank(pending, REPO, token=ALICE)


def test_the_card_tells_of_growth(bank: ExpertBank, tmp_path: Path) -> None:
    card = model_card(grown_bank(bank, tmp_path / "grown", WIDE, tasks.get("ant-dir-7")), REPO)
    assert "## Tasks that came later" in card
    assert "| 2 | own-wide, ant-dir-7 |" in card
    assert "[own-wide]" in card
    assert "Tasks that came later" not in model_card(bank, REPO)
