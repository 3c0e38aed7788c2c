"""The fuzzer notices what it is for: each bad reader does one thing wrong, and edits change what they say they change."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from fuzz.campaign import Campaign, keep, signature
from fuzz.edits_json import edit_json, places
from fuzz.harness import Fuzzer

FAULTS = {
    "raw": r"raw: .*KeyError: 'missing'",
    "reads_outside": "outside: reads .*key.txt",
    "reads_in_c": "outside: (opened|read) .*other.h5",
    "writes_outside": "outside: open for writing .*notes.txt",
    "removes_through_a_link": "outside: os.remove .*notes.txt",
    "takes": "takes: a secret is in out/copy.txt",
    "hoards": "memory: .*MemoryError",
    "believes": "memory: it asked for memory that a file promised",
    "swells": "memory: [0-9]+ MB at its peak",
    "dawdles": "slow: not done after 0.5 s",
    "blocks": "hang: not done after",
    "crashes": "crash: .*SIGABRT",
    "runs": "runs: subprocess.Popen",
    "calls_home": "network: (connects to|looks up)",
    "waits": "waits: 100000 s in all",
}


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzer]:
    with Fuzzer(tmp_path_factory.mktemp("fuzz"), readers="fuzz.bad_readers", limit_s=20.0, grace_s=1.0) as started:
        yield started


def test_a_value_and_a_named_error_are_no_findings(fuzzer: Fuzzer) -> None:
    for reader, kind in (("good", "value"), ("named", "error")):
        outcome = fuzzer.run({"reader": reader})
        assert (outcome.kind, outcome.finding) == (kind, "")


@pytest.mark.parametrize(("reader", "finding"), FAULTS.items(), ids=FAULTS)
def test_every_fault_is_a_finding_and_the_next_input_is_read(fuzzer: Fuzzer, reader: str, finding: str) -> None:
    limits = {"dawdles": 0.5, "blocks": 0.5}
    outcome = fuzzer.run({"reader": reader, "limit_s": limits.get(reader, 20.0)})
    assert re.search(finding, outcome.finding, re.DOTALL), outcome
    assert signature(outcome)
    assert fuzzer.run({"reader": "good"}).finding == ""
    assert (fuzzer.base / "home" / "notes.txt").read_bytes().startswith(b"-----BEGIN")


class OfNumbers(Campaign):
    """Draws lists of numbers for `bad_readers.fussy`, who cannot read those above 10."""

    def _strategy(self) -> st.SearchStrategy[dict[str, Any]]:
        numbers = st.lists(st.integers(0, 1000), max_size=20)
        return st.fixed_dictionaries({"reader": st.just("fussy"), "numbers": numbers})


def test_a_finding_is_made_small_and_kept(fuzzer: Fuzzer, tmp_path: Path) -> None:
    findings = OfNumbers(fuzzer, "fussy", 0, inputs=100, shrink=True).run()
    ((kind, (recipe, outcome)),) = findings.items()
    assert recipe["numbers"] == [11]
    assert "KeyError" in kind
    (path,) = keep(findings, tmp_path / "kept")
    again = json.loads(path.read_text())
    assert fuzzer.run(again["recipe"]).text == outcome.text
    seen = [OfNumbers(fuzzer, "fussy", seed, inputs=5).run() for seed in (3, 3)]
    assert [recipe for recipe, _ in seen[0].values()] == [recipe for recipe, _ in seen[1].values()], "the seed decides"


@pytest.mark.parametrize(
    "template", ["bank", "dataset", "labelled dataset", "mt160", "prompt-dt", "tdmpc2", "weights", "hub bank", "hub datasets"]
)
def test_sound_inputs_are_read(fuzzer: Fuzzer, template: str) -> None:
    reader = {"bank": "banks", "dataset": "datasets", "labelled dataset": "datasets"}.get(
        template, "hub" if template.startswith("hub") else "published"
    )
    outcome = fuzzer.run({"reader": reader, "template": template, "edits": [], "hub": []})
    assert (outcome.kind, outcome.finding) == ("value", ""), outcome
    assert "Error" not in outcome.text


def test_archives_are_read_after_they_were_put_together_again(fuzzer: Fuzzer) -> None:
    edits = [{"do": "archive", "file": "chunk_0.pt", "edit": {"do": "npy", "member": 0.0, "text": "x"}}]
    assert fuzzer.run({"reader": "published", "template": "tdmpc2", "edits": edits}).kind == "value"


def test_json_is_edited_at_any_place_with_what_no_serializer_writes() -> None:
    text = json.dumps({"a": [1, {"b": 2}], "c": "d"})
    assert places(text) == [[], [0], [0, 0], [0, 1], [0, 1, 0], [1]]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"do": "set", "at": [0, 1, 0], "raw": "NaN"}, '{"a": [1, {"b": NaN}], "c": "d"}'),
        ({"do": "twin", "at": [1], "raw": "7"}, '{"a": [1, {"b": 2}], "c": "d", "c": 7}'),
        ({"do": "name", "at": [1], "raw": '"a"'}, '{"a": [1, {"b": 2}], "a": "d"}'),
        ({"do": "drop", "at": [0, 0]}, '{"a": [{"b": 2}], "c": "d"}'),
        ({"do": "copy", "at": [1], "from": [0]}, '{"a": [1, {"b": 2}], "c": [1, {"b": 2}]}'),
        ({"do": "set", "at": [1], "raw": {"repeat": ["[", 3, "]"]}}, '{"a": [1, {"b": 2}], "c": [[[]]]}'),
        ({"do": "set", "at": [], "raw": "x"}, "x"),
        ({"do": "drop", "at": [5, 1]}, text),
    ]
    for edit, expected in cases:
        assert edit_json(text, [edit]) == expected


def test_a_hub_s_answers_are_changed(fuzzer: Fuzzer) -> None:
    base: dict[str, Any] = {"reader": "hub", "template": "hub bank"}
    for edit, error in (
        ({"do": "status", "where": "info", "status": 404, "times": 0}, "(Hub|Refused)Error"),
        ({"do": "body", "where": "storage", "kind": "flip", "at": 0.5, "times": 0}, "HubError"),
        ({"do": "plant", "file": "bank.json", "edits": [{"do": "drop", "at": [0]}]}, "BankError"),
    ):
        outcome = fuzzer.run({**base, "hub": [edit]})
        assert outcome.kind == "error", (edit, outcome)
        assert re.match(error, outcome.text), (edit, outcome)
