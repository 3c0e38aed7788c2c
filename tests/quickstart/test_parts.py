"""Parts of a long command: kept when done, done again when not, and never mixed with other settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from m3dt_agent.errors import ConfigError, PathError
from m3dt_agent.quickstart.parts import Parts


def test_other_settings_need_a_fresh_start(tmp_path: Path) -> None:
    Parts(tmp_path / "run", {"seed": 0}, print).do("one", lambda: 1)
    with pytest.raises(ConfigError, match=r"seed=0.*--fresh"):
        Parts(tmp_path / "run", {"seed": 1}, print)
    parts = Parts(tmp_path / "run", {"seed": 1}, print, fresh=True)
    assert parts.do("one", lambda: 2) == 2


def test_fresh_never_deletes_a_folder_that_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="not such a run"):
        Parts(tmp_path, {}, print, fresh=True)
    assert (tmp_path / "thesis.tex").exists()


def test_a_part_that_fails_is_done_again_and_its_seconds_add_up(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "run", {}, print)
    with pytest.raises(ZeroDivisionError):
        parts.do("one", lambda: 1 / 0)
    before = parts.seconds()["one"]
    assert parts.do("one", lambda: [1, 2]) == [1, 2]
    assert parts.seconds()["one"] > before
    assert parts.do("one", lambda: 1 / 0) == [1, 2]


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000, "NaN"])
def test_a_damaged_record_is_named(tmp_path: Path, text: str) -> None:
    Parts(tmp_path / "run", {"seed": 1}, print)
    (tmp_path / "run" / "parts" / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json is damaged or foreign"):
        Parts(tmp_path / "run", {"seed": 1}, print)


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(PathError, match="there is a file"):
        Parts(tmp_path / "run", {"seed": 1}, print)
