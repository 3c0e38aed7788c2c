"""What a published file announces does not decide how much memory is taken, and nobody is told to load it unsafely."""

from __future__ import annotations

import io
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_writers import save_tensordict, tdmpc2_tensors, trajectory, write_mt160, write_prompt_dt

from m3dt_agent import tasks
from m3dt_agent.data.episodes import read_episodes
from m3dt_agent.errors import BankError, DatasetError
from m3dt_agent.hub.convert_data import import_datasets
from m3dt_agent.hub.published.weight_files import read_published

UNSAFE = re.compile(r"weights_only|allow_pickle|torch\.load|trust", re.IGNORECASE)


def npy(shape: tuple[int, ...], content: bytes, descr: str = "<f8") -> bytes:
    """An array's file that promises `shape` whatever it holds."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
    return header.getvalue() + content


def archive(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)


def huge_shape(path: Path) -> None:
    archive(path, {"observations.npy": npy((6_000_000_000,), b"x" * 80)})


def negative_shape(path: Path) -> None:
    archive(path, {"observations.npy": npy((-1, -10), b"x" * 80)})


def objects(path: Path) -> None:
    np.savez(path.open("wb"), observations=np.array([{}, None]))


def hidden_bomb(path: Path) -> None:
    """The directory says 88 bytes; 50 MB are deflated."""
    archive(path, {"observations.npy": npy((50_000_000,), b"", "|u1") + bytes(50_000_000)}, zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    size = struct.pack("<I", 50_000_000 + 128)
    assert content.count(size) == 2
    path.write_bytes(content.replace(size, struct.pack("<I", 88)))


def long_directory(path: Path) -> None:
    """The end of the archive says that its directory has 3 GB, and the file has them: zeros that take no place."""
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 3_000_000_000, 0, 0)
    with path.open("wb") as file:
        file.truncate(3_000_000_000)
        file.seek(0, os.SEEK_END)
        file.write(end)


def lzma_member(path: Path) -> None:
    archive(path, {"observations.npy": npy((10,), b"x" * 80)}, zipfile.ZIP_LZMA)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def loop(path: Path) -> None:
    path.symlink_to(path)


NPZ: dict[str, tuple[Callable[[Path], None], str]] = {
    "a shape of 48 GB": (huge_shape, r"observations promises \(6000000000,\) numbers in"),
    "a negative shape": (negative_shape, r"observations promises \(-1, -10\) numbers in"),
    "objects": (objects, "observations is object, not an array of numbers"),
    "more than the directory says": (hidden_bomb, r"(observations promises|Bad CRC-32)"),
    "a directory of 3 GB": (long_directory, "its directory has 3,000,000,000 bytes"),
    "another compression": (lzma_member, r"observations\.npy is encrypted, or compressed in a way that is not read"),
    "a pipe": (pipe, "it is a pipe, a device or a socket"),
}


@pytest.mark.parametrize(("make", "message"), NPZ.values(), ids=NPZ)
def test_an_npz_that_promises_more_than_it_has(make: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    write_mt160(tmp_path / "in", tasks.get("walker-run"), (4, 9, 5))
    file = tmp_path / "in" / "walker-run" / "1.npz"
    file.unlink()
    make(file)
    with pytest.raises(DatasetError, match=rf"1\.npz cannot be read: .*{message}") as refused:
        import_datasets("mt160", tmp_path / "in", tmp_path / "root")
    assert not UNSAFE.search(str(refused.value))


def announced(opcode: bytes, size: bytes) -> bytes:
    """A pickle of a few bytes whose one value has `size` bytes, as it says."""
    return b"\x80\x05(" + opcode + size + b"abcl."


PICKLES = {
    "bytes of 48 GB": announced(pickle.BINBYTES8, struct.pack("<Q", 48_000_000_000)),
    "an array of bytes of 48 GB": announced(pickle.BYTEARRAY8, struct.pack("<Q", 48_000_000_000)),
    "text of 48 GB": announced(pickle.BINUNICODE8, struct.pack("<Q", 48_000_000_000)),
    "an integer of 2 GB": announced(pickle.LONG4, struct.pack("<i", 2_000_000_000)),
    "a frame of 48 GB": b"\x80\x04\x95" + struct.pack("<Q", 48_000_000_000) + b"].",
}


@pytest.mark.parametrize("content", PICKLES.values(), ids=PICKLES)
def test_a_pickle_that_announces_more_than_it_has(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "ant_dir-0-expert.pkl").write_bytes(content)
    with pytest.raises(DatasetError, match=r"cannot be read: pickle (data was truncated|exhausted)"):
        import_datasets("prompt-dt", tmp_path, tmp_path / "root")


_LIMITED = """
import resource, sys
from pathlib import Path
from m3dt_agent import tasks
from m3dt_agent.errors import DatasetError
from m3dt_agent.hub.convert_data import import_datasets
import h5py, minari
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000,) * 2)
try:
    import_datasets("prompt-dt", sys.argv[1], sys.argv[2])
except DatasetError as error:
    print(error)
"""


def test_a_memo_of_billions_takes_no_memory(tmp_path: Path) -> None:
    """The unpickler in C makes a table of as many entries as the largest number in the pickle."""
    file = tmp_path / "ant_dir-0-expert.pkl"
    file.write_bytes(b"\x80\x02]" + pickle.LONG_BINPUT + struct.pack("<I", 2_000_000_000) + b"K\x01a.")
    command = [sys.executable, "-c", _LIMITED, str(tmp_path), str(tmp_path / "root")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "holds no list of dictionaries" in done.stdout, done.stderr


def test_a_pickle_cannot_change_functions_of_ours(tmp_path: Path) -> None:
    """BUILD sets attributes of what lies on the stack, which may be one of the admitted functions."""
    content = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nN}U\x0c__defaults__(ts\x86b."
    (tmp_path / "ant_dir-0-expert.pkl").write_bytes(content)
    with pytest.raises(DatasetError, match="cannot be read: it sets attributes of a function"):
        import_datasets("prompt-dt", tmp_path, tmp_path / "root")


@pytest.mark.parametrize(
    "make", [lambda array: array.tolist(), list, lambda array: tuple(map(list, array))], ids=["numbers", "rows", "tuple"]
)
def test_prompt_dt_files_that_hold_lists(make: Callable[[np.ndarray], Any], tmp_path: Path) -> None:
    task, file = tasks.get("ant-dir-0"), tmp_path / "in" / "ant_dir-0-expert.pkl"
    write_prompt_dt(file, task, (4, 9, 5))
    before = pickle.loads(file.read_bytes())
    (whole,) = import_datasets("prompt-dt", tmp_path / "in", tmp_path / "arrays")
    lists = [{key: make(value) if np.ndim(value) else value for key, value in entry.items()} for entry in before]
    file.write_bytes(pickle.dumps(lists))
    (made,) = import_datasets("prompt-dt", tmp_path / "in", tmp_path / "lists")
    for one, other in zip(read_episodes(whole.path), read_episodes(made.path), strict=True):
        assert one.observations.tobytes() == other.observations.tobytes()
        assert one.rewards.tobytes() == other.rewards.tobytes()


LISTS: dict[str, Any] = {
    "ragged": [[1.0], [1.0, 2.0]],
    "text": ["a"],
    "deep": [[[[1.0]]]],
    "a dictionary": {"a": 1},
    "none": None,
}


@pytest.mark.parametrize("value", LISTS.values(), ids=LISTS)
def test_a_list_that_makes_no_array_is_named(value: Any, tmp_path: Path) -> None:
    task, file = tasks.get("ant-dir-0"), tmp_path / "in" / "ant_dir-0-expert.pkl"
    write_prompt_dt(file, task, (4, 9, 5))
    trajectories = pickle.loads(file.read_bytes())
    trajectories[1]["actions"] = value
    file.write_bytes(pickle.dumps(trajectories))
    with pytest.raises(DatasetError, match=r"trajectory 1: actions is a (list|dict|NoneType) that is no array"):
        import_datasets("prompt-dt", tmp_path / "in", tmp_path / "root")


def compressed_zip(path: Path) -> None:
    """What torch.save wrote, with its members deflated: 100 MB of zeros in 100 kB."""
    with zipfile.ZipFile(path) as old:
        members = {info.filename: old.read(info) for info in old.infolist()}
    members["archive/data.pkl"] = bytes(100_000_000)
    archive(path, members, zipfile.ZIP_DEFLATED)


@pytest.mark.parametrize("damage", [compressed_zip, loop, pipe], ids=["deflated", "a loop", "a pipe"])
def test_files_of_torch_that_are_something_else(damage: Callable[[Path], None], tmp_path: Path) -> None:
    chunk, weights = tmp_path / "chunk.pt", tmp_path / "weights" / "prompt_model_x_iter_1_seed0"
    save_tensordict(chunk, tdmpc2_tensors([(7, trajectory(tasks.get("pendulum-swingup"), 5, i)) for i in range(3)]))
    weights.parent.mkdir()
    torch.save({"a": torch.zeros(3)}, weights)
    for path in (chunk, weights):
        if damage is not compressed_zip:
            path.unlink()
        damage(path)
    message = (
        "is compressed, and torch compresses nothing" if damage is compressed_zip else "cannot be (used|read)|does not exist"
    )
    with pytest.raises((DatasetError, OSError), match=message):
        import_datasets("tdmpc2", chunk, tmp_path / "root")
    with pytest.raises(BankError):
        read_published(weights.parent)


class Foreign:
    """Something that only an unsafe load would make."""


@pytest.mark.parametrize(
    "content",
    [{"a": Foreign()}, {"a": np.float64(1)}, [Foreign], 3, {"a": {"b": b"x" * 10}}],
    ids=["object", "numpy", "class", "number", "bytes"],
)
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.filterwarnings("error")  # torch advises in warnings, too
def test_no_message_advises_to_load_unsafely(content: Any, zipped: bool, tmp_path: Path) -> None:
    weights = tmp_path / "prompt_model_x_iter_1_seed0"
    torch.save(content, weights, _use_new_zipfile_serialization=zipped)
    if content == 3 and zipped:  # an operation that torch's reader does not know
        with zipfile.ZipFile(weights) as old:
            members = {info.filename: old.read(info) for info in old.infolist()}
        archive(weights, members | {next(name for name in members if name.endswith("data.pkl")): b"\x80\x02)\x97."})
    with pytest.raises(BankError) as refused:
        read_published(tmp_path)
    assert not UNSAFE.search(str(refused.value))
    weights.rename(tmp_path / "chunk.pt")
    with pytest.raises(DatasetError) as refused_too:
        import_datasets("tdmpc2", tmp_path / "chunk.pt", tmp_path / "root")
    assert not UNSAFE.search(str(refused_too.value))


def test_rewards_that_no_float32_sum_holds_are_refused(tmp_path: Path) -> None:
    task, file = tasks.get("ant-dir-0"), tmp_path / "in" / "ant_dir-0-expert.pkl"
    write_prompt_dt(file, task, (4, 9, 5))
    trajectories = pickle.loads(file.read_bytes())
    trajectories[1]["rewards"][3] = 1e38
    file.write_bytes(pickle.dumps(trajectories))
    with pytest.raises(DatasetError, match=r"trajectory 1, step 3: rewards holds 1e\+38; the largest that is taken is 1e\+10"):
        import_datasets("prompt-dt", tmp_path / "in", tmp_path / "root")
