"""The four readers on inputs that nobody would send them by mistake: a value or an M3DTError, and nothing else touched.

The quick test reads the same inputs every time, so that what makes it fail is a change of the code. The slow one goes on for a
quarter of an hour for each reader with other inputs every time; its seed is in the message of a failure.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from fuzz.campaign import READERS, Campaign, keep
from fuzz.harness import Fuzzer

QUICK_INPUTS, LONG_S = 25, 900.0
"""For each reader."""
INPUTS, MOST_SECONDS, MOST_MB = 1_000, 5.0, 1_000.0


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzer]:
    with Fuzzer(tmp_path_factory.mktemp("fuzz")) as started:
        yield started


def setting(name: str, default: float) -> float:
    return float(os.environ.get(name, default))


def check(campaign: Campaign) -> None:
    """Runs it; a failure names the seed, the smallest recipe that was found, and the file that keeps it."""
    findings = campaign.run()
    print(f"{campaign.reader}, seed {campaign.start_seed}: {campaign.fuzzer.counts[campaign.reader]}")
    kept = "\n".join(
        f"{path}: {recipe}\n{outcome.finding}"
        for path, (recipe, outcome) in zip(keep(findings), findings.values(), strict=True)
    )
    assert not findings, f"{campaign.reader}, seed {campaign.start_seed} (M3DT_FUZZ_SEED), read something badly:\n{kept}"


@pytest.mark.parametrize("reader", READERS)
def test_hostile_inputs_end_in_a_value_or_a_named_error(reader: str, fuzzer: Fuzzer) -> None:
    check(Campaign(fuzzer, reader, int(setting("M3DT_FUZZ_SEED", 0)), inputs=QUICK_INPUTS, shrink=True))
    assert fuzzer.counts[reader].outcomes["value"], "nothing was read at all: the recipes destroy too much"


@pytest.mark.slow
@pytest.mark.timeout(3 * LONG_S)
@pytest.mark.parametrize("reader", READERS)
def test_hostile_inputs_for_a_quarter_of_an_hour(reader: str, fuzzer: Fuzzer) -> None:
    seconds, seed = setting("M3DT_FUZZ_SECONDS", LONG_S), int(setting("M3DT_FUZZ_SEED", time.time() // 1 % 100_000))
    check(Campaign(fuzzer, reader, seed, seconds=seconds, shrink=True))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("reader", ["banks", "datasets"])
def test_a_thousand_inputs_in_a_gigabyte_and_five_seconds_each(reader: str, fuzzer: Fuzzer) -> None:
    fuzzer.counts.pop(reader, None)
    check(Campaign(fuzzer, reader, 1, inputs=INPUTS))
    counts = fuzzer.counts[reader]
    assert counts.inputs >= INPUTS
    assert counts.slowest < MOST_SECONDS
    assert counts.peak_mb < MOST_MB
