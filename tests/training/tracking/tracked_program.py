"""Trains three small stages in a process of its own, followed by trackers:

python tests/training/tracking/tracked_program.py BANK [NAMES]     prints the content hash of the bank
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from m3dt_agent.config import BackboneConfig, ExpertsConfig, RouterConfig
from m3dt_agent.training import fit_stage

spec = importlib.util.spec_from_file_location("made_up", Path(__file__).parents[1] / "conftest.py")
assert spec is not None
assert spec.loader is not None
made_up = importlib.util.module_from_spec(spec)
spec.loader.exec_module(made_up)

SHARED: dict[str, Any] = {"steps": 6, "batch_size": 4, "warmup_steps": 2, "log_every": 2, "threads": 1}

if __name__ == "__main__":
    data = made_up.made_up_data()
    bank = made_up.new_bank(Path(sys.argv[1]), data)
    trackers = sys.argv[2] if len(sys.argv) > 2 else ()
    fit_stage("backbone", data, bank, BackboneConfig(**SHARED, conflict_every=2), trackers=trackers)
    fit_stage("experts", data, bank, ExpertsConfig(**SHARED, grouping="random", experts_at_once=2), trackers=trackers)
    fit_stage("router", data, bank, RouterConfig(**SHARED), trackers=trackers)
    print(bank.content_hash)
