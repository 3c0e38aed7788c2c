"""Named tensors: overwritten all or none, and checked before."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import ConfigError, InvalidValueError, ShapeError


def copy_all(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str) -> None:
    """Overwrites each of `wanted` with the tensor of its name. what: what they are, for errors. If one does not fit, none is.

    Raises:
        As `check_all`.
    """
    check_all(given, {name: target.shape for name, target in wanted.items()}, what)
    with torch.no_grad():
        for name, target in wanted.items():
            target.copy_(given[name])


def check_all(given: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], what: str) -> None:
    """Checks that `given` are tensors of these names and shapes. what: what they are, for errors.

    Raises:
        ConfigError: tensors are missing or unknown. ShapeError: one has another shape.
        InvalidValueError: one holds NaN or infinity.
    """
    if missing := sorted(shapes.keys() - given.keys()):
        raise ConfigError(f"{what}: {len(missing)} tensors are missing: {', '.join(missing[:5])}{', …' * (len(missing) > 5)}")
    if unknown := sorted(given.keys() - shapes.keys()):
        raise ConfigError(f"{what}: {len(unknown)} unknown tensors: {', '.join(unknown[:5])}{', …' * (len(unknown) > 5)}")
    for name, shape in shapes.items():
        if given[name].shape != shape:
            raise ShapeError(f"{what}: {name} must have shape {tuple(shape)}; got {tuple(given[name].shape)}")
        if not is_finite(given[name]):
            raise InvalidValueError(f"{what}: {name} holds NaN or infinity, from which no action can be computed")


def is_finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or infinite."""
    flat = tensor.detach().flatten()
    # Such an entry makes the sum of squares NaN or infinite too, and that is the cheapest pass over memory there is. Squares of
    # large finite entries may overflow.
    return math.isfinite(torch.dot(flat, flat).item()) or bool(flat.isfinite().all())
