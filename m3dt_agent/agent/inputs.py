"""Checks of what `M3DTAgent.act` is given: one row per slot, or an error that says what came and what is valid."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InvalidValueError, ShapeError

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


def observation_rows(obs: npt.ArrayLike, what: str, shape: tuple[int | None, ...]) -> Floats:
    """Observations as (N, width) float32. what: whose they are, for the error.

    shape: the shape they must have; (None, width) allows (width,) and (N, width) for any N > 0.

    Raises:
        ShapeError: not an array of numbers, or another shape.
    """
    any_number = shape[0] is None
    valid = f"({shape[-1]},) or (N, {shape[-1]})" if any_number else str(shape)
    try:
        array = np.asarray(obs, np.float32)
    except (TypeError, ValueError) as error:
        raise ShapeError(f"observations of {what} are an array {valid}; got {type(obs).__name__}") from error
    fits = array.ndim in (1, 2) and array.shape[-1] == shape[-1] and len(array) > 0 if any_number else array.shape == shape
    if not fits:
        raise ShapeError(f"observations of {what} have shape {valid}; got {array.shape}")
    return np.atleast_2d(array)


def reward_rows(reward: npt.ArrayLike, shape: tuple[int, ...], used: Bools) -> npt.NDArray[np.float64]:
    """Rewards of `shape`, () or (N,), as (N,) float64 with 0 where `used` is False.

    Raises:
        ShapeError: another shape.
        InvalidValueError: a reward that is used is not finite.
    """
    rewards = np.asarray(reward, np.float64)
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
    flags = np.full(shape, default) if value is None else np.asarray(value)
    if flags.dtype != np.bool_:
        raise InvalidValueError(f"{name} must be boolean; got {flags.dtype}")
    if flags.shape != shape:
        raise ShapeError(f"{name} must have shape {shape} for these observations; got {flags.shape}")
    return np.atleast_1d(flags)


def require_finite(what: str, values: npt.NDArray[Any], used: Bools) -> None:
    """Checks that all used `values`, (N, width) or (N,), are finite.

    Raises:
        InvalidValueError: one is not; the message names the slot and dimension of the first.
    """
    if (np.isfinite(values) | ~used).all():
        return
    first = tuple(int(i) for i in np.argwhere(~np.isfinite(values) & used)[0])
    where = f"slot {first[0]}" + (f", dimension {first[1]}" if len(first) > 1 else "")
    raise InvalidValueError(f"{what} of {where} is {values[first]}")
