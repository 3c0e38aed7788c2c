"""Several models in one batch: each slot is computed by its own, beside the slots of the same model alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from grown_banks import grown_bank
from own_tasks import POINT, WIDE

from m3dt_agent.agent import M3DTAgent
from m3dt_agent.bank import ExpertBank
from m3dt_agent.errors import InvalidValueError, ShapeError

MIXED = ("reach", "own-wide", "walker-run", "own-point", "own-wide")
OLD = np.array([True, False, True, False, False])


@pytest.fixture(scope="module")
def grown(bank: ExpertBank, tmp_path_factory: pytest.TempPathFactory) -> ExpertBank:
    folder = tmp_path_factory.mktemp("parts")
    return grown_bank(grown_bank(bank, folder / "once", WIDE), folder / "twice", POINT)


def test_a_mixed_batch_is_each_models_own_batch(bank: ExpertBank, grown: ExpertBank) -> None:
    """The old slots get the bits that the old bank gives them as a batch, whatever rests; so do the slots of each expert."""
    agent, old, wide = M3DTAgent.load(grown.path), M3DTAgent.load(bank.path), M3DTAgent.load(grown.path)
    agent.reset(list(MIXED))
    old.reset([name for name in MIXED if name in ("reach", "walker-run")])
    wide.reset("own-wide")
    rng = np.random.default_rng(0)
    for step in range(4):
        obs = np.zeros((5, 46), np.float32)
        for row, width in zip(obs, (39, 46, 24, 3, 46), strict=True):
            row[:width] = rng.normal(size=width)
        active = np.array([True, True, step != 2, step != 1, True])
        found = agent.act(obs, reward=np.ones(5), active=active)
        assert found.shape == (5, 28)
        assert not found[~active].any()
        assert np.array_equal(found[OLD][:, :8], old.act(obs[OLD, :39], reward=np.ones(2), active=active[OLD]))
        assert not found[OLD][:, 8:].any()
        assert np.array_equal(found[[1, 4]], wide.act(obs[[1, 4]], reward=np.ones(2)))


def test_a_batch_that_fails_leaves_all_models_as_they_were(grown: ExpertBank) -> None:
    agent, untouched = M3DTAgent.load(grown.path), M3DTAgent.load(grown.path)
    obs = np.ones((5, 46), np.float32)
    for one in (agent, untouched):
        one.reset(list(MIXED))
        one.act(obs)
    with pytest.raises(InvalidValueError, match="observation of slot 3, dimension 1"):
        agent.act(np.where(np.arange(5)[:, None] * 46 + np.arange(46) == 3 * 46 + 1, np.nan, obs))
    with pytest.raises(ShapeError, match=r"shape \(5, 46\)"):
        agent.act(obs[:, :39])
    with pytest.raises(InvalidValueError, match="slot 4"):
        agent.act(obs, reward=[0, 0, 0, 0, 1e300])
    assert np.array_equal(agent.act(obs, reward=np.ones(5)), untouched.act(obs, reward=np.ones(5)))


def test_a_copy_acts_beside_its_original(grown: ExpertBank, tmp_path: Path) -> None:
    agent = M3DTAgent.load(grown.path)
    copy = agent.copy()
    for one in (agent, copy):
        one.reset(["own-wide", "reach"])
    obs = np.ones((2, 46), np.float32)
    assert np.array_equal(agent.act(obs), copy.act(obs))
    assert agent.acts_with("own-wide")[0] is copy.acts_with("own-wide")[0]
