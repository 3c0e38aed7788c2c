"""A whole bank for every test that asks for one."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_banks import new_bank, parts, random_model

from m3dt_agent.bank import ExpertBank


@pytest.fixture
def full_bank(tmp_path: Path) -> ExpertBank:
    bank = new_bank(tmp_path / "bank")
    bank.commit(parts(random_model()), groups={"walker-run": 0, "reach": 1})
    return bank
