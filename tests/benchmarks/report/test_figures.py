"""What the figures are drawn from."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.report.figures import expert_weights
from m3dt_agent.errors import DatasetError


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"a": [1, 2], "b": [1]}', '{"a": []}', '{"a": ["x"]}', '{"a": [NaN]}', '{"a": 1}', "{}"]
)
def test_expert_weights_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "expert_weights.json").write_text(text)
    with pytest.raises(DatasetError, match=r"expert_weights\.json must hold"):
        expert_weights(tmp_path / "expert_weights.json")
