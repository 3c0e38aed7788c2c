"""Checks of what `act` is given: numbers of any kind become rows, anything else is refused with what is valid."""

from __future__ import annotations

import warnings
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from m3dt_agent.agent.inputs import finite_number, flag_rows, observation_rows, require_finite, reward_rows
from m3dt_agent.errors import InvalidValueError, ShapeError

ANY = (None, 3)
NO_NUMBERS: list[Any] = [
    None,
    "abc",
    ["1", "2", "3"],
    b"123",
    [1, None, 2],
    [1j, 0, 0],
    [[1, 2, 3], [1, 2]],
    {"obs": [1, 2, 3]},
    np.array([1, 2, 3], object),
    np.array(["2020-01-01"] * 3, "datetime64[D]"),
    [10**400, 0, 0],
    torch.zeros(3, requires_grad=True),
    torch.zeros(3, dtype=torch.bfloat16),
    torch.zeros(3, device="meta"),
]


@pytest.fixture(autouse=True)
def _warnings_are_errors() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize(
    "kind", [list, tuple, np.array, torch.tensor, lambda x: np.array(x, np.int8), lambda x: np.array(x, ">f8")]
)
def test_observations_of_any_kind_become_float32(kind: Any) -> None:
    for given, expected in (([1, 0, 1], [[1, 0, 1]]), ([[1, 0, 1], [0, 1, 0]], [[1, 0, 1], [0, 1, 0]])):
        rows = observation_rows(kind(given), "reach", ANY)
        assert rows.dtype == np.float32
        assert rows.tolist() == expected


@pytest.mark.parametrize("obs", NO_NUMBERS, ids=str)
def test_what_is_no_array_of_numbers_is_refused_with_what_is_valid(obs: Any) -> None:
    with pytest.raises(ShapeError, match=r"of reach are numbers of shape \(3,\) or \(N, 3\); got .{2,60}$"):
        observation_rows(obs, "reach", ANY)


@pytest.mark.parametrize("shape", [(), (2,), (0, 3), (2, 4), (1, 1, 3)])
def test_observations_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"have shape \(3,\) or \(N, 3\); got"):
        observation_rows(np.zeros(shape), "reach", ANY)
    with pytest.raises(ShapeError, match=r"have shape \(5, 3\); got"):
        observation_rows(np.zeros(shape), "5 slots", (5, 3))


def test_an_observation_too_large_for_float32_is_infinite_and_then_refused() -> None:
    rows = observation_rows([[0, 1e300, 0]], "reach", ANY)
    with pytest.raises(InvalidValueError, match="observation of slot 0, dimension 1 is inf"):
        require_finite("observation", rows, np.ones((1, 3), bool))


def test_rewards_stay_float64_and_are_zero_where_they_are_not_used() -> None:
    rows = reward_rows([0.1, np.nan, -1e300], (3,), np.array([True, False, True]))
    assert rows.dtype == np.float64
    assert rows.tolist() == [0.1, 0.0, -1e300]
    assert reward_rows(np.float32(2), (), np.array([True])).tolist() == [2.0]


@pytest.mark.parametrize("reward", NO_NUMBERS, ids=str)
def test_a_reward_that_is_no_number_is_refused(reward: Any) -> None:
    with pytest.raises(ShapeError, match=r"reward must be a number or numbers of shape \(3,\); got .{2,60}$"):
        reward_rows(reward, (3,), np.ones(3, bool))


@pytest.mark.parametrize("reward", [np.inf, -np.inf, np.nan])
def test_a_reward_that_is_not_finite_is_named(reward: float) -> None:
    with pytest.raises(InvalidValueError, match=f"reward of slot 1 is {reward}"):
        reward_rows([0.0, reward], (2,), np.ones(2, bool))


def test_flags() -> None:
    assert flag_rows("active", None, (2,), default=True).tolist() == [True, True]
    assert flag_rows("active", [True, False], (2,), default=True).tolist() == [True, False]
    assert flag_rows("active", np.bool_(False), (), default=True).tolist() == [False]
    assert flag_rows("active", torch.tensor([True, False]), (2,), default=True).tolist() == [True, False]
    for wrong in ([1, 0], [1.0, 0.0], ["True", "False"], [None, True], [[True], [True, False]], "yes", 5):
        with pytest.raises(InvalidValueError, match="active must be boolean; got"):
            flag_rows("active", wrong, (2,), default=True)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"active must have shape \(2,\) for these observations; got \(3,\)"):
        flag_rows("active", [True] * 3, (2,), default=True)


@pytest.mark.parametrize("value", [3, 3.0, np.int8(3), np.float16(3), np.uint64(3), Fraction(3)])
def test_numbers_of_any_kind_are_numbers(value: Any) -> None:
    number = finite_number("target_return", value)
    assert type(number) is float
    assert number == 3.0


@pytest.mark.parametrize(
    "value", [None, "3", True, np.True_, 3j, [3.0], np.array([3.0]), torch.tensor(3.0), Decimal(3), np.nan, np.inf, 10**400]
)
def test_what_is_no_finite_number_is_refused(value: Any) -> None:
    with pytest.raises(InvalidValueError, match="target_return must be a finite number; got"):
        finite_number("target_return", value)
