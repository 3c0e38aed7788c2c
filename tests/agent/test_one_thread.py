"""The door of an agent: one thread at a time, and open again after an error."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest

from m3dt_agent.agent.one_thread import OneThread
from m3dt_agent.errors import StageError


def test_a_second_thread_is_turned_away_until_the_first_has_left() -> None:
    door, inside, leave = OneThread(), threading.Event(), threading.Event()

    def stay() -> None:
        with door:
            inside.set()
            leave.wait()

    thread = threading.Thread(target=stay)
    thread.start()
    inside.wait()
    with pytest.raises(StageError, match=r"another thread is using this agent.*agent\.copy\(\)"), door:
        pass
    leave.set()
    thread.join()
    with door:
        pass


def test_an_error_inside_opens_the_door() -> None:
    door = OneThread()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), door:
            _ = 1 / 0


def test_a_copy_is_a_door_of_its_own() -> None:
    door = OneThread()
    with door:
        for other in (copy.copy(door), copy.deepcopy(door), pickle.loads(pickle.dumps(door))):
            with other:
                pass
