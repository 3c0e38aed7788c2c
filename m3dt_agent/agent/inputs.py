"""Checks of what an agent is given: numbers, one row per slot, or an error that says what came and what is valid."""

from __future__ import annotations

import contextlib
import math
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InvalidValueError, ShapeError

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

LARGEST = float(np.finfo(np.float32).max)
"""The largest number that a model in float32 can be shown, 3.4e38."""


def observation_rows(obs: npt.ArrayLike, what: str, shape: tuple[int | None, ...]) -> Float32Array:
    """Observations as (N, width) float32; numbers too large for float32 become infinite. what: whose they are, for the error.

    shape: the shape they must have; (None, width) allows (width,) and (N, width) for any N > 0.

    Raises:
        ShapeError: not an array of numbers, or another shape.
    """
    any_number = shape[0] is None
    valid = f"({shape[-1]},) or (N, {shape[-1]})" if any_number else str(shape)
    array = _numbers(obs, np.float32)
    if array is None:
        raise ShapeError(f"observations of {what} are numbers of shape {valid}; got {_described(obs)}")
    fits = array.ndim in (1, 2) and array.shape[-1] == shape[-1] and len(array) > 0 if any_number else array.shape == shape
    if not fits:
        raise ShapeError(f"observations of {what} have shape {valid}; got {array.shape}")
    return np.atleast_2d(array)


def reward_rows(reward: npt.ArrayLike, shape: tuple[int, ...], used: Bools) -> Float64Array:
    """Rewards of `shape`, () or (N,), as (N,) float64 with 0 where `used` is False.

    Raises:
        ShapeError: not numbers, or another shape.
        InvalidValueError: a reward that is used is not finite.
    """
    rewards = _numbers(reward, np.float64)
    if rewards is None:
        raise ShapeError(f"reward must be a number or numbers of shape {shape}; got {_described(reward)}")
    if rewards.shape != shape:
        raise ShapeError(f"reward must have shape {shape} for these observations; got {rewards.shape}")
    rewards = np.atleast_1d(rewards)
    require_finite("reward", rewards, used)
    return np.where(used, rewards, 0.0)


def flag_rows(name: str, value: npt.ArrayLike | None, shape: tuple[int, ...], *, default: bool) -> Bools:
    """Flags of `shape`, () or (N,), as (N,) bool; None is `default` for every slot.

    Raises:
        InvalidValueError: not boolean.
        ShapeError: another shape.
    """
    flags = np.full(shape, default) if value is None else _array(value)
    if flags is None or flags.dtype != np.bool_:
        raise InvalidValueError(f"{name} must be boolean; got {_described(value) if flags is None else flags.dtype}")
    if flags.shape != shape:
        raise ShapeError(f"{name} must have shape {shape} for these observations; got {flags.shape}")
    return np.atleast_1d(flags)


def require_finite(what: str, values: npt.NDArray[Any], used: Bools, advice: str = "") -> None:
    """Checks that all used `values`, (N, width) or (N,), are finite.

    Raises:
        InvalidValueError: one is not; the message names the slot and dimension of the first, and ends with `advice`.
    """
    if (np.isfinite(values) | ~used).all():
        return
    first = tuple(int(i) for i in np.argwhere(~np.isfinite(values) & used)[0])
    where = f"slot {first[0]}" + (f", dimension {first[1]}" if len(first) > 1 else "")
    raise InvalidValueError(f"{what} of {where} is {values[first]}{advice}")


def finite_number(name: str, value: object) -> float:
    """A number of Python or NumPy as a float.

    Raises:
        InvalidValueError: it is none, or is not finite.
    """
    if not isinstance(value, bool) and isinstance(value, Real):
        with contextlib.suppress(OverflowError):  # an integer too large for a float
            if math.isfinite(number := float(value)):
                return number
    raise InvalidValueError(f"{name} must be a finite number; got {value!r}")


def _numbers(value: npt.ArrayLike, dtype: type[np.floating[Any]]) -> npt.NDArray[Any] | None:
    """`value` as an array of this dtype; None if it is no array of integers, floats or flags."""
    array = _array(value)
    if array is None or array.dtype.kind not in "fiub":
        return None
    with np.errstate(over="ignore"):
        return array.astype(dtype, copy=False)


def _array(value: npt.ArrayLike) -> npt.NDArray[Any] | None:
    """`value` as an array; None if it is none, like lists of different lengths, or tensors on a GPU."""
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None


def _described(value: object) -> str:
    """What a value is, for an error: short, even if the value is not."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}"
    shown = repr(value) if isinstance(value, str | bytes | int | float | complex | type(None)) else ""
    return f"{type(value).__name__} {shown}".strip() if len(shown) <= 40 else f"{type(value).__name__} {shown[:40]}…"
