"""`bank.json`: hashes that stay, and content that is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_banks import CONFIG, TASKS, new_bank, parts, random_model

from m3dt_agent.bank import ExpertBank
from m3dt_agent.bank.manifest import Manifest
from m3dt_agent.bank.tensor_files import FileRecord
from m3dt_agent.config import DataConfig
from m3dt_agent.errors import BankError, ConfigError


def edited(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda manifest: manifest | changes


def test_banks_from_before_a_model_field_keep_their_manifest_and_hash(tmp_path: Path) -> None:
    """Both were written down before `ffn_multiple` came."""
    files = {f"{name}.safetensors": FileRecord("0" * 64, 8) for name in ("statistics", "prompts")}
    manifest = Manifest(CONFIG, DataConfig(), TASKS, files=files)
    bank = ExpertBank(tmp_path, manifest)
    assert bank.content_hash == "459bd62ea66dc71717fbcf335652aaa5da003f893f8a2c13a15a91b3d292f630"
    text = manifest.to_json()
    fields = ["embed_dim", "n_layers", "n_heads", "n_experts", "context_length", "prompt_length", "max_timesteps"]
    fields += ["state_dim", "act_dim", "dropout", "residual", "top_k"]
    assert list(json.loads(text)["model"]) == fields
    assert Manifest.from_json(text, tmp_path) == manifest
    wide = dataclasses.replace(manifest, model=dataclasses.replace(CONFIG, ffn_multiple=12))
    assert ExpertBank(tmp_path, wide).content_hash != bank.content_hash
    assert Manifest.from_json(wide.to_json(), tmp_path) == wide


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (edited(format="other"), "not an m3dt-bank"),
        (edited(format_version=5), "format version 5; this version of m3dt-agent reads 1, 2, 3 and 4"),
        (edited(tasks=["walker-fly"]), "walker-fly"),
        (edited(model={"embed_dim": 16}), "n_layers"),
        (edited(files={"../outside.safetensors": {"sha256": "", "bytes": 0}}), r"\.\./outside\.safetensors"),
        (edited(files={}), r"does not list statistics\.safetensors"),
        (edited(groups={"walker-run": 0, "reach": 5}), r"experts 0 … 1; got \{'reach': 5\}"),
        (edited(stages={"fourth": {}}), "fourth"),
        (edited(unheard_of=1), "unheard_of"),
        (lambda manifest: [manifest], "damaged or foreign"),
    ],
)
def test_a_foreign_manifest_is_refused(full_bank: ExpertBank, edit: Callable[[Any], Any], told: str) -> None:
    path = full_bank.path / "bank.json"
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))
    with pytest.raises(BankError, match=told):
        ExpertBank.open(full_bank.path)


@pytest.mark.parametrize("groups", [{"walker-run": 0}, {"walker-run": 0, "reach": 0}, {"walker-run": 0, "reach": 2}])
def test_groups_must_cover_tasks_and_experts(tmp_path: Path, groups: dict[str, int]) -> None:
    bank = new_bank(tmp_path / "bank")
    with pytest.raises(ConfigError):
        bank.commit({}, groups=groups)
    assert ExpertBank.open(bank.path).groups is None


def test_an_expert_cannot_be_counted_twice_under_another_spelling(tmp_path: Path) -> None:
    """Digits of other scripts match `\\d`. A bank seemed complete without its last expert and acted on unwritten memory."""
    bank = new_bank(tmp_path / "bank")
    bank.commit(parts(random_model()))
    folder, forged = tmp_path / "bank", "experts/٠٠٠.safetensors"  # noqa: RUF001  Arabic-Indic zeros
    manifest = json.loads((folder / "bank.json").read_text())
    del manifest["files"]["experts/001.safetensors"]
    manifest["files"][forged] = manifest["files"]["experts/000.safetensors"]
    (folder / "bank.json").write_text(json.dumps(manifest))
    (folder / "experts/001.safetensors").rename(folder / "experts/left.out")
    (folder / forged).write_bytes((folder / "experts/000.safetensors").read_bytes())
    with pytest.raises(BankError, match=r"which is not a file of a bank"):
        ExpertBank.open(folder)
    with pytest.raises(BankError, match=r"which is not a file of a bank"):
        ExpertBank.open(folder, check="sizes")
