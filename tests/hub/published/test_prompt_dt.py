"""Prompt-DT: what is imported, and problems that are named by file, trajectory and step."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published_writers import (
    assert_holds,
    write_prompt_dt,
)

from m3dt_agent import tasks
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import DatasetError
from m3dt_agent.hub.convert_data import import_datasets


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_prompt_dt(tmp_path: Path, protocol: int) -> None:
    ant, cheetah = tasks.get("ant-dir-12"), tasks.get("cheetah-vel-3")
    folder = tmp_path / "in"
    medium = write_prompt_dt(folder / "ant_dir" / "ant_dir-12-medium.pkl", ant, (200, 60, 200), 10, protocol)
    expert = write_prompt_dt(folder / "ant_dir" / "ant_dir-12-expert.pkl", ant, (200, 200), 20, protocol)
    prompts = write_prompt_dt(folder / "ant_dir" / "ant_dir-12-prompt-expert.pkl", ant, (200, 200, 200), 30, protocol)
    plain = write_prompt_dt(folder / "cheetah_vel" / "cheetah_vel-3-expert.pkl", cheetah, (200, 200, 200), 40, protocol)
    first, second = import_datasets("prompt-dt", folder, tmp_path / "root")
    read = assert_holds(first.path, [*expert, *medium, *prompts])
    assert [bool(episode.terminations[-1]) for episode in read] == [False, False, False, True, False, False, False, False]
    assert_holds(second.path, plain)
    data = TaskDatasets.open(tmp_path / "root", [ant, cheetah])
    by_return = sorted((5, 6, 7), key=lambda e: -read[e].episode_return)
    assert data.prompt_episodes(0) == by_return[:2]
    assert data.train_episodes(0) == [0, 1, 2, 3, 4]  # the third prompt is not trained on either
    assert data.packed[1].prompt_episodes is None


PICKLE_PROBLEMS: dict[str, tuple[Callable[[list[dict[str, Any]]], Any], str]] = {
    "NaN": (lambda x: x[1]["rewards"].__setitem__(3, np.nan), r"trajectory 1, step 3: rewards holds NaN"),
    "wide": (lambda x: x[1].update(actions=np.zeros((9, 7))), r"trajectory 1: actions is \(9, 7\); it must be \(9, 6\)"),
    "no final observation": (lambda x: x[1].pop("next_observations"), r"trajectory 1: next_observations missing"),
    "unlike": (
        lambda x: x[1].update(next_observations=np.zeros((8, 20))),
        r"trajectory 1: observations is \(9, 20\), next_obs",
    ),
    "too long": (
        lambda x: x.append({key: np.zeros((201, values.shape[1])) for key, values in x[0].items() if values.ndim}),
        r"trajectory 3: it has 201 steps; the task ends after 200",
    ),
    "done before the end": (lambda x: x[1]["terminals"].__setitem__(2, True), r"trajectory 1, step 2: it is done here"),
    "objects": (lambda x: x[1].update(infos=np.array([{}, None])), r"\.pkl cannot be read: an array of dtype 'O8'"),
    "structures": (lambda x: x[1].update(infos=np.zeros(2, [("a", "f4")])), r"\.pkl cannot be read: an array of dtype 'V4'"),
    "a class": (lambda x: x[1].update(when=Path()), r"\.pkl cannot be read: it names pathlib\.\w*Path"),
    "not a list": (lambda x: {"paths": x}, r"\.pkl holds no list of dictionaries, but dict"),
    "not dictionaries": (lambda x: [x], r"\.pkl holds no list of dictionaries"),
}


@pytest.mark.parametrize("name", PICKLE_PROBLEMS)
def test_what_is_wrong_with_a_pickle_is_named(tmp_path: Path, name: str) -> None:
    edit, message = PICKLE_PROBLEMS[name]
    file = tmp_path / "in" / "cheetah_vel-3-expert.pkl"
    write_prompt_dt(file, tasks.get("cheetah-vel-3"), (4, 9, 5))
    trajectories = pickle.loads(file.read_bytes())
    edited = edit(trajectories)
    file.write_bytes(pickle.dumps(edited if isinstance(edited, (dict, list)) and name.startswith("not") else trajectories))
    with pytest.raises(DatasetError, match=message):
        import_datasets("prompt-dt", tmp_path / "in", tmp_path / "root")
    assert not list(tmp_path.glob("root/*"))


def test_a_cut_pickle_and_prompts_alone(tmp_path: Path) -> None:
    file = tmp_path / "cheetah_vel-3-prompt-expert.pkl"
    write_prompt_dt(file, tasks.get("cheetah-vel-3"), (4, 9, 5))
    with pytest.raises(DatasetError, match="prompts but no trajectories"):
        import_datasets("prompt-dt", tmp_path, tmp_path / "root")
    (tmp_path / "cheetah_vel-3-expert.pkl").write_bytes(file.read_bytes()[:-50])
    with pytest.raises(DatasetError, match=r"cheetah_vel-3-expert\.pkl cannot be read: pickle data was truncated"):
        import_datasets("prompt-dt", tmp_path, tmp_path / "root")
