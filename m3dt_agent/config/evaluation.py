"""How agents are evaluated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .checks import require, require_positive, require_types

EVALUATION_SEED = 10_000
"""Seed of the first episode of every evaluation, unless it is chosen otherwise."""


@dataclass(frozen=True, slots=True)
class EvalConfig:
    """Evaluation: `episodes` per task, with seeds `seed`, `seed` + 1, …, fixed before anything runs.

    slots: environments that run at once; a Meta-World environment takes 10 to 30 MB. workers: processes they run in (0: this
    process; None: one per core). stop_on_success: end Meta-World episodes at success. rtg_mode: "rewards" lowers the
    return-to-go by each reward, "constant" keeps it. overlap: the workers step one half of the slots while the policy acts for
    the other half; None: only for behavior policies and for agents on a GPU, since an agent on the CPU needs the same cores.
    deterministic: use two torch CPU threads and evaluate four tasks at a time. Results are then the same to the last bit on
    machines of one type, for any number of workers, here or in jobs, as long as tasks, episodes, `slots` and `overlap` are.
    """

    episodes: int = 10
    seed: int = EVALUATION_SEED
    slots: int = 32
    workers: int | None = None
    stop_on_success: bool = False
    rtg_mode: Literal["rewards", "constant"] = "rewards"
    overlap: bool | None = None
    deterministic: bool = False

    def __post_init__(self) -> None:
        require_types(self)
        require_positive(self, "episodes", "slots")
        require(0 <= self.seed < 2**32, self, "seed", "in [0, 2**32)")
        require(self.workers is None or self.workers >= 0, self, "workers", "None or >= 0")
