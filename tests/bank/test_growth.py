"""What bank.json says of growth: read, written, and refused if a stranger wrote it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from grown_banks import grown_bank
from own_tasks import POINT, WIDE
from small_banks import edit, forge, new_bank, parts, random_model, tree

from m3dt_agent import M3DTAgent, tasks
from m3dt_agent.bank import ExpertBank
from m3dt_agent.bank.growth import Growth, new_growth
from m3dt_agent.errors import BankError, ConfigError

RECORD = {"sha256": "0" * 64, "bytes": 8}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank of two experts, grown by two tasks with one expert, and by a third; not to be changed."""
    folder = tmp_path_factory.mktemp("growth")
    bank = new_bank(folder / "bank")
    bank.commit(parts(random_model()), groups={"walker-run": 0, "reach": 1})
    first = grown_bank(bank, folder / "first", WIDE, tasks.get("ant-dir-7"))
    return grown_bank(first, folder / "grown", POINT).path


@pytest.fixture
def grown(made: Path, tmp_path: Path) -> ExpertBank:
    """A copy of the bank that a test may damage."""
    return ExpertBank.open(shutil.copytree(made, tmp_path / "grown"), check="sizes")


def test_tasks_are_split_over_experts_in_their_order() -> None:
    growth = new_growth((), ("a", "b", "c", "d", "e"), 2, 7)
    assert growth == Growth(0, ("a", "b", "c", "d", "e"), {"a": 7, "b": 7, "c": 7, "d": 8, "e": 8})
    assert (growth.experts, growth.members(8)) == ((7, 8), ("d", "e"))
    assert new_growth((growth,), ("f",), 1, 7) == Growth(1, ("f",), {"f": 9})
    with pytest.raises(ConfigError, match="groups must name experts 0 … 999"):
        new_growth((), ("f",), 1, 1000)


def test_a_grown_bank_is_listed_whole(grown: ExpertBank, made: Path) -> None:
    document = json.loads((grown.path / "bank.json").read_text())
    assert document["format_version"] == 4
    assert [growth["groups"] for growth in document["grown"]] == [{"own-wide": 2, "ant-dir-7": 2}, {"own-point": 3}]
    assert document["tasks"] == ["walker-run", "reach"]
    assert [task.name for task in grown.tasks] == ["walker-run", "reach", "own-wide", "ant-dir-7", "own-point"]
    assert set(grown.statistics) == set(grown.prompts) == {task.name for task in grown.tasks}
    assert (grown.finished_experts, grown.missing_experts, grown.default_experts) == ((0, 1), (), "mixture")
    assert ExpertBank.open(grown.path).manifest == grown.manifest
    assert ExpertBank.open(made.with_name("first")).content_hash != grown.content_hash


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda m: m.update(format_version=3), "format version 3 with .* 2 growths"),
        (lambda m: m.update(format_version=5), "format version 5; this version"),
        (lambda m: m.update(grown=[]), "which is not the name of one of its tasks|format version 4"),
        (lambda m: m.update(grown={}), "grown must be a list"),
        (lambda m: m["grown"][0].update(number=10**9), "number must be in 0 … 999"),
        (lambda m: m["grown"][0].update(number=True), r"grown\[0\].number must be an integer"),
        (lambda m: m["grown"][0].update(number=-1), "number must be in 0 … 999"),
        (lambda m: m["grown"][1].update(number=0), "growth 0 comes after growth 0"),
        (lambda m: m["grown"][0].update(tasks=[]), "at least one task"),
        (lambda m: m["grown"][0].update(tasks=["own-wide", "own-wide"]), "none twice"),
        (lambda m: m["grown"][0].update(tasks=["own-wide"]), "groups must cover its tasks"),
        (lambda m: m["grown"][0].update(tasks=["own-wide", "../x"], groups={"own-wide": 2, "../x": 2}), "task without a spec"),
        (lambda m: m["grown"][0].update(groups={"own-wide": 2, "ant-dir-7": 10**12}), "experts 0 … 999"),
        (
            lambda m: m["grown"][0].update(groups={"own-wide": 1, "ant-dir-7": 1}),
            "expert 1; its experts must be .* after 1",
        ),
        (lambda m: m["grown"][1].update(groups={"own-point": 2}), "expert 2; its experts must be .* after 2"),
        (lambda m: m["grown"][1].update(tasks=["reach"], groups={"reach": 3}), "reach, which are in the bank already"),
        (lambda m: m["grown"][1].update(number=7), "does not list grown/007-statistics"),
        (lambda m: m["grown"].pop(), "own-point"),
        (lambda m: m["grown"][0].update(training={"threads": 10**9}), r"grown\[0\].training.threads must be in 1 … 1024"),
        (lambda m: m["grown"][0].update(training={"config": {"steps": "many"}}), r"grown\[0\].training.config.steps"),
        (lambda m: m["grown"][0].update(colour=3), "has no field 'colour'"),
        (lambda m: m["files"].pop("grown/001-prompts.safetensors"), "does not list grown/001-prompts"),
        (lambda m: m["files"].update({"experts/009.safetensors": m["files"]["experts/002.safetensors"]}), "experts/009"),
        (
            lambda m: m["files"].update({"grown/009-prompts.safetensors": RECORD}),
            "belongs to no growth",
        ),
        (
            lambda m: m["files"].update({"grown/../x-prompts.safetensors": RECORD}),
            "not a file of a bank",
        ),
        (lambda m: m["specs"]["own-wide"].update(obs_dim=1025), "obs_dim must be"),
        (lambda m: m["specs"].pop("own-wide"), "task without a spec"),
    ],
)
def test_a_forged_growth_is_refused(grown: ExpertBank, change: Callable[[dict[str, Any]], object], told: str) -> None:
    edit(grown.path, change)
    before = tree(grown.path)
    with pytest.raises(BankError, match=told):
        ExpertBank.open(grown.path)
    assert tree(grown.path) == before


def test_an_expert_has_the_size_that_its_tasks_say(grown: ExpertBank) -> None:
    edit(grown.path, lambda manifest: manifest["specs"]["own-wide"].update(obs_dim=1000, max_episode_steps=10_000))
    bank = ExpertBank.open(grown.path)
    with pytest.raises(BankError, match=r"experts/002\.safetensors does not fit this bank's model"):
        bank.grown_models(bank.model())


def test_what_is_in_the_new_files_is_checked(grown: ExpertBank) -> None:
    expert, file = grown.read("experts/002.safetensors"), "experts/002.safetensors"
    for change, told in (
        ({"wider.embed.state.weight": torch.full((16, 7), torch.nan)}, "holds NaN or infinity"),
        ({"wider.embed.state.weight": torch.zeros(7, 16)}, r"must have shape \(16, 7\)"),
    ):
        forge(grown.path, file, {**expert, **change})
        with pytest.raises(BankError, match=told):
            M3DTAgent.load(grown.path)
    forge(grown.path, file, {f"x.{name}": tensor for name, tensor in expert.items()})
    with pytest.raises(BankError, match="tensors are missing"):
        M3DTAgent.load(grown.path)
    forge(grown.path, file, expert)
    statistics = grown.read("grown/000-statistics.safetensors")
    forge(grown.path, "grown/000-statistics.safetensors", {k: t for k, t in statistics.items() if "own-wide" not in k})
    with pytest.raises(
        BankError, match=r"grown/000-statistics\.safetensors and bank\.json disagree about tasks \['own-wide'\]"
    ):
        M3DTAgent.load(grown.path)
    forge(grown.path, "grown/000-statistics.safetensors", statistics)
    prompts = grown.read("grown/000-prompts.safetensors")
    forge(grown.path, "grown/000-prompts.safetensors", prompts | {"own-wide/0/timesteps": torch.tensor([0, 10**9])})
    with pytest.raises(BankError, match=r"grown/000-prompts\.safetensors is damaged or foreign: .*outside \[0, 1000\)"):
        M3DTAgent.load(grown.path)


def test_strangers_and_links_in_the_new_folder(grown: ExpertBank, tmp_path: Path) -> None:
    (grown.path / "grown" / "009-prompts.safetensors").write_bytes(b"x")
    with pytest.raises(BankError, match=r"holds grown/009-prompts\.safetensors, which its bank\.json does not list"):
        ExpertBank.open(grown.path)
    (grown.path / "grown" / "009-prompts.safetensors").unlink()
    theirs = tmp_path / "theirs"
    (grown.path / "grown").rename(theirs)
    (grown.path / "grown").symlink_to(theirs)
    (theirs / "000-prompts.safetensors.next").write_text("theirs")
    bank = ExpertBank.open(grown.path)
    with pytest.raises(Exception, match="symbolic link"):
        bank.commit({}, stages={"router": {}})
    assert (theirs / "000-prompts.safetensors.next").read_text() == "theirs"


def test_tasks_are_shown_to_a_bank_that_has_grown(grown: ExpertBank, tmp_path: Path) -> None:
    from grown_banks import data_of_spec

    more = grown.with_tasks(tmp_path / "more", data_of_spec(tasks.get("cup-catch")))
    assert [task.name for task in more.tasks] == ["walker-run", "reach", "cup-catch", "own-wide", "ant-dir-7", "own-point"]
    agent = M3DTAgent.load(more.path)
    for name in ("cup-catch", "own-wide"):
        agent.reset(name)
        width = next(task.obs_dim for task in agent.tasks if task.name == name)
        assert np.isfinite(agent.act(np.zeros(width))).all()
    with pytest.raises(ConfigError, match="'own-point' already"):
        grown.with_tasks(tmp_path / "again", data_of_spec(POINT))
