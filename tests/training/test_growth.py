"""A bank that grows: what it had stays, new tasks get experts of their own, wider and longer ones too."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from grown_banks import data_of_spec
from own_tasks import WIDE

from m3dt_agent import tasks
from m3dt_agent.agent import M3DTAgent
from m3dt_agent.bank import ExpertBank
from m3dt_agent.bank.manifest import expert_file
from m3dt_agent.config import BackboneConfig, DataConfig, ExpertsConfig, RouterConfig
from m3dt_agent.data.batches import derive_seed
from m3dt_agent.errors import BankError, ConfigError, StageError
from m3dt_agent.evaluation.held_out import action_error, router_usage
from m3dt_agent.model import M3DT, Routing
from m3dt_agent.model.determinism import seeded
from m3dt_agent.model.grown import new_parts
from m3dt_agent.tasks import TaskSpec
from m3dt_agent.training import fit_growth, fit_stage, group_tasks, grow, growth_config

OLD = ("cheetah-vel-3", "pendulum-swingup", "reach")
NEW = ("ant-dir-7", "reacher-easy", "cheetah-vel-30")
LONG: TaskSpec = dataclasses.replace(WIDE, name="own-long", max_episode_steps=520)
SETTINGS: dict[str, Any] = {"steps": 4, "batch_size": 4, "checkpoint_every": 2, "log_every": 1, "warmup_steps": 1}
CONFIG = growth_config(**SETTINGS, cooldown_steps=0, threads=1)


def hashes(bank: ExpertBank) -> dict[str, str]:
    files = [file for file in bank.path.rglob("*.safetensors") if "resume" not in file.parts]
    return {str(file.relative_to(bank.path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def actions(agent: M3DTAgent, names: tuple[str, ...], steps: int = 6) -> np.ndarray[Any, Any]:
    """Actions of a batch of these tasks, cut to the widths of the 160; one slot rests now and then."""
    rng = np.random.default_rng(0)
    agent.reset(list(names))
    found = []
    for step in range(steps):
        obs = np.zeros((len(names), agent.config.state_dim), np.float32)
        for i, name in enumerate(names):
            width = next(task.obs_dim for task in agent.tasks if task.name == name)
            obs[i, :width] = rng.normal(size=width)
        active = np.arange(len(names)) != step % len(names) if len(names) > 1 else np.ones(1, bool)
        found.append(agent.act(obs, reward=np.ones(len(names)), active=active)[:, :8])
    return np.stack(found)


@pytest.fixture(scope="module")
def made_up() -> Any:
    import importlib.util

    spec = importlib.util.spec_from_file_location("made_up_growth", Path(__file__).with_name("conftest.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory, made_up: Any) -> ExpertBank:
    """A bank of three tasks and two experts, trained in all stages, whose actions are no longer near zero."""
    data, folder = made_up.made_up_data(OLD), tmp_path_factory.mktemp("growth")
    bank = made_up.new_bank(folder / "old", data, dataclasses.replace(made_up.MODEL, n_experts=2, max_timesteps=500))
    shared: dict[str, Any] = {"steps": 3, "batch_size": 4, "learning_rate": 0.05, "warmup_steps": 0, "threads": 1}
    fit_stage("backbone", data, bank, BackboneConfig(**shared), progress=False)
    fit_stage("experts", data, bank, ExpertsConfig(**shared, grouping="random"), progress=False)
    fit_stage("router", data, bank, RouterConfig(**shared, concentrate=0.1), progress=False)
    return bank


@pytest.fixture(scope="module")
def grown(old: ExpertBank, made_up: Any) -> ExpertBank:
    """`old`, grown by three tasks with two experts, then by one that is wider and longer."""
    first = grow(old, old.path.with_name("first"), made_up.made_up_data(NEW), experts=2, config=CONFIG, progress=False)
    return grow(first, old.path.with_name("grown"), data_of_spec(LONG, length=70), config=CONFIG, progress=False)


def test_nothing_that_the_bank_had_changes(old: ExpertBank, grown: ExpertBank) -> None:
    assert hashes(old).items() < hashes(grown).items()
    assert [growth.groups for growth in grown.growths] == [
        {"ant-dir-7": 2, "reacher-easy": 2, "cheetah-vel-30": 3},
        {"own-long": 4},
    ]
    before, after = M3DTAgent.load(old.path), M3DTAgent.load(grown.path)
    assert isinstance(after.experts, Routing)  # as the old bank's router was trained
    assert np.array_equal(actions(before, OLD), actions(after, OLD))
    for name in OLD:
        assert np.array_equal(actions(before, (name,)), actions(after, (name,)))
    document = json.loads((grown.path / "bank.json").read_text())
    assert document["format_version"] == 4
    assert document["groups"] == json.loads((old.path / "bank.json").read_text())["groups"]


def test_new_tasks_act_with_their_own_experts_beside_the_old_ones(grown: ExpertBank) -> None:
    agent = M3DTAgent.load(grown.path)
    assert (agent.config.state_dim, agent.config.act_dim, agent.config.max_timesteps) == (46, 28, 520)
    mixed = ("reach", "own-long", "ant-dir-7", "cheetah-vel-30", "reach", "own-long")
    together = actions(agent.copy(), mixed)
    assert np.abs(together).max(axis=(0, 2)).min() > 0.001
    assert agent.acts_with("ant-dir-7")[0] is agent.acts_with("reacher-easy")[0]
    new, _ = agent.acts_with("own-long")
    assert new.blocks[0].get_parameter("ffn.w_in.weight") is agent.model.blocks[0].get_parameter("ffn.w_in.weight")
    agent.experts = "none"  # is about the bank's own experts
    rest = np.array([name not in OLD for name in mixed])
    without = actions(agent, mixed)
    assert np.array_equal(without[:, rest], together[:, rest])
    assert not np.array_equal(without[:, ~rest], together[:, ~rest])


def test_an_expert_is_what_stage_2_would_have_trained(old: ExpertBank, grown: ExpertBank) -> None:
    """The expert's own model acts as the bank's backbone with that expert at weight 1."""
    model = M3DT(dataclasses.replace(old.config, n_experts=1, top_k=None)).eval()
    old.load_backbone(model)
    model.load_expert(0, grown.read(expert_file(2)))
    agent = M3DTAgent.load(grown.path)
    task = tasks.get("ant-dir-7")
    same = M3DTAgent.from_model(
        model, [task], {task.name: agent.statistics[task.name]}, {task.name: agent.prompts[task.name]}, experts=0
    )
    assert np.array_equal(actions(same, (task.name,)), actions(agent, (task.name,)))
    assert any(bool(tensor.any()) for name, tensor in grown.read(expert_file(2)).items() if name.endswith("w_out"))


def test_the_parts_of_a_wider_task_train_with_its_expert(old: ExpertBank, grown: ExpertBank) -> None:
    tensors = grown.read(expert_file(4))
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items() if name.startswith("wider.")}
    assert shapes == {
        **{f"wider.{embed}.state.weight": (16, 7) for embed in ("embed", "embed_prompt")},
        **{f"wider.{embed}.action.weight": (16, 20) for embed in ("embed", "embed_prompt")},
        **{f"wider.{embed}.timestep.weight": (20, 16) for embed in ("embed", "embed_prompt")},
        "wider.predict_action.weight": (20, 16),
        "wider.predict_action.bias": (20,),
    }
    assert bool(tensors["wider.predict_action.bias"].any())  # it began at zero
    config = grown.config_of("own-long")
    with seeded(derive_seed(CONFIG.seed, "experts", 4, 0, "wider"), torch.device("cpu")):
        first = new_parts(old.model(), config)
    assert first.keys() == shapes.keys()
    assert not any(torch.equal(first[name], tensors[name]) for name in first)
    model, agent = M3DTAgent.load(grown.path).acts_with("own-long")[0], M3DTAgent.load(old.path)
    assert torch.equal(model.embed.state.weight[:, :39], agent.model.embed.state.weight)
    assert torch.equal(model.embed.state.weight[:, 39:], tensors["wider.embed.state.weight"])
    assert torch.equal(model.predict_action.bias[8:], tensors["wider.predict_action.bias"])


def test_growth_is_undone_by_dropping_its_files(old: ExpertBank, grown: ExpertBank, tmp_path: Path) -> None:
    undone = grown.without_growth(tmp_path / "undone")
    assert hashes(undone) == hashes(old)
    assert (undone.content_hash, undone.manifest) == (old.content_hash, old.manifest)
    assert (undone.path / "bank.json").read_bytes() == (old.path / "bank.json").read_bytes()
    once = grown.without_growth(tmp_path / "once", keep=1)
    assert once.content_hash == ExpertBank.open(old.path.with_name("first")).content_hash
    with pytest.raises(ConfigError, match="keep must be in 0 … 2"):
        grown.without_growth(tmp_path / "thrice", keep=3)


def test_a_bank_that_grows_acts_as_before_until_its_expert_is_trained(old: ExpertBank, made_up: Any, tmp_path: Path) -> None:
    new = old.grown(tmp_path / "new", made_up.made_up_data(NEW[:1]))
    agent = M3DTAgent.load(new.path)
    assert np.array_equal(actions(agent, OLD), actions(M3DTAgent.load(old.path), OLD))
    with pytest.raises(StageError, match="grown by task 'ant-dir-7', but its expert is not trained yet"):
        agent.reset("ant-dir-7")
    with pytest.raises(StageError, match=r"experts \[2\] are not trained yet"):
        new.grown(tmp_path / "again", made_up.made_up_data(NEW[1:2]))


class StopError(Exception):
    pass


def test_growing_continues_where_it_stopped_and_ends_as_if_it_had_not(old: ExpertBank, made_up: Any, tmp_path: Path) -> None:
    data, stopped_at = made_up.made_up_data(NEW), []

    def stop(record: Any) -> None:
        if record.step == 3 and len(stopped_at) < 2:
            stopped_at.append(record.experts)
            raise StopError

    whole = grow(old, tmp_path / "whole", data, experts=2, config=CONFIG, progress=False)
    for _ in range(2):
        with pytest.raises(StopError):
            grow(old, tmp_path / "stopped", data, experts=2, config=CONFIG, progress=False, on_log=stop)
    with pytest.raises(ConfigError, match="learning_rate"):
        fit_growth(data, ExpertBank.open(tmp_path / "stopped"), dataclasses.replace(CONFIG, learning_rate=0.5), progress=False)
    stopped = grow(old, tmp_path / "stopped", data, experts=2, progress=False)  # with the recorded settings
    assert stopped_at == [(2,), (2,)]
    assert hashes(stopped) == hashes(whole)
    assert stopped.manifest == whole.manifest
    assert not list((stopped.path / "resume").glob("grown-*"))
    grow(old, tmp_path / "stopped", data, experts=2, progress=False)  # nothing is left to do
    more = dataclasses.replace(CONFIG, steps=9)
    with pytest.raises(StageError, match="ended after 4 steps"):
        fit_growth(data, stopped, more, progress=False)


@pytest.mark.parametrize("case", ["there", "other data", "other bank", "settings", "few", "experts", "no backbone", "too wide"])
def test_what_cannot_grow_is_named(case: str, old: ExpertBank, grown: ExpertBank, made_up: Any, tmp_path: Path) -> None:
    data = made_up.made_up_data(NEW)
    if case == "there":
        with pytest.raises(ConfigError, match="the bank has 'reach' already"):
            old.grown(tmp_path / "new", made_up.made_up_data(("reach",)))
        with pytest.raises(ConfigError, match="the bank has 'own-long' already"):
            grown.grown(tmp_path / "new", data_of_spec(LONG))
    elif case == "other data":
        with pytest.raises(BankError, match=r"has grown on data .*; the data given are"):
            fit_growth(data_of_spec(LONG, length=70, seed=1), grown, progress=False)
        with pytest.raises(BankError, match=r"has grown by own-long; the data are of ant-dir-7"):
            fit_growth(data, grown, progress=False)
        with pytest.raises(BankError, match="their specs differ"):
            fit_growth(data_of_spec(dataclasses.replace(LONG, return_scale=3.0), length=70), grown, progress=False)
        with pytest.raises(StageError, match="has not grown"):
            fit_growth(data, old, progress=False)
    elif case == "other bank":
        with pytest.raises(BankError, match=r"there is another bank at .* \(grown by own-long\)"):
            grow(old, grown.path, data, progress=False)
        with pytest.raises(BankError, match=r"there is another bank at .* \(not grown\)"):
            grow(grown, old.path, made_up.made_up_data(("pendulum-spin",)), progress=False)
    elif case == "settings":
        other = dataclasses.replace(data, config=DataConfig(n_prompts=1))
        with pytest.raises(BankError, match="the data were opened with"):
            old.grown(tmp_path / "new", other)
    elif case == "experts":
        for wrong in (0, 4, True, "2"):
            with pytest.raises(ConfigError, match=r"experts must be in 1 … 3"):
                old.grown(tmp_path / "new", data, experts=wrong)
    elif case == "no backbone":
        fresh = made_up.new_bank(tmp_path / "fresh", made_up.made_up_data(OLD))
        with pytest.raises(StageError, match="has no backbone yet, so it cannot grow"):
            fresh.grown(tmp_path / "new", data)
    elif case == "too wide":
        monster = dataclasses.replace(WIDE, name="own-monster", max_episode_steps=10_000)
        assert old.grown(tmp_path / "wide", data_of_spec(monster)).widest.max_timesteps == 10_000
        with pytest.raises(ConfigError, match="obs_dim must be"):
            dataclasses.replace(WIDE, obs_dim=2_000)
    assert not (tmp_path / "new").exists()


def test_stages_of_a_grown_bank_are_not_trained(grown: ExpertBank, made_up: Any) -> None:
    data = made_up.made_up_data(OLD)
    for stage in (1, 2, 3):
        with pytest.raises(StageError, match="has grown, so its stages are as they are"):
            fit_stage(stage, data, grown, progress=False)
    with pytest.raises(StageError, match="has grown"):
        group_tasks(data, grown)
    with pytest.raises(StageError, match="has grown"):
        M3DTAgent.load(grown.path).fit_stage(3, data, bank=grown.path)


def test_copies_and_parts_of_a_grown_bank(old: ExpertBank, grown: ExpertBank, tmp_path: Path) -> None:
    half = grown.copy_to(tmp_path / "half", storage="bfloat16")
    agent = M3DTAgent.load(half.path)
    assert (
        np.abs(actions(agent, ("own-long", "reach")) - actions(M3DTAgent.load(grown.path), ("own-long", "reach"))).max() < 0.1
    )
    assert half.read(grown.growths[0].statistics_file).keys() == grown.read(grown.growths[0].statistics_file).keys()
    part = ExpertBank.open(grown.path, experts=[0, 1, 4])
    assert [task.name for task in part.tasks] == [*OLD, "own-long"]
    assert part.copy_to(tmp_path / "part").content_hash == part.content_hash
    backbone = ExpertBank.open(grown.path, experts=[])
    assert (backbone.growths, backbone.status("router")) == ((), "absent")
    assert set(backbone.manifest.specs) == set()
    with pytest.raises(ConfigError, match=r"no experts \[9\]"):
        ExpertBank.open(grown.path, experts=[9])
    some = grown.for_tasks(tmp_path / "some", OLD[:2])
    assert some.content_hash == old.for_tasks(tmp_path / "of old", OLD[:2]).content_hash


@pytest.mark.slow
def test_agents_in_other_precisions_act_on_grown_tasks(grown: ExpertBank) -> None:
    plain = actions(M3DTAgent.load(grown.path), ("own-long", "reach"))
    exact = M3DTAgent.load(grown.path)
    exact.model.double()
    assert np.abs(actions(exact, ("own-long", "reach")) - plain).max() < 1e-5
    coarse = M3DTAgent.load(grown.path, precision="bfloat16")
    assert np.abs(actions(coarse, ("own-long", "reach")) - plain).max() < 0.1
    assert exact.acts_with("own-long")[0].blocks[0].get_parameter("experts.w_in").dtype is torch.float64


def test_errors_on_held_out_data_are_of_the_model_that_acts(old: ExpertBank, grown: ExpertBank, made_up: Any) -> None:
    before, after = M3DTAgent.load(old.path), M3DTAgent.load(grown.path)
    data = made_up.made_up_data(OLD, seed=5)
    assert action_error(before, data, n_windows=4) == action_error(after, data, n_windows=4)
    assert 0 < action_error(after, data_of_spec(LONG, length=70), n_windows=4)["own-long"] < 10
    assert router_usage(after, data, n_windows=4) == router_usage(before, data, n_windows=4)
    with pytest.raises(ConfigError, match="the router weighs no experts for own-long"):
        router_usage(after, data_of_spec(LONG, length=70), n_windows=4)
