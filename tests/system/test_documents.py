"""JSON documents of strangers become values of the asked shape, or the caller's error, whatever the bytes are."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3dt_agent.errors import BankError, ConfigError, DatasetError
from m3dt_agent.system.documents import MAX_BYTES, MAX_DEPTH, checked_shape, read_document


@dataclass(frozen=True)
class Part:
    width: int
    kind: Literal["a", "b"] = "a"

    def __post_init__(self) -> None:
        if self.width > 100:
            raise ConfigError(f"Part.width must be at most 100; got {self.width}")


@dataclass(frozen=True)
class Whole:
    parts: dict[str, Part]
    rate: float
    pair: tuple[int, str]
    names: tuple[str, ...] = ()
    limit: int | None = None
    free: Mapping[str, Any] = field(default_factory=dict)


GOOD = '{"parts": {"one": {"width": 3}}, "rate": 1, "pair": [2, "x"], "names": ["é"], "free": {"deep": [1.5, null, true]}}'


def test_a_document_becomes_its_shape() -> None:
    whole = read_document(GOOD, Whole, BankError)
    assert whole == Whole({"one": Part(3)}, 1, (2, "x"), ("é",), None, {"deep": [1.5, None, True]})
    assert type(whole.rate) is int  # written again, it is still `1` and not `1.0`
    assert read_document(GOOD.encode(), Whole, BankError) == whole


WRONG_TEXT = {
    "": "not JSON",
    "{": "not JSON",
    '{"a": 1,}': "not JSON",
    '{"a": 1, "b": {"c": 1, "c": 2}}': "has the key 'c' twice",
    "[NaN]": "holds NaN",
    '{"x": -Infinity}': "holds -Infinity",
    '{"x": [1e999]}': r"x\[0\] is a number too large",
    '{"x": 18446744073709551616}': "x is an integer of more than 64 bits",
    "1" * 5000: "not JSON",
    '"\\ud800"': "half of a surrogate pair",
    '{"a": {"\\udfff": 1}}': "a holds '.udfff', half of a surrogate pair",
    "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1): "nested deeper",
    "[" * 100_000: "nested deeper",
    '{"a":' * 100_000: "nested deeper",
    "[" + "1," * MAX_BYTES + "1]": "more than",
}


@pytest.mark.parametrize("text", WRONG_TEXT, ids=lambda text: text[:20])
def test_text_that_is_no_document_is_the_callers_error(text: str) -> None:
    with pytest.raises(DatasetError, match=rf"\Ax\.json is damaged or foreign: .*{WRONG_TEXT[text]}"):
        read_document(text, Any, DatasetError, name="x.json")


def test_bytes_that_are_not_utf8() -> None:
    with pytest.raises(BankError, match="not UTF-8"):
        read_document(b"\xff\xfe{\0}\0", Any, BankError)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"width": 3', '"width": "3"', r"parts\.one\.width must be an integer; got '3'"),
        ('"width": 3', '"width": true', r"parts\.one\.width must be an integer; got True"),
        ('"width": 3', '"width": 3.0', r"parts\.one\.width must be an integer"),
        ('"width": 3', '"kind": "a"', r"parts\.one lacks width"),
        ('"width": 3', '"width": 3, "kind": "c"', r'parts\.one\.kind must be one of "a", "b"; got \'c\''),
        ('"width": 3', '"width": 3, "more": 1', r"parts\.one has no field 'more'; there are width, kind"),
        ('"width": 3', '"width": 101', "Part.width must be at most 100; got 101"),
        ('{"one": {"width": 3}}', "[]", r"parts must be an object; got \[\]"),
        ('{"one": {"width": 3}}', '{"a/b": 1}', r"parts\['a/b'\] must be an object; got 1"),
        ('"rate": 1', '"rate": null', "rate must be a number; got None"),
        ('"rate": 1', '"rate": 1, "limit": "x"', "limit must be an integer or null; got 'x'"),
        ('[2, "x"]', "[2]", "pair must have 2 items; got 1"),
        ('[2, "x"]', "[2, 3]", r"pair\[1\] must be a string; got 3"),
        ('["é"]', '["é", 1]', r"names\[1\] must be a string; got 1"),
        ('["é"]', '"é"', "names must be a list; got 'é'"),
    ],
)
def test_another_shape_is_told_with_its_place(old: str, new: str, told: str) -> None:
    assert old in GOOD
    with pytest.raises(BankError, match=rf"foreign: .*{told}"):
        read_document(GOOD.replace(old, new), Whole, BankError)


def test_a_long_value_is_shown_short_and_without_control_characters() -> None:
    with pytest.raises(BankError) as caught:
        read_document('["\\u001b[31m' + "x" * 100_000 + '"]', tuple[int, ...], BankError)
    assert len(str(caught.value)) < 200
    assert "\x1b" not in str(caught.value)


def test_values_that_came_from_elsewhere_are_checked_alike() -> None:
    assert checked_shape({"width": 3}, Part, BankError, name="answer") == Part(3)
    with pytest.raises(BankError, match="answer is damaged or foreign: width must be an integer"):
        checked_shape({"width": None}, Part, BankError, name="answer")


@given(st.binary(max_size=200) | st.text(max_size=50).map(str.encode))
def test_any_bytes_end_in_a_value_or_the_callers_error(content: bytes) -> None:
    try:
        read_document(content, Whole | list[Part], BankError)
    except BankError:
        return


def test_files(tmp_path: Path) -> None:
    file = tmp_path / "doc.json"
    with pytest.raises(BankError, match=r"doc\.json cannot be used: there is nothing here"):
        read_document(file, Any, BankError)
    file.write_text('{"a": 1}')
    assert read_document(file, dict[str, int], BankError) == {"a": 1}
    (tmp_path / "link").symlink_to(file)
    assert read_document(tmp_path / "link", dict[str, int], BankError) == {"a": 1}
    file.write_text('{"a": null}')
    with pytest.raises(BankError, match=r"doc\.json is damaged or foreign: a must be an integer"):
        read_document(file, dict[str, int], BankError)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    others = {"pipe": "a pipe", "zero": "a device", "loop": "symbolic link", ".": "a folder", "a\0b": "character"}
    for name, told in others.items():
        with pytest.raises(BankError, match=told):
            read_document(tmp_path / name, Any, BankError)


def test_a_sparse_file_of_3_gb_takes_no_memory(tmp_path: Path) -> None:
    file = tmp_path / "doc.json"
    with file.open("wb") as sparse:
        sparse.truncate(3 << 30)
    tracemalloc.start()
    try:
        with pytest.raises(BankError, match="more than"):
            read_document(file, Any, BankError)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


def test_importing_it_is_quick() -> None:
    code = "import sys, m3dt_agent.system.documents; print(sorted({'pydantic', 'torch', 'jsonschema'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
