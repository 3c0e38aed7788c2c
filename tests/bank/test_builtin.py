"""Banks that come with the package, from a temporary assets folder: found by name, read, never written to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from contracts import random_bank, random_datasets

import m3dt_agent
from m3dt_agent.agent import M3DTAgent
from m3dt_agent.bank import ExpertBank, builtin
from m3dt_agent.bank.builtin import builtin_banks as names_of_all
from m3dt_agent.bank.builtin import folder_to_write, is_builtin, open_bank
from m3dt_agent.config import ModelConfig, train_preset
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import BankError, ConfigError
from m3dt_agent.hub.banks import pull_bank, push_bank

NAMES = ("cheetah-vel-20", "reach")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TaskDatasets:
    return random_datasets(tmp_path_factory.mktemp("data"), NAMES)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the banks of the package are; empty."""
    folder = tmp_path / "assets" / "banks"
    monkeypatch.setattr(builtin, "FOLDER", folder)
    return folder


@pytest.fixture
def shipped(folder: Path, tmp_path: Path, data: TaskDatasets) -> ExpertBank:
    """builtin:two, of two tasks and two experts, stored as bfloat16, with a card beside it."""
    bank = random_bank(tmp_path / "made", data, ModelConfig.preset("tiny", n_experts=2))
    bank.commit({}, groups=dict(zip(NAMES, (0, 1), strict=True)))
    copy = bank.copy_to(folder / "two", storage="bfloat16")
    (copy.path / "README.md").write_text("# two\n")
    return copy


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


def test_the_folder_lies_in_the_package() -> None:
    assert Path(m3dt_agent.__file__).parent / "assets" / "banks" == builtin.FOLDER


def test_an_agent_of_a_builtin_bank_is_that_of_the_folder(shipped: ExpertBank) -> None:
    agents = [M3DTAgent.from_pretrained("builtin:two"), M3DTAgent.load(shipped.path)]
    assert agents[0].content_hash == agents[1].content_hash == shipped.content_hash
    for agent in agents:
        agent.reset(task="reach")
    observation = np.full(39, 0.3, np.float32)
    np.testing.assert_array_equal(agents[0].act(observation), agents[1].act(observation))
    agent = M3DTAgent.from_pretrained("builtin:two", tasks=["reach"])
    assert agent.bank is not None
    assert agent.bank.finished_experts == (1,)
    with pytest.raises(ConfigError, match="no revisions"):
        M3DTAgent.from_pretrained("builtin:two", revision="main")


def test_an_unknown_name_is_told_what_there_is(folder: Path, shipped: ExpertBank, tmp_path: Path) -> None:
    shipped.copy_to(folder / "another")
    (folder / "no bank").mkdir()
    assert names_of_all() == ("builtin:another", "builtin:two")
    for name in (
        "builtin:three",
        "builtin:",
        "builtin:../banks/two",
        "builtin:two/",
        f"builtin:{shipped.path}",
        "builtin:no bank",
    ):
        for open_it in (M3DTAgent.from_pretrained, open_bank, pull_bank, lambda name: push_bank(name, tmp_path / "out")):
            with pytest.raises(BankError, match=r"no bank 'builtin:.* it comes with builtin:another, builtin:two"):
                open_it(name)


def test_where_none_are_shipped_that_is_said(folder: Path) -> None:
    assert not folder.exists()
    with pytest.raises(BankError, match=r"no bank 'builtin:mt160' in this installation .* it comes with none; train a bank"):
        M3DTAgent.from_pretrained("builtin:mt160")


def test_a_folder_of_such_a_name_needs_its_full_path(shipped: ExpertBank, tmp_path: Path) -> None:
    path = shipped.copy_to(tmp_path / "builtin:mine").path
    assert not is_builtin(path)
    assert open_bank(path).content_hash == open_bank(str(path)).content_hash == shipped.content_hash


def test_damage_is_named(shipped: ExpertBank) -> None:
    (shipped.path / "experts/001.safetensors").unlink()
    with pytest.raises(BankError, match=r"experts/001\.safetensors is missing"):
        M3DTAgent.from_pretrained("builtin:two")
    assert open_bank("builtin:two", experts=[0]).finished_experts == (0,)


def test_it_stays_as_it_is(shipped: ExpertBank, data: TaskDatasets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = contents(shipped.path)
    agent = M3DTAgent.from_pretrained("builtin:two")
    assert agent.bank is not None
    for bank in (agent.bank, open_bank("builtin:two"), pull_bank("builtin:two").bank):
        with pytest.raises(BankError, match=r"must not be changed: .* came with the package"):
            bank.commit({})
        with pytest.raises(BankError, match="must not be changed"):
            agent.fit_stage("router", data, bank=bank)
    with pytest.raises(BankError, match="'builtin:two' comes with the package"):
        agent.fit_stage("router", data, bank="builtin:two")
    with pytest.raises(BankError, match="'builtin:new' comes with the package"):
        push_bank(shipped.path, "builtin:new")
    assert folder_to_write("two") == Path("two")
    assert contents(shipped.path) == before
    assert not Path("builtin:two").exists()


def test_training_goes_on_in_a_copy_that_is_stored_alike(shipped: ExpertBank, data: TaskDatasets, tmp_path: Path) -> None:
    before = contents(shipped.path)
    part = pull_bank("builtin:two", experts=[0], to=tmp_path / "part").bank
    assert (part.finished_experts, part.storage) == ((0,), "bfloat16")
    agent = M3DTAgent.from_pretrained("builtin:two", experts=[0])
    config = train_preset("tiny", "experts", steps=1, warmup_steps=0, threads=1)
    agent.fit_stage("experts", data, bank=tmp_path / "own", config=config, progress=False)
    own = ExpertBank.open(tmp_path / "own")
    assert (own.finished_experts, own.storage) == ((0, 1), "bfloat16")
    name = "experts/000.safetensors"
    assert own.manifest.files[name] == shipped.manifest.files[name]
    assert contents(shipped.path) == before


def test_commands_take_it(shipped: ExpertBank, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mujoco")
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("info", "builtin:two", "--json")
    assert (code, json.loads(out)["content_hash"]) == (0, shipped.content_hash)
    code, out, _ = run("eval", "builtin:two", "cheetah-vel-20", "--episodes", 1, "--workers", 0, "--json", "--rows", "rows")
    assert (code, json.loads(out)["policy"]) == (0, "m3dt-mixture")
    assert json.loads(Path("rows").read_text())["bank_hash"] == shipped.content_hash
    assert run("pull", "builtin:two", "pulled", "--json")[0] == 0
    assert run("convert", "builtin:two", "wide", "--storage", "float32", "--json")[0] == 0
    assert run("push", "builtin:two", "./pushed", "--json")[0] == 0
    for made in ("pulled", "pushed"):
        assert ExpertBank.open(made).manifest == shipped.manifest
    assert ExpertBank.open("wide").storage == "float32"
    for command in (("info", "builtin:one"), ("eval", "builtin:one", "reach"), ("pull", "builtin:one")):
        code, out, err = run(*command)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert "it comes with builtin:two" in err
    code, _, err = run("train", "--bank", "builtin:two", "--root", "nowhere")
    assert code == 1
    assert "'builtin:two' comes with the package and cannot be changed" in err
