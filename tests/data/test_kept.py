"""Which dataset of an earlier call is kept, replaced or refused."""

from __future__ import annotations

import json

import pytest

from m3dt_agent.data.kept import Totals, is_kept, totals_from_metadata, totals_to_metadata
from m3dt_agent.errors import DatasetError


@pytest.fixture
def made(tmp_path):
    """The folder of a dataset with the fingerprint "this"."""
    path = tmp_path / "reach" / "expert-v0"
    (path / "data").mkdir(parents=True)
    (path / "data" / "metadata.json").write_text(json.dumps({"m3dt_collect": "this"}))
    (path / "data" / "main_data.hdf5").touch()
    return path


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_same_dataset_is_kept_and_one_that_is_not_there_is_made(made, overwrite):
    assert is_kept(made, "m3dt_collect", "this", overwrite=overwrite)
    assert not is_kept(made.with_name("random-v0"), "m3dt_collect", "this", overwrite=overwrite)


@pytest.mark.parametrize(
    ("key", "message"),
    [("m3dt_collect", "was made from this; asked for was that"), ("m3dt_import", "its metadata has no m3dt_import")],
)
def test_another_dataset_is_refused_unless_overwritten(made, key, message):
    with pytest.raises(DatasetError, match=rf"expert-v0 exists and .*{message}.*overwrite=True"):
        is_kept(made, key, "that", overwrite=False)
    assert not is_kept(made, key, "that", overwrite=True)


@pytest.mark.parametrize("file", ["metadata.json", "main_data.hdf5"])
def test_a_damaged_dataset_is_refused_unless_overwritten(made, file):
    (made / "data" / file).unlink()
    with pytest.raises(DatasetError, match=rf"{file} is missing; remove it, or pass overwrite=True"):
        is_kept(made, "m3dt_collect", "this", overwrite=False)
    assert not is_kept(made, "m3dt_collect", "this", overwrite=True)


def test_totals_there_and_back():
    totals = Totals(episodes=3, steps=1500, mean_return=-1.5)
    assert totals_from_metadata({**totals_to_metadata(totals), "m3dt_task": "reach"}) == totals
