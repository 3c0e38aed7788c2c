"""One bank, several actors: trained once, with a later seed from the same backbone, and what acts is what would be shipped."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts import observations, padded

from benchmarks.experiments.scales import BANK_METHODS
from benchmarks.methods import Outcome, Work, method
from benchmarks.methods.m3dt import OraclePolicy
from benchmarks.methods.one_bank import METHODS, shared_bank
from benchmarks.records import FINAL
from m3dt_agent.agent import M3DTAgent
from m3dt_agent.bank import ExpertBank
from m3dt_agent.config import STAGES
from m3dt_agent.evaluation import AgentPolicy
from m3dt_agent.tasks import get

MakeWork = Callable[..., Work]
CHANGES: dict[str, Any] = {"storage": "bfloat16", "cooldown": 0.5, "skip_below": 0.05, "concentrate": 0.003}


@pytest.fixture
def shared(tmp_path: Path, make_work: MakeWork) -> Callable[..., Work]:
    """The work of a method's cell, all of one run."""

    def make(name: str, **changes: Any) -> Work:
        work = make_work(name, folder=name, **CHANGES | changes)
        return dataclasses.replace(work, shared=tmp_path / "shared")

    return make


def trained(work: Work) -> Outcome:
    return method(work.cell.method).train(work, FINAL)


def stamps(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def actions(outcome: Outcome, work: Work) -> np.ndarray[Any, Any]:
    policy = outcome.policy
    assert not isinstance(policy, str)
    tasks = [get(name) for name in work.cell.tasks]
    seen = padded([observations(task, 1, 0)[0] for task in tasks])
    policy.reset(tasks, [(0,)] * len(tasks))  # type: ignore[union-attr, call-arg, arg-type]
    on = np.ones(len(tasks), bool)
    return policy.act(seen, reward=None, reset_mask=on, active=on)  # type: ignore[union-attr, call-arg]


def test_it_is_trained_once_for_all_actors(shared: MakeWork, tmp_path: Path) -> None:
    assert set(METHODS) == set(BANK_METHODS)
    first = trained(shared("bank-mixture"))
    before = stamps(tmp_path / "shared")
    others = {name: trained(shared(name, episodes=7, acting="bfloat16")) for name in METHODS}
    assert stamps(tmp_path / "shared") == before
    steps = {name: outcome.windows // 6 for name, outcome in others.items()}
    assert steps == {"bank-mixture": 19, "bank-routed": 19, "bank-oracle": 14, "bank-backbone": 6}
    assert first.training_flop == others["bank-mixture"].training_flop > others["bank-oracle"].training_flop
    sizes = {name: outcome.active_parameters for name, outcome in others.items()}
    made = shared_bank(shared("bank-mixture"))
    assert sizes["bank-backbone"] < sizes["bank-oracle"] < sizes["bank-mixture"] == others["bank-mixture"].parameters
    assert sizes["bank-backbone"] == sum(p.numel() for p in M3DTAgent.load(made).model.backbone_tensors().values())
    assert isinstance(others["bank-oracle"].policy, OraclePolicy)
    assert isinstance(others["bank-routed"].policy, AgentPolicy)
    acts = {name: actions(outcome, shared(name)) for name, outcome in others.items()}
    assert not np.allclose(acts["bank-mixture"], acts["bank-backbone"])
    assert not np.allclose(acts["bank-mixture"], acts["bank-oracle"])


def test_what_acts_is_what_is_stored(shared: MakeWork) -> None:
    work = shared("bank-mixture")
    outcome, bank = trained(work), ExpertBank.open(shared_bank(work))
    assert bank.storage == "bfloat16"
    assert outcome.policy.bank_hash == bank.content_hash  # type: ignore[union-attr]
    configs = {stage: bank.manifest.stages[stage]["config"] for stage in STAGES}
    assert [config["cooldown_steps"] for config in configs.values()] == [3, 2, 2]
    assert (configs["router"]["skip_below"], configs["router"]["concentrate"]) == (0.05, 0.003)
    assert configs["experts"]["grouping"] == "gradient"
    assert configs["backbone"]["domain_weights"] == {}


def test_a_cell_may_group_at_random_and_weigh_domains(shared: MakeWork) -> None:
    weights = {"dmcontrol": 2}
    work = shared("bank-mixture", grouping="random", domain_weights=weights)
    trained(work)
    stages = ExpertBank.open(shared_bank(work)).manifest.stages
    assert stages["experts"]["config"]["grouping"] == "random"
    assert [stages[stage]["config"]["domain_weights"] for stage in STAGES] == [weights] * 3


def test_a_later_seed_changes_stages_2_and_3_alone(shared: MakeWork) -> None:
    first, second = (ExpertBank.open(shared_bank(shared("bank-mixture", **changes))) for changes in ({}, {"later_seed": 1}))
    assert [second.manifest.stages[stage]["config"]["seed"] for stage in STAGES] == [0, 1, 1]
    one, other = (bank.model().state_dict() for bank in (first, second))
    differ = {name for name in one if not torch.equal(one[name], other[name])}
    assert differ
    assert all(".experts." in name or ".router." in name for name in differ)


def test_without_a_run_a_cell_shares_nothing(make_work: MakeWork) -> None:
    work = make_work("bank-backbone")
    trained(work)
    assert shared_bank(work).parent == work.folder
