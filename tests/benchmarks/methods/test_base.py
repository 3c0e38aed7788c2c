"""What a method says it took must be numbers that a cell can hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.methods import Outcome
from m3dt_agent.errors import ConfigError


@pytest.mark.parametrize(
    "wrong",
    [
        {"parameters": -1},
        {"windows": "many"},
        {"training_flop": float("nan")},
        {"action_flop": float("inf")},
        {"active_parameters": np.int64(3)},
        {"curve": [(1, float("nan"))]},
        {"curve": [(1, 2, 3)]},
        {"curve": [1.0]},
        {"curve": [("1", 2.0)]},
    ],
)
def test_an_outcome_has_numbers_that_json_holds(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="of a method's outcome"):
        Outcome("random", **wrong)
    Outcome("random", parameters=0, training_flop=1e30, curve=[(1, -2.5)])
