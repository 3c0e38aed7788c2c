"""The number of threads that decides is the faster one, and is tried again."""

from __future__ import annotations

import time

import pytest
import torch

from m3dt_agent.evaluation.threads import TRIALS, TRY_AGAIN_AFTER, FasterThreads
from m3dt_agent.model.determinism import cpu_threads


def _used(decide_seconds: dict[int, float], threads: int, decisions: int) -> list[int]:
    """The number of threads of each decision, which takes `decide_seconds` with that number."""

    def decide() -> int:
        time.sleep(decide_seconds[torch.get_num_threads()])
        return torch.get_num_threads()

    with cpu_threads(threads):
        faster = FasterThreads()
        return [faster(decide) for _ in range(decisions)]


@pytest.mark.parametrize("slow", [1, 2])
def test_the_slower_number_of_threads_is_left(slow: int) -> None:
    used = _used({slow: 0.02, 3 - slow: 0.0}, 2, TRY_AGAIN_AFTER + 30)
    assert used[2 * TRIALS : TRY_AGAIN_AFTER] == [3 - slow] * (TRY_AGAIN_AFTER - 2 * TRIALS)
    assert 2 <= used.count(slow) < 2 * TRIALS  # in each round, but not to the end


def test_both_are_tried_alike_where_they_are_alike() -> None:
    used = _used({1: 0.03, 2: 0.05}, 2, 2 * TRIALS + 5)
    assert sorted(used[: 2 * TRIALS]) == [1] * TRIALS + [2] * TRIALS
    assert used[2 * TRIALS :] == [1] * 5


def test_one_thread_stays_one() -> None:
    assert _used({1: 0.0}, 1, 20) == [1] * 20
