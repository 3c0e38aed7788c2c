"""Which slot runs which episode: every episode once, no slot idle while one waits, and slots shared out by steps."""

from __future__ import annotations

import collections
import heapq

from hypothesis import given
from hypothesis import strategies as st

from m3dt_agent.evaluation.schedule import Episode, Queue
from m3dt_agent.tasks import TASKS, get


@given(data=st.data())
def test_every_episode_is_taken_once_and_no_slot_idles_while_one_waits(data: st.DataObject) -> None:
    """Episodes end whenever they like. Then no slot ends later than the average and one episode more (Graham's bound)."""
    tasks = data.draw(st.lists(st.sampled_from(TASKS), min_size=1, max_size=6, unique=True))
    per_task, slots = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 8))
    episodes = [Episode(task, seed) for task in tasks for seed in range(per_task)]
    lengths = data.draw(st.lists(st.integers(1, 500), min_size=len(episodes), max_size=len(episodes)))
    queue, taken = Queue(episodes), []
    running = [(lengths[i], slot, i) for slot in range(slots) if (i := queue.take()) >= 0]
    heapq.heapify(running)
    while running:
        now, slot, i = heapq.heappop(running)
        taken.append(i)
        left = {episodes[k].task for k in range(len(episodes)) if k not in taken and k not in [r[2] for r in running]}
        following = queue.take(episodes[i].task)
        assert (following == -1) == (not left)
        if following >= 0:
            assert (episodes[following].task == episodes[i].task) == (episodes[i].task in left), "a task changed needlessly"
            heapq.heappush(running, (now + lengths[following], slot, following))
    assert sorted(taken) == list(range(len(episodes)))
    assert now <= sum(lengths) / slots + max(lengths)


def test_slots_are_shared_out_by_the_steps_that_tasks_have() -> None:
    episodes = [Episode(get(name), seed) for name in ("cheetah-vel-25", "reach") for seed in range(10)]
    queue = Queue(episodes)
    first = collections.Counter(episodes[queue.take()].task.name for _ in range(7))
    assert first == {"reach": 5, "cheetah-vel-25": 2}  # 500 and 200 steps
