"""The bank on disk: round trips, what it gives, and the refusal of damaged and foreign files."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from small_banks import CONFIG, TASKS, new_bank, parts, random_model, statistics

from m3dt_agent import tasks
from m3dt_agent.bank import ExpertBank
from m3dt_agent.config import DataConfig
from m3dt_agent.errors import BankError, ConfigError, StageError
from m3dt_agent.model import M3DT, empty


def test_a_new_bank_opens_as_it_was_made(tmp_path: Path) -> None:
    new_bank(tmp_path / "bank")
    bank = ExpertBank.open(tmp_path / "bank")
    assert bank.config == CONFIG
    assert bank.data_config == DataConfig()
    assert tuple(task.name for task in bank.tasks) == TASKS
    assert bank.groups is None
    assert [bank.status(stage) for stage in (1, 2, 3)] == ["absent"] * 3
    assert bank.default_experts == "none"
    assert list(bank.statistics) == list(bank.prompts) == list(TASKS)
    assert bank.statistics["reach"].target_return == 812.5
    np.testing.assert_array_equal(bank.statistics["reach"].mean, statistics("reach").mean)
    np.testing.assert_array_equal(bank.prompts["walker-run"][0].timesteps, [498, 499])


def test_a_wide_model_comes_back_from_its_bank(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, n_experts=0, ffn_multiple=12)
    model = M3DT(config)
    new_bank(tmp_path / "bank", config).commit({"backbone.safetensors": model.backbone_tensors()})
    found = ExpertBank.open(tmp_path / "bank").model()
    assert found.config == config
    assert found.backbone_tensors()["blocks.0.ffn.w_out.weight"].shape == (16, 12 * 16)
    for name, tensor in model.backbone_tensors().items():
        assert torch.equal(found.backbone_tensors()[name], tensor), name


def test_the_model_is_built_as_far_as_training_has_come(tmp_path: Path) -> None:
    model, bank = random_model(), new_bank(tmp_path / "bank")
    files = parts(model)
    with pytest.raises(StageError, match="no backbone yet"):
        bank.model()
    bank.commit({"backbone.safetensors": files["backbone.safetensors"]})
    assert bank.model().config.n_experts == 0
    assert (bank.status("backbone"), bank.status("experts")) == ("done", "absent")
    bank.commit({"experts/001.safetensors": files["experts/001.safetensors"]})
    assert (bank.status("experts"), bank.finished_experts, bank.default_experts) == ("partial", (1,), "none")
    partial = bank.model()
    torch.testing.assert_close(partial.expert_slice(1), model.expert_slice(1), rtol=0, atol=0)
    assert not partial.expert_slice(0)["blocks.0.experts.w_out"].any()
    bank.commit({name: files[name] for name in ("experts/000.safetensors", "router.safetensors")})
    assert (bank.status("experts"), bank.status("router"), bank.default_experts) == ("done", "done", "mixture")
    torch.testing.assert_close(dict(ExpertBank.open(bank.path).model().state_dict()), dict(model.state_dict()), rtol=0, atol=0)


def test_every_weight_of_a_whole_bank_comes_from_its_files(full_bank: ExpertBank, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole banks are loaded into memory that nobody initialised; here it holds NaN instead of whatever was there."""
    empty_like, asked = empty._empty_like, []

    def poisoned(tensor: torch.Tensor) -> torch.Tensor:
        asked.append(tensor)
        return empty_like(tensor).fill_(torch.nan)

    monkeypatch.setattr(empty, "_empty_like", poisoned)
    torch.manual_seed(5)
    found, expected = full_bank.model(), random_model()
    assert len(asked) == len(dict(found.named_parameters())) == len(found.state_dict())
    assert not list(found.buffers()), "an empty model's buffers would be empty too: empty_model has to make them"
    assert not any(parameter.is_meta for parameter in found.parameters())
    torch.testing.assert_close(dict(found.state_dict()), dict(expected.state_dict()), rtol=0, atol=0)
    for name, parameter in expected.named_parameters():
        assert found.get_parameter(name).stride() == parameter.stride(), name
        assert found.get_parameter(name).data_ptr() % 64 == 0, name


def test_a_bank_opened_by_its_sizes_is_verified_when_it_is_read(full_bank: ExpertBank, tmp_path: Path) -> None:
    for name in full_bank.manifest.files:
        file = full_bank.path / name
        kept = file.read_bytes()
        flip_bit(file)
        bank = ExpertBank.open(full_bank.path, check="sizes")
        uses: list[Callable[[], object]] = [lambda bank=bank, name=name: bank.read(name), bank.refresh]
        uses.append(lambda bank=bank: (bank.model(), bank.statistics, bank.prompts))
        uses.append(lambda bank=bank: bank.copy_to(tmp_path / "copy"))
        for use in uses:
            with pytest.raises(BankError, match=f"{name} is damaged or foreign"):
                use()
        for damage in (truncate, remove):
            damage(file)
            with pytest.raises(BankError, match=f"{name} is (missing|damaged or foreign)"):
                ExpertBank.open(full_bank.path, check="sizes")
        file.write_bytes(kept)
    whole = ExpertBank.open(full_bank.path, check="sizes")
    assert whole.content_hash == full_bank.content_hash
    torch.testing.assert_close(dict(whole.model().state_dict()), dict(random_model().state_dict()), rtol=0, atol=0)


def test_some_experts_alone(full_bank: ExpertBank, tmp_path: Path) -> None:
    (full_bank.path / "experts/000.safetensors").rename(tmp_path / "away")
    bank = ExpertBank.open(full_bank.path, experts=[1])
    assert bank.finished_experts == (1,)
    assert [bank.status(stage) for stage in (1, 2, 3)] == ["done", "partial", "absent"]
    assert bank.default_experts == "none"
    bank.refresh()
    assert bank.finished_experts == (1,)
    assert bank.copy_to(tmp_path / "copy").finished_experts == (1,)
    with pytest.raises(BankError, match=r"experts/000\.safetensors is missing"):
        ExpertBank.open(full_bank.path)
    with pytest.raises(ConfigError, match=r"no experts \[5\] in the bank; it has \[0, 1\]"):
        ExpertBank.open(full_bank.path, experts=[1, 5])
    (tmp_path / "away").rename(full_bank.path / "experts/000.safetensors")
    assert ExpertBank.open(full_bank.path, experts=[0, 1]).default_experts == "mixture"


def test_loaded_tensors_do_not_follow_the_file(full_bank: ExpertBank) -> None:
    before = full_bank.read("router.safetensors")
    kept = {name: tensor.clone() for name, tensor in before.items()}
    full_bank.commit({"router.safetensors": parts(random_model(1))["router.safetensors"]})
    torch.testing.assert_close(before, kept, rtol=0, atol=0)
    assert full_bank.content_hash != new_bank(full_bank.path.parent / "other").content_hash


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def remove(path: Path) -> None:
    path.unlink()


def swap_for_another_banks(path: Path) -> None:
    other = new_bank(path.parent / "foreign")
    other.commit(parts(random_model(7)))
    shutil.copy(other.path / "backbone.safetensors", path)


@pytest.mark.parametrize("damage", [flip_bit, truncate, remove, swap_for_another_banks])
def test_a_damaged_file_is_named(full_bank: ExpertBank, damage: Callable[[Path], None]) -> None:
    damage(full_bank.path / "backbone.safetensors")
    for use in (lambda: ExpertBank.open(full_bank.path), full_bank.model, lambda: full_bank.copy_to(full_bank.path / "copy")):
        with pytest.raises(BankError, match=r"backbone\.safetensors is (missing|damaged or foreign)"):
            use()
    assert not (full_bank.path / "copy").exists()


def test_every_file_is_verified_on_open(full_bank: ExpertBank) -> None:
    for name in full_bank.manifest.files:
        kept = (full_bank.path / name).read_bytes()
        flip_bit(full_bank.path / name)
        with pytest.raises(BankError, match=name):
            ExpertBank.open(full_bank.path)
        (full_bank.path / name).write_bytes(kept)
    ExpertBank.open(full_bank.path)


def test_a_file_nobody_knows_is_refused(full_bank: ExpertBank) -> None:
    shutil.copy(full_bank.path / "experts/000.safetensors", full_bank.path / "experts/007.safetensors")
    with pytest.raises(BankError, match=r"holds experts/007\.safetensors, which its bank\.json does not list"):
        ExpertBank.open(full_bank.path)


def test_no_bank_and_two_banks(tmp_path: Path) -> None:
    with pytest.raises(BankError, match=r"no bank at .*bank\.json is missing"):
        ExpertBank.open(tmp_path / "nowhere")
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise/bank.json").write_bytes(b"\xff\x00{")
    with pytest.raises(BankError, match="damaged or foreign"):
        ExpertBank.open(tmp_path / "noise")
    new_bank(tmp_path / "bank")
    with pytest.raises(BankError, match="there already is a bank"):
        new_bank(tmp_path / "bank")


def test_statistics_of_other_tasks_are_refused(tmp_path: Path) -> None:
    specs = [tasks.get(name) for name in TASKS]
    with pytest.raises(ConfigError, match="reach"):
        ExpertBank.create(tmp_path / "bank", CONFIG, specs, {"walker-run": statistics("walker-run")}, {}, DataConfig())


def test_tensors_of_another_shape_are_named(tmp_path: Path) -> None:
    bank = new_bank(tmp_path / "bank", dataclasses.replace(CONFIG, embed_dim=32))
    bank.commit({"backbone.safetensors": parts(random_model())["backbone.safetensors"]})
    with pytest.raises(BankError, match=r"backbone\.safetensors does not fit this bank's model"):
        bank.model()


def test_the_bank_says_which_stages_are_done_and_which_experts_are_missing(full_bank: ExpertBank, tmp_path: Path) -> None:
    assert all(full_bank.is_done(stage) for stage in ("backbone", 2, "router"))
    assert full_bank.missing_experts == ()
    bank = new_bank(tmp_path / "new")
    assert not any(bank.is_done(stage) for stage in (1, 2, 3))
    assert bank.missing_experts == (0, 1)
    bank.commit({name: parts(random_model())[name] for name in ("backbone.safetensors", "experts/001.safetensors")})
    assert [bank.status(stage) for stage in (1, 2, 3)] == ["done", "partial", "absent"]
    assert (bank.is_done(1), bank.is_done(2)) == (True, False)
    assert bank.missing_experts == (0,)
