"""The three stages of training, by name and number."""

from __future__ import annotations

from typing import Literal, get_args

from ..tasks import lookup

Stage = Literal["backbone", "experts", "router"]
STAGES: tuple[Stage, ...] = get_args(Stage)


def stage_name(stage: str | int) -> Stage:
    """The stage called `stage`, or numbered 1, 2 or 3.

    Raises:
        UnknownTaskError: neither a stage's name nor its number.
    """
    by_name: dict[str, Stage] = {name: name for name in STAGES} | {str(i): name for i, name in enumerate(STAGES, 1)}
    return lookup(by_name, str(stage), "stage")
