"""The few scores of the paper (M3DT, arXiv 2505.24378) that are known here; all are on its 160 tasks.

The source "text" is the paper's own text. "summary" is a summary of it that has not been checked against the paper. If the two
disagree, both numbers are listed. It is not known here which of its two groupings the paper's M3DT used, so its number stands
beside both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TASK_SET = "mt160"
"""The task set of every number below."""


@dataclass(frozen=True, slots=True)
class PaperNumber:
    """A mean normalized score. methods: those of ours that it stands beside; empty for the best baseline, which is not
    named."""

    what: str
    score: float
    source: Literal["text", "summary"]
    methods: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.score:.2f}" + (" (summary)" if self.source == "summary" else "")


PAPER = (
    PaperNumber("M3DT", 78.21, "text", ("m3dt-random", "m3dt-gradient")),
    PaperNumber("best baseline", 71.65, "summary", ()),
    PaperNumber("best baseline, from the text's +7.5%", 72.75, "text", ()),
    PaperNumber("M3DT without grouping", 67.34, "text", ("m3dt-no-grouping",)),
    PaperNumber("M3DT without the three stages", 71.90, "summary", ("m3dt-end-to-end",)),
)


def paper_number(method: str, task_set: str) -> PaperNumber | None:
    """The paper's number for one of our methods on a task set; None if it is not known."""
    return next((number for number in PAPER if method in number.methods and task_set == TASK_SET), None)


def best_baselines(task_set: str) -> list[PaperNumber]:
    """The numbers known of the paper's best baseline on a task set."""
    return [number for number in PAPER if not number.methods and task_set == TASK_SET]
