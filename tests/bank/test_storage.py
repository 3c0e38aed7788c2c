"""Banks whose weights are stored as bfloat16: rounded once, half as large, and float32 for whoever reads them."""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from contracts import observations, play_alone, random_bank, random_datasets
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from m3dt_agent.agent import M3DTAgent
from m3dt_agent.bank import ExpertBank
from m3dt_agent.bank.manifest import Manifest
from m3dt_agent.bank.storage import as_stored, as_used, holds_weights
from m3dt_agent.bank.tensor_files import FileRecord, read_tensors, write_tensors
from m3dt_agent.config import DataConfig, ModelConfig, train_preset
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import BankError, ConfigError
from m3dt_agent.jobs import LocalProcesses
from m3dt_agent.training import Fanout, fit_stage

NAMES = ("walker-run", "reach", "cheetah-vel-22")
CONFIG = ModelConfig.preset("tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TaskDatasets:
    return random_datasets(tmp_path_factory.mktemp("data"), NAMES)


@pytest.fixture
def wide(tmp_path: Path, data: TaskDatasets) -> ExpertBank:
    bank = random_bank(tmp_path / "wide", data, CONFIG)
    bank.commit({}, groups={name: i for i, name in enumerate(NAMES)})
    return bank


@pytest.fixture
def narrow(wide: ExpertBank, tmp_path: Path) -> ExpertBank:
    return wide.copy_to(tmp_path / "narrow", storage="bfloat16")


def rounded(value: np.float32) -> np.float32:
    """The bfloat16 next to a float32, ties to the even one, from its bits."""
    bits = int(value.view(np.uint32))
    below, rest = bits >> 16, bits & 0xFFFF
    up = rest > 0x8000 or (rest == 0x8000 and below & 1 == 1)
    return np.uint32((below + up) << 16).view(np.float32)


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40))
def test_weights_are_rounded_once_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, patterns: list[int]) -> None:
    bits = np.array(patterns, np.uint32)
    bits[(bits & 0x7F800000 == 0x7F800000) & (bits & 0x7FFFFF != 0)] = 0  # of NaN only that it stays one is promised
    values = bits.view(np.float32)
    path = tmp_path_factory.mktemp("files") / "router.safetensors"
    weights = {"a": torch.from_numpy(values.copy()), "b": torch.from_numpy(values.copy()).expand(2, -1).mT}
    record = write_tensors(path, as_stored("router.safetensors", weights, "bfloat16"))
    assert load_file(path)["a"].dtype == torch.bfloat16
    found = as_used(path, read_tensors(path, record), "bfloat16")
    expected = np.array([rounded(value) for value in values], np.float32)
    for name, column in (("a", found["a"]), ("b", found["b"][:, 0]), ("b", found["b"][:, 1])):
        assert column.dtype == torch.float32, name
        np.testing.assert_array_equal(column.contiguous().numpy().view(np.uint32), expected.view(np.uint32))
    by_torch = weights["b"].to(torch.bfloat16).to(torch.float32)
    assert torch.equal(found["b"].contiguous().view(torch.int32), by_torch.contiguous().view(torch.int32))
    again = write_tensors(path, as_stored("router.safetensors", found, "bfloat16"))
    assert again == record


def test_a_nan_stays_one() -> None:
    stored = as_stored("router.safetensors", {"a": torch.tensor([float("nan"), 1.0])}, "bfloat16")
    assert as_used("router.safetensors", stored, "bfloat16")["a"].isnan().tolist() == [True, False]


def test_a_narrowed_bank_is_half_as_large_and_its_model_has_the_rounded_weights(
    wide: ExpertBank, narrow: ExpertBank, tmp_path: Path
) -> None:
    assert (wide.storage, narrow.storage) == ("float32", "bfloat16")
    assert (narrow.groups, narrow.config, narrow.tasks) == (wide.groups, wide.config, wide.tasks)
    weights = [name for name in wide.manifest.files if holds_weights(name)]
    assert len(weights) == 2 + CONFIG.n_experts
    for name, record in wide.manifest.files.items():
        if name in weights:
            assert narrow.manifest.files[name].bytes < 0.55 * record.bytes
            assert {tensor.dtype for tensor in load_file(narrow.path / name).values()} == {torch.bfloat16}
        else:
            assert narrow.manifest.files[name] == record
            assert (narrow.path / name).read_bytes() == (wide.path / name).read_bytes()
    expected = {name: t.to(torch.bfloat16).to(torch.float32) for name, t in wide.model().state_dict().items()}
    torch.testing.assert_close(dict(narrow.model().state_dict()), expected, rtol=0, atol=0)
    assert narrow.content_hash != wide.content_hash
    widened = narrow.copy_to(tmp_path / "widened", storage="float32")
    torch.testing.assert_close(dict(widened.model().state_dict()), expected, rtol=0, atol=0)
    assert widened.copy_to(tmp_path / "again", storage="bfloat16").manifest == narrow.manifest
    assert narrow.copy_to(tmp_path / "same").manifest == narrow.manifest
    with pytest.raises(ConfigError, match="float32 or bfloat16; got 'float16'"):
        wide.copy_to(tmp_path / "half", storage="float16")  # type: ignore[arg-type]
    assert not (tmp_path / "half").exists()


def test_an_agent_of_the_narrowed_bank_acts_nearly_as_that_of_the_wide_one(wide: ExpertBank, narrow: ExpertBank) -> None:
    agents = [M3DTAgent.from_pretrained(bank.path) for bank in (wide, narrow)]
    for experts in ("none", "mixture", 1):
        for task in agents[0].tasks:
            obs, rewards = observations(task, 12, 0), np.ones(12)
            actions = []
            for agent in agents:
                agent.experts = experts  # type: ignore[assignment]
                actions.append(play_alone(agent, task, obs, rewards))
            assert 0 < np.abs(actions[1] - actions[0]).max() < 2e-2
            assert np.abs(actions[0]).max() > 0.1, "the random weights do something"


def test_what_is_committed_is_stored_as_the_bank_says(wide: ExpertBank, narrow: ExpertBank) -> None:
    given = {name: tensor + 0.3 for name, tensor in wide.read("router.safetensors").items()}
    narrow.commit({"router.safetensors": given})
    expected = {name: tensor.to(torch.bfloat16) for name, tensor in given.items()}
    torch.testing.assert_close(load_file(narrow.path / "router.safetensors"), expected, rtol=0, atol=0)
    widened = {name: tensor.to(torch.float32) for name, tensor in expected.items()}
    torch.testing.assert_close(ExpertBank.open(narrow.path).read("router.safetensors"), widened, rtol=0, atol=0)
    assert load_file(narrow.path / "statistics.safetensors").keys() == wide.read("statistics.safetensors").keys()
    before = narrow.manifest.files["statistics.safetensors"]
    narrow.commit({"statistics.safetensors": narrow.read("statistics.safetensors")})
    assert narrow.manifest.files["statistics.safetensors"] == before


def test_what_jobs_train_is_stored_as_the_bank_says(data: TaskDatasets, tmp_path: Path) -> None:
    backbone = random_bank(tmp_path / "wide", data, CONFIG, experts=False)
    config = train_preset("tiny", "experts", steps=2, warmup_steps=0, threads=1)
    banks = []
    for fanout in (None, Fanout(LocalProcesses(0), experts_per_job=1)):
        bank = backbone.copy_to(tmp_path / f"{len(banks)} jobs", storage="bfloat16")
        fit_stage("experts", data, bank, config, fanout=fanout, progress=False)
        banks.append(ExpertBank.open(bank.path))
    assert banks[0].finished_experts == tuple(range(CONFIG.n_experts))
    assert banks[0].manifest.files == banks[1].manifest.files
    assert load_file(banks[1].path / "experts/000.safetensors")["blocks.0.experts.w_in"].dtype == torch.bfloat16


def test_some_experts_of_a_narrowed_bank(wide: ExpertBank, narrow: ExpertBank, tmp_path: Path) -> None:
    (narrow.path / "experts/000.safetensors").unlink()
    part = ExpertBank.open(narrow.path, experts=[1])
    assert (part.finished_experts, part.storage, part.default_experts) == ((1,), "bfloat16", "none")
    assert part.copy_to(tmp_path / "part").storage == "bfloat16"
    name = "experts/001.safetensors"
    expected = {key: tensor.to(torch.bfloat16).float() for key, tensor in wide.read(name).items()}
    copy = part.copy_to(tmp_path / "part of it", storage="float32")
    torch.testing.assert_close(copy.read(name), expected, rtol=0, atol=0)


def test_a_held_narrowed_bank_does_not_change(narrow: ExpertBank) -> None:
    other = ExpertBank.open(narrow.path)
    new = {name: tensor + 1.0 for name, tensor in narrow.read("router.safetensors").items()}
    writer = threading.Thread(target=other.commit, args=({"router.safetensors": new},))
    with narrow.held():
        writer.start()
        writer.join(0.2)
        assert writer.is_alive()
    writer.join(20)
    assert ExpertBank.open(narrow.path).manifest == other.manifest != narrow.manifest


def test_hashes_are_of_the_stored_bytes(narrow: ExpertBank) -> None:
    path = narrow.path / "router.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    for use in (lambda: ExpertBank.open(narrow.path), narrow.model, lambda: narrow.read("router.safetensors")):
        with pytest.raises(BankError, match=r"router\.safetensors is damaged or foreign"):
            use()


def test_float32_banks_are_of_the_first_format_and_others_of_the_second(wide: ExpertBank, narrow: ExpertBank) -> None:
    """What reads the first format alone refuses the second by its number, before it looks at anything else."""
    first, second = (json.loads((bank.path / "bank.json").read_text()) for bank in (wide, narrow))
    assert (first["format_version"], "storage" in first) == (1, False)
    assert (second["format_version"], second["storage"]) == (2, "bfloat16")


@pytest.mark.parametrize("changes", [{"use_returns": False}, {"use_timesteps": False}, {"use_embed_norm": False}], ids=str)
def test_a_model_that_lacks_parts_needs_the_newest_format(changes: dict[str, bool]) -> None:
    model = ModelConfig.preset("tiny", **changes)
    manifest = Manifest(model, DataConfig(), ("reach",))
    assert manifest.format_version == 4
    assert {name: manifest.to_dict()["model"][name] for name in changes} == changes
    assert Manifest(ModelConfig.preset("tiny"), DataConfig(), ("reach",)).format_version == 1


@pytest.mark.parametrize(
    ("version", "storage", "told"),
    [
        (5, "bfloat16", "format version 5; this version of m3dt-agent reads 1, 2, 3 and 4"),
        (1, "bfloat16", "format version 1 with what goes with 2: weights stored as 'bfloat16'"),
        (2, None, "format version 2 with what goes with 1: weights stored as 'float32'"),
        (2, "float16", "storage must be one of .* got 'float16'"),
        (2, ["bfloat16"], "damaged or foreign"),
    ],
)
def test_a_manifest_whose_format_and_storage_disagree_is_refused(
    narrow: ExpertBank, version: int, storage: object, told: str
) -> None:
    manifest = json.loads((narrow.path / "bank.json").read_text())
    manifest |= {"format_version": version, "storage": storage}
    if storage is None:
        del manifest["storage"]
    (narrow.path / "bank.json").write_text(json.dumps(manifest))
    with pytest.raises(BankError, match=told):
        ExpertBank.open(narrow.path)


def test_weights_stored_in_another_way_than_the_bank_says_are_refused(wide: ExpertBank, narrow: ExpertBank) -> None:
    content = (wide.path / "router.safetensors").read_bytes()
    (narrow.path / "router.safetensors").write_bytes(content)
    files = {**narrow.manifest.files, "router.safetensors": wide.manifest.files["router.safetensors"]}
    (narrow.path / "bank.json").write_text(dataclasses.replace(narrow.manifest, files=files).to_json())
    mixed = ExpertBank.open(narrow.path)
    with pytest.raises(BankError, match=r"router\.safetensors holds float32; its bank\.json says .* stored as bfloat16"):
        mixed.read("router.safetensors")
    with pytest.raises(BankError, match=r"router\.safetensors holds float32"):
        mixed.model()


def test_a_manifest_says_the_storage_and_comes_back(tmp_path: Path) -> None:
    files = {f"{name}.safetensors": FileRecord("0" * 64, 8) for name in ("statistics", "prompts")}
    manifest = Manifest(CONFIG, DataConfig(), NAMES, files=files, storage="bfloat16")
    assert Manifest.from_json(manifest.to_json(), tmp_path) == manifest
    assert manifest.with_experts(()).storage == "bfloat16"
    with pytest.raises(ConfigError, match="got 'int8'"):
        dataclasses.replace(manifest, storage="int8").checked()  # type: ignore[arg-type]
