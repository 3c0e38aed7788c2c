"""Nothing in published files is executed, and nothing leaves traces."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_writers import (
    assert_holds,
    change,
    write_mt160,
    write_prompt_dt,
)

from m3dt_agent import tasks
from m3dt_agent.errors import DatasetError
from m3dt_agent.hub.convert_data import import_datasets


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.proof}",)


def test_nothing_malicious_is_executed(tmp_path: Path) -> None:
    evil, proof = Evil(tmp_path / "ran"), tmp_path / "ran"
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "ant_dir-0-expert.pkl").write_bytes(pickle.dumps([{"observations": evil}]))
    write_mt160(tmp_path / "b", tasks.get("push"), (3, 3, 3))
    change("timesteps", lambda x: np.array([evil]))(tmp_path / "b" / "push-v2" / "0.npz")
    torch.save({"obs": evil}, tmp_path / "c.pt")
    for name, path, culprit in (
        ("prompt-dt", "a", "posix.system"),
        ("mt160", "b", "0.npz"),
        ("tdmpc2", "c.pt", "posix.system"),
    ):
        with pytest.raises(DatasetError, match=culprit):
            import_datasets(name, tmp_path / path, tmp_path / "root")
        assert not proof.exists()
    pickle.loads((tmp_path / "a" / "ant_dir-0-expert.pkl").read_bytes())
    assert proof.exists()  # it would have


def test_a_dtype_with_false_flags_is_not_built(tmp_path: Path) -> None:
    """numpy takes a dtype's flags from the pickle: floats that claim to be references would be followed as pointers."""
    task, file = tasks.get("ant-dir-0"), tmp_path / "ant_dir-0-expert.pkl"
    written = write_prompt_dt(file, task, (3, 4, 5), protocol=2)
    end_of_state = b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"  # alignment -1, flags -1, 0 for the metadata
    assert end_of_state in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(end_of_state, b"J\xff\xff\xff\xffJ\x3f\x00\x00\x00K\x00t"))
    (summary,) = import_datasets("prompt-dt", tmp_path, tmp_path / "root")
    assert_holds(summary.path, written)
