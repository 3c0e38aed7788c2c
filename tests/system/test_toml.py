"""TOML files: what is written is read back, and what is no TOML is refused."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3dt_agent.errors import ConfigError, PathError
from m3dt_agent.system.toml import MAX_BYTES, read_toml, toml_key, toml_lines

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
PLAIN = TEXT | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=6)


@settings(max_examples=20)
@given(st.dictionaries(TEXT, VALUES, max_size=4))
def test_what_is_written_is_read_back(values: dict[str, Any]) -> None:
    text = toml_lines(values)
    assert text.isascii()
    found = tomllib.loads(text)
    assert repr(found) == repr(values)  # 1 and 1.0 and True differ


def test_paths_that_are_no_text_are_written_all_the_same() -> None:
    assert tomllib.loads(toml_lines({"root": "a\udcff\U0001f916\x7f"})) == {"root": "a\ufffd\U0001f916\x7f"}
    assert tomllib.loads(f"[{toml_key('a.b c')}]") == {"a.b c": {}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"x = [", "is not a TOML file"),
        (b"x = 1\nx = 2", "is not a TOML file"),
        (b"x = '\xff'", "is not a TOML file"),
        (b"x = " + b"[" * 5000, "is not a TOML file"),
        (b"#" * (MAX_BYTES + 1), "has more than 4,194,304 bytes"),
    ],
)
def test_what_is_no_toml_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "run.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_toml(tmp_path / "run.toml", ConfigError)
    for path in (tmp_path, tmp_path / "missing.toml"):
        with pytest.raises(PathError):
            read_toml(path, ConfigError)
