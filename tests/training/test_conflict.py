"""Gradient conflict by hand, and where it peaks; of real gradients it is measured in test_grouping.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from m3dt_agent.training.conflict import gradient_conflict, has_peaked, smoothed


@pytest.mark.parametrize(
    ("gradients", "conflict"),
    [
        ([[1.0, 2.0], [2.0, 4.0]], 0.0),
        ([[1.0, 0.0], [0.0, 1.0]], 1 - 0.5**0.5),
        ([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]], 1 - 1 / 3),
        ([[1.0, 0.0], [0.0, 0.0]], 0.5),
    ],
)
def test_conflict_by_hand(gradients: list[list[float]], conflict: float) -> None:
    def made() -> Iterator[torch.Tensor]:
        return (torch.tensor(gradient) for gradient in gradients)

    assert gradient_conflict(made) == pytest.approx(conflict, abs=1e-6)


def test_the_peak_is_where_the_smoothed_conflict_stops_rising() -> None:
    assert smoothed([1.0, 0.0]) == [1.0, 0.8]
    assert not has_peaked([], 1)
    assert not has_peaked([0.1, 0.2, 0.3], 1)
    assert not has_peaked([0.1, 0.9, 0.3], 1)  # smoothed: 0.1, 0.26, 0.268
    assert has_peaked([0.1, 0.9, 0.2], 1)  # smoothed: 0.1, 0.26, 0.248
    assert has_peaked([0.5, 0.1, 0.1], 2)
