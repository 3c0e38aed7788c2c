"""Shipping demonstrators: the better ones replace their task's expert, and nothing else changes."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from benchmarks.studies import demonstrators
from benchmarks.studies.demonstrators import ASSETS, STARTS, Comparison, compare, ship
from m3dt_agent.data.behavior import MeasuredReturn, levels
from m3dt_agent.errors import ConfigError
from m3dt_agent.tasks import get


def test_every_run_begins_with_a_level_that_its_task_has() -> None:
    assert [name for name, level in STARTS.items() if level and level.partition("+")[0] not in levels(get(name))] == []


@pytest.fixture
def assets(tmp_path: Path) -> Path:
    folder = tmp_path / "assets"
    folder.mkdir()
    for name in ("behavior_policies.safetensors", "behavior_returns.json"):
        shutil.copy(ASSETS / name, folder)
    return folder


def lay_run(out: Path, name: str) -> dict[str, np.ndarray]:
    shipped = load_file(ASSETS / "behavior_policies.safetensors")
    new = {key: array + np.float16(1) for key, array in shipped.items() if key.startswith(f"{name}/expert/")}
    (out / name).mkdir(parents=True)
    save_file(new, out / name / "policies.safetensors")
    return new


def test_the_better_ones_are_shipped_and_the_others_stay(tmp_path: Path, assets: Path) -> None:
    out, worse = tmp_path / "runs", MeasuredReturn(300.0, 50.0, 30.0)
    new = lay_run(out, "cup-spin")
    lay_run(out, "walker-run")
    better = Comparison(MeasuredReturn(536.0, 1.0, 53.6), MeasuredReturn(800.0, 10.0, 80.0), 25)
    alike = Comparison(worse, MeasuredReturn(320.0, 50.0, 32.0), 25)  # two standard errors of the difference are 28
    compared = {"cup-spin": asdict(better), "walker-run": asdict(alike)}
    (out / "compared.json").write_text(json.dumps(compared))
    assert ship(out, assets) == ["cup-spin"]
    before, after = (load_file(folder / "behavior_policies.safetensors") for folder in (ASSETS, assets))
    assert before.keys() == after.keys()
    for key, array in after.items():
        assert array.tobytes() == new.get(key, before[key]).tobytes(), key
        assert array.dtype == np.float16
    old, now = (json.loads((folder / "behavior_returns.json").read_text()) for folder in (ASSETS, assets))
    assert now["cup-spin"].pop("expert") == {"mean": 800.0, "std": 10.0, "normalized": 80.0}
    del old["cup-spin"]["expert"]
    assert now == old


def test_an_asset_that_is_too_large_is_not_written(tmp_path: Path, assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "compared.json").write_text("{}")
    monkeypatch.setattr(demonstrators, "LARGEST_ASSET", 1_000)
    with pytest.raises(ConfigError, match="at most 1,000"):
        ship(tmp_path, assets)
    assert (assets / "behavior_policies.safetensors").read_bytes() == (ASSETS / "behavior_policies.safetensors").read_bytes()


def test_both_play_the_same_episodes(tmp_path: Path) -> None:
    """With the shipped policy as the new one, both have the same figures."""
    name = "pendulum-swingup"
    shipped = load_file(ASSETS / "behavior_policies.safetensors")
    (tmp_path / name).mkdir()
    save_file({key: array for key, array in shipped.items() if key.startswith(name)}, tmp_path / name / "policies.safetensors")
    (comparison,) = compare(tmp_path, 1).values()
    assert comparison.new == comparison.shipped
    assert comparison.new.mean > 500
    assert not comparison.is_better
