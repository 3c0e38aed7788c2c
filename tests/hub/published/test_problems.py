"""Whatever is wrong with published data is an error that names file and step, leaves nothing behind and executes nothing."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_writers import (
    assert_holds,
    save_tensordict,
    tdmpc2_tensors,
    trajectory,
    write_mt160,
    write_prompt_dt,
)

from m3dt_agent import tasks
from m3dt_agent.errors import DatasetError
from m3dt_agent.hub.convert_data import import_datasets


def change(name: str, edit: Callable[[np.ndarray], Any]) -> Callable[[Path], None]:
    """Rewrites one array of an `.npz` file with what `edit` makes of it, in place or by returning another; None drops it."""

    def apply(file: Path) -> None:
        with np.load(file) as archive:
            arrays = dict(archive)
        edited = edit(arrays.pop(name))
        np.savez(file, **arrays, **({} if edited is None else {name: edited}))

    return apply


def put(step: int, column: int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def edit(values: np.ndarray) -> np.ndarray:
        values[(step, column) if values.ndim == 2 else step] = value
        return values

    return edit


NPZ_WIDTHS: dict[str, tuple[int, ...]] = {"observations": (39,), "actions": (8,), "rewards": (), "dones": (1,)}
NPZ_PROBLEMS: dict[str, tuple[Callable[[Path], None], str]] = {
    "NaN": (change("observations", put(3, 5, np.nan)), r"1\.npz, step 3: observations holds NaN"),
    "infinite action": (change("actions", put(4, 1, np.inf)), r"1\.npz, step 4: actions holds an infinity"),
    "beyond float32": (change("rewards", put(2, 0, 1e300)), r"1\.npz, step 2: rewards holds an infinity"),
    "another task's observations": (
        change("observations", put(2, 30, 0.5)),
        r"1\.npz, step 2: observations holds 0\.5 in column 30; the task's are 24 wide",
    ),
    "another task's actions": (change("actions", put(6, 7, -1)), r"1\.npz, step 6: actions holds -1\.0 in column 7"),
    "NaN in the padding": (change("actions", put(6, 7, np.nan)), r"1\.npz, step 6: actions holds nan in column 7"),
    "narrow observations": (change("observations", lambda x: x[:, :24]), r"1\.npz: observations is \(9, 24\); .* \(9, 39\)"),
    "wide actions": (change("actions", lambda x: np.c_[x, x]), r"1\.npz: actions is \(9, 16\); it must be \(9, 8\)"),
    "flat actions": (change("actions", lambda x: x[:, 0]), r"1\.npz: actions is \(9,\); it must be \(9, 8\)"),
    "scalar actions": (change("actions", lambda x: x[0, 0]), r"1\.npz: .*must be \(0, "),
    "one reward": (change("rewards", lambda x: x[0, 0]), r"1\.npz: rewards is a single number"),
    "no rewards": (change("rewards", lambda x: x[:0]), r"1\.npz: rewards is \(0,\); it must be \(9,\)"),
    "short rewards": (change("rewards", lambda x: x[:-2]), r"1\.npz: rewards is \(7,\); it must be \(9,\)"),
    "short dones": (change("dones", lambda x: x[:-1]), r"1\.npz: the flags of its end are \(8,\); they must be \(9,\)"),
    "done before the end": (change("dones", put(4, 0, 1.0)), r"1\.npz, step 4: it is done here, but goes on to step 8"),
    "no observations": (change("observations", lambda x: None), r"1\.npz: observations missing; it has actions, dones, rew"),
    "no dones": (change("dones", lambda x: None), r"1\.npz: terminals missing"),
    "text": (change("timesteps", lambda x: np.array(["a"])), r"1\.npz cannot be read: timesteps is <U1, not an array of numb"),
    "objects": (change("timesteps", lambda x: np.array([None])), r"1\.npz cannot be read: Object arrays cannot be loaded"),
    "cut short": (lambda file: file.write_bytes(file.read_bytes()[:900]), r"1\.npz cannot be read: "),
    "empty": (lambda file: file.write_bytes(b""), r"1\.npz cannot be read: "),
    "one array": (lambda file: np.save(file.open("wb"), np.zeros(3)), r"1\.npz cannot be read: it holds one array"),
    "a bomb": (change("timesteps", lambda x: np.zeros(10_000_000)), r"1\.npz cannot be read: it unpacks to 80 MB"),
    "too long": (
        lambda file: np.savez(file, **{k: np.zeros((501, *w)) for k, w in NPZ_WIDTHS.items()}),
        r"1\.npz: it has 501 steps; the task ends after 500",
    ),
    "a gap": (lambda file: file.unlink(), r"walker-run: episodes must be 0\.npz … 2\.npz; missing or unknown: 1\.npz, 3\.npz"),
    "another name": (lambda file: shutil.copy(file, file.with_name("best.npz")), r"missing or unknown: 4\.npz, best\.npz"),
    "flipped bits": (
        lambda file: file.write_bytes(file.read_bytes().replace(file.read_bytes()[500:520], b"\x01" * 20)),
        r"1\.npz cannot be read: Bad CRC-32",
    ),
}


@pytest.mark.parametrize("name", NPZ_PROBLEMS)
def test_what_is_wrong_with_an_npz_is_named_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    damage, message = NPZ_PROBLEMS[name]
    write_mt160(tmp_path / "in", tasks.get("walker-run"), (4, 9, 5, 6))
    damage(tmp_path / "in" / "walker-run" / "1.npz")
    with pytest.raises(DatasetError, match=message):
        import_datasets("mt160", tmp_path / "in", tmp_path / "root")
    assert not list(tmp_path.glob("root/*"))


def test_too_few_files_for_prompts(tmp_path: Path) -> None:
    write_mt160(tmp_path / "in", tasks.get("walker-run"), (4, 9))
    with pytest.raises(DatasetError, match=r"walker-run holds 2 episode\(s\); the last 2 are prompts"):
        import_datasets("mt160", tmp_path / "in", tmp_path / "root")


def expanded(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.zeros(1).expand(*shape)


TENSOR_PROBLEMS: dict[str, tuple[dict[str, Any], str]] = {
    "NaN in the middle": ({"reward": (1, 3, np.nan)}, r"chunk\.pt, episode 1, step 2: rewards holds NaN"),
    "no NaN first": ({"reward": (1, 0, 0.0)}, r"chunk\.pt, episode 1, row 0: action and reward must be NaN there"),
    "another task's": ({"obs": (1, 2, 20, 0.5)}, r"chunk\.pt, episode 1, step 2: obs holds 0\.5 in column 20"),
    "two tasks in one": ({"task": (1, 3, 4)}, r"chunk\.pt, episode 1, row 3: task 4 in an episode of task 7"),
    "unknown task": ({"task": (1, 0, 30)}, r"chunk\.pt, episode 1: task 30; valid: 0 … 29"),
    "narrow": ({"obs": torch.zeros(3, 6, 2)}, r"chunk\.pt, episode 0: obs is \(6, 2\); it must be 3 wide or wider"),
    "other rows": ({"action": torch.zeros(3, 5, 6)}, r"chunk\.pt: tensors must be \(episodes, rows, …\).*action \(3, 5, 6\)"),
    "other episodes": ({"reward": torch.zeros(2, 6)}, r"chunk\.pt: tensors must be .*reward \(2, 6\)"),
    "no episodes": (
        {"obs": torch.zeros(0, 6, 3), "action": torch.zeros(0, 6, 1), "reward": torch.zeros(0, 6), "task": torch.zeros(0, 6)},
        r"chunk\.pt: tensors must be",
    ),
    "task in floats": ({"task": torch.full((3, 6), 7.0)}, r"chunk\.pt: task must hold integers.*task is torch\.float32"),
    "complex": (
        {"reward": torch.zeros(3, 6, dtype=torch.complex64)},
        r"chunk\.pt: task must hold integers and the others real",
    ),
    "a bomb": (
        {"obs": expanded((3, 6, 1_000_000_000))},
        r"chunk\.pt: 'obs' is not a plain tensor whose numbers are all in the",
    ),
    "sparse": ({"reward": torch.zeros(3, 6).to_sparse()}, r"chunk\.pt: 'reward' is not a plain tensor"),
}


@pytest.mark.parametrize("name", TENSOR_PROBLEMS)
def test_what_is_wrong_with_a_tensordict_is_named(tmp_path: Path, name: str) -> None:
    changes, message = TENSOR_PROBLEMS[name]
    tensors = tdmpc2_tensors([(7, trajectory(tasks.get("pendulum-swingup"), 5, i)) for i in range(3)])
    for key, edit in changes.items():
        if isinstance(edit, tuple):
            tensors[key][edit[:-1]] = edit[-1]
        else:
            tensors[key] = edit
    save_tensordict(tmp_path / "in" / "chunk.pt", tensors)
    with pytest.raises(DatasetError, match=message):
        import_datasets("tdmpc2", tmp_path / "in", tmp_path / "root")
    assert not list(tmp_path.glob("root/*"))


def test_missing_tensors_and_damaged_files(tmp_path: Path, golden: Path) -> None:
    file = tmp_path / "chunk.pt"
    whole = (golden / "tdmpc2_tensordict_0.9.1.pt").read_bytes()
    for content in (b"", whole[:1000], whole[:-20], b"\x80\x02}q\x00."):
        file.write_bytes(content)
        with pytest.raises(DatasetError, match=r"chunk\.pt cannot be read: "):
            import_datasets("tdmpc2", file, tmp_path / "root")
    torch.save({"obs": torch.zeros(2)}, file)
    with pytest.raises(DatasetError, match=r"chunk\.pt holds a dict, not a TensorDict"):
        import_datasets("tdmpc2", file, tmp_path / "root")


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
