"""The settings of a run: what is read and what is refused."""

from __future__ import annotations

import pytest

from m3dt_agent.errors import ConfigError
from m3dt_agent.quickstart import QuickstartConfig, parse_steps


@pytest.mark.parametrize("text", ["", "1", "1,2", "1,2,3,4", "a,b,c", "1.5,2,3"])
def test_steps_that_are_not_three_integers_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="three stages"):
        parse_steps(text)


def test_steps_are_read_and_must_be_positive() -> None:
    assert parse_steps("1500,300,200") == (1500, 300, 200)
    assert parse_steps(None) is None
    with pytest.raises(ConfigError, match="steps"):
        QuickstartConfig(steps=(10, 0, 10))
    with pytest.raises(ConfigError, match="held_out"):
        QuickstartConfig(held_out=2)
