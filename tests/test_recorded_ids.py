"""The ids in `golden/recorded_ids.json`, made again: what people have on disk is found again, whatever moves in the code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from golden.make_recorded_ids import FILE, recorded_ids
from recorded_datasets import collections, imports, lay_dataset

RECORDED: dict[str, dict[str, Any]] = json.loads(FILE.read_text())


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """As JSON gives it back."""
    made: dict[str, dict[str, Any]] = json.loads(json.dumps(recorded_ids(tmp_path_factory.mktemp("ids"))))
    return made


@pytest.mark.parametrize("kind", RECORDED)
def test_ids_are_those_recorded(found: dict[str, dict[str, Any]], kind: str) -> None:
    assert found[kind] == RECORDED[kind]


def test_nothing_is_left_unrecorded(found: dict[str, dict[str, Any]]) -> None:
    assert set(found) == set(RECORDED)


@pytest.mark.parametrize(("key", "name"), [(key, name) for key in ("m3dt_collect", "m3dt_import") for name in RECORDED[key]])
def test_a_dataset_with_a_recorded_fingerprint_is_kept(tmp_path: Path, key: str, name: str) -> None:
    make = (collections() | imports(tmp_path / "published"))[name]
    counts = {"m3dt_episodes": 1, "m3dt_steps": 1, "m3dt_mean_return": 0.0}
    counts |= {"m3dt_mean_normalized_score": 0.0} if key == "m3dt_collect" else {"m3dt_clipped_actions": 0}
    before = lay_dataset(tmp_path / "root", name, counts | {key: RECORDED[key][name]}, "as it was")
    assert make(tmp_path / "root")
    assert (before / "data" / "main_data.hdf5").read_text() == "as it was"
