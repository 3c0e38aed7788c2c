"""What strangers write where something harmless belongs: values, texts, names, numbers. Strategies for Hypothesis."""

from __future__ import annotations

import json
import math
from typing import Any

from hypothesis import strategies as st

NUMBERS = (
    *("0", "-1", "1", "-0.0", "1.5", "1e3", "20000", "1000000", "100000000", "2147483647", "2147483648", "-2147483649"),
    *("4294967296", "9223372036854775807", "9223372036854775808", "18446744073709551616", "1e38", "1e39", "1e308", "1e309"),
    *(
        "-1e309",
        "NaN",
        "Infinity",
        "-Infinity",
        "5e-324",
        "1" + "0" * 400,
        "1" + "0" * 5000,
        "-" + "9" * 30,
        "00",
        "0x10",
        "1_000",
        "\u0663",
    ),
)
NAMES = (
    *(
        "",
        ".",
        "..",
        "../..",
        "../../../../home/notes.txt",
        "/etc/passwd",
        "/dev/zero",
        "a/../../b",
        "..\\..\\x",
        "C:\\x",
        "~",
        "~root",
    ),
    *(
        "experts/\u0660\u0660\u0660.safetensors",
        "experts/000.safetensors",
        "experts/0000.safetensors",
        "experts/999.safetensors",
        "experts/-01.safetensors",
    ),
    *(
        "\u0660",
        "\uff11\uff12",
        "episode_\u0660",
        "episode_00",
        "episode_-1",
        "episode_99",
        "x" * 300,
        "con",
        "nul",
        "a\0b",
        "a\nb",
        "a\r\nSet-Cookie: b",
    ),
    *(
        "\x1b[31mred\x1b[0m",
        "\x1b]8;;http://x\x07link",
        "[bold]",
        "[/]",
        "=HYPERLINK(1)",
        "\u202egnp",
        "\ud800",
        "\U0001f600",
        "é",
        "e\u0301",
    ),
    *(
        "__proto__",
        "reach",
        "walker-run",
        "no-such-task",
        "main",
        "bank.json",
        "float64",
        "Box",
        "true",
        "%2e%2e%2f",
        "${HOME}",
        "`id`",
    ),
)
TYPES = ("null", "true", "false", "[]", "{}", '""', "[[]]", "[null]", '{"": null}', "[1, 2, 3]", '{"a": {"b": {}}}', "")
DEEP: tuple[Any, ...] = (
    {"repeat": ["[", 900, "]"]},
    {"repeat": ["[", 20_000, "]"]},
    {"repeat": ["[", 1_000_000, "]"]},
    {"repeat": ['{"a":', 100_000, "}"]},
    {"repeat": ["[", 100_000, ""]},
    {"repeat": ["9", 6_000, ""]},
    {"repeat": [" ", 3_000_000, "1"]},
)


def quoted(text: str) -> str:
    return json.dumps(text)


texts = st.one_of(st.sampled_from(NAMES), st.text(max_size=12))
names = st.one_of(
    st.sampled_from([name for name in NAMES if name and not set(name) & {"\0", "\ud800"}]), st.text(min_size=1, max_size=8)
)
integers = st.one_of(
    st.sampled_from([0, 1, -1, 7, 1 << 15, 1 << 31, 1 << 40, (1 << 63) - 1, (1 << 64) - 1]), st.integers(-(1 << 65), 1 << 65)
)
numbers = st.one_of(st.sampled_from(NUMBERS), st.integers(-10, 5000).map(str), st.floats().map(repr))
small_json = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 2000), st.floats(), st.text(max_size=6)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
).map(json.dumps)
raw_values: st.SearchStrategy[Any] = st.one_of(
    numbers, texts.map(quoted), st.sampled_from(TYPES), small_json, st.sampled_from(DEEP), st.text(max_size=6)
)
"""JSON texts and what only looks like them."""
floats = st.sampled_from([0.0, -1.0, 2.0, 1e-45, 1e9, 1e19, 1e30, 3e38, -3e38, math.inf, -math.inf, math.nan])
"""That float32 can hold."""
fractions = st.floats(0, 1)
