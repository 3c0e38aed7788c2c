"""What a bank is made of: a manifest, and files that are whole and known to it by their sha256, or are not used.

Writing: temporary name, flush to disk, then rename; never in place (safetensors maps files: an in-place write would change
weights already loaded). Reading: the bytes are hashed before a tensor of them exists, and tensors get memory of their own.

    safetensors file   | 8 bytes: n | n bytes: JSON header, padded with spaces to 8 | data, tensor after tensor |

It is written here rather than by `safetensors.torch.save_file` so that it is hashed on the way, needs no second copy in memory,
and a full disk is an `OSError` with an errno.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .. import tasks as task_table
from .storage import STORAGES, Storage
from ..config import STAGES, DataConfig, ModelConfig, from_dict
from ..disk import disk_space_errors, flush
from ..errors import BankError, ConfigError, M3DTError

FORMAT_VERSIONS: dict[Storage, int] = {"float32": 1, "bfloat16": 2}
"""The version of a bank's format, by how it stores its weights. The first versions of this package read 1 alone and refuse 2 by
its number; a bank that needs nothing newer stays 1, so that they read it, and it has the hash that it always had."""
_FILE_NAME = re.compile(r"(backbone|router|statistics|prompts|experts/\d{3})\.safetensors")
_DTYPES = {torch.float64: "F64", torch.int64: "I64", torch.float32: "F32", torch.bfloat16: "BF16"}
_DTYPES |= {torch.bool: "BOOL", torch.uint8: "U8"}
_MORE_DTYPES = {"F16": torch.float16, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8}
_READABLE = {name: dtype for dtype, name in _DTYPES.items()} | _MORE_DTYPES
_BLOCK = 1 << 20
_MAX_THREADS = 8


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What a manifest knows of one file."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of `bank.json`.

    groups: task → expert, once tasks are grouped; grouping: the settings that made them (None: the user's own groups). stages:
    stage → {"config", "threads", "data"} it was trained with. files: name → record. storage: of the weights in them.
    """

    model: ModelConfig
    data: DataConfig
    tasks: tuple[str, ...]
    groups: dict[str, int] | None = None
    grouping: dict[str, Any] | None = None
    stages: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    files: dict[str, FileRecord] = dataclasses.field(default_factory=dict)
    storage: Storage = "float32"

    def to_dict(self) -> dict[str, Any]:
        """The fields as they are stored; `storage` only where it is not float32, since the first banks do not have it."""
        fields = {**dataclasses.asdict(self), "model": self.model.to_dict()}
        return {name: value for name, value in fields.items() if (name, value) != ("storage", "float32")}

    def to_json(self) -> str:
        """`bank.json`'s text."""
        version = FORMAT_VERSIONS[self.storage]
        return json.dumps({"format": "m3dt-bank", "format_version": version, **self.to_dict()}, indent=1)

    @classmethod
    def from_json(cls, text: str, where: Path) -> Manifest:
        """The manifest in `text`, validated; `where` is named in errors.

        Raises:
            BankError: not a bank's manifest, a newer format, or content that cannot be.
        """
        try:
            values = json.loads(text)
            if values.pop("format") != "m3dt-bank":
                raise ConfigError("it is not an m3dt-bank")
            if (version := values.pop("format_version")) not in FORMAT_VERSIONS.values():
                known = " and ".join(map(str, FORMAT_VERSIONS.values()))
                raise ConfigError(f"format version {version!r}; this version of m3dt-agent reads {known}")
            manifest = from_dict(cls, values)
            if version != FORMAT_VERSIONS.get(manifest.storage):
                valid = ", ".join(f"{number} goes with {storage}" for storage, number in FORMAT_VERSIONS.items())
                raise ConfigError(f"format version {version} with weights stored as {manifest.storage!r}; {valid}")
            return dataclasses.replace(
                manifest,
                model=from_dict(ModelConfig, values["model"]),
                data=from_dict(DataConfig, values["data"]),
                tasks=tuple(task_table.get(name).name for name in values["tasks"]),
                files={name: FileRecord(**record) for name, record in values["files"].items()},
            ).checked()
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError, M3DTError) as error:
            raise BankError(f"{where} is damaged or foreign: {error}") from error

    @property
    def finished_experts(self) -> tuple[int, ...]:
        """The experts that have a file, ascending."""
        return tuple(sorted(expert_index(name) for name in self.files if name.startswith("experts/")))

    def with_experts(self, experts: Iterable[int]) -> Manifest:
        """What is left of the bank if only these of its experts are at hand: no router either, which weighs all of them.

        Raises:
            ConfigError: an expert that the bank does not have.
        """
        chosen = set(experts)
        if unknown := chosen - set(self.finished_experts):
            raise ConfigError(f"there are no experts {sorted(unknown)} in the bank; it has {list(self.finished_experts)}")
        left = {*map(expert_file, chosen), *(name for name in self.files if not name.startswith("experts/"))}
        if len(chosen) < self.model.n_experts:
            left.discard("router.safetensors")
        stages = {stage: record for stage, record in self.stages.items() if stage != "router" or "router.safetensors" in left}
        return dataclasses.replace(self, files={n: r for n, r in self.files.items() if n in left}, stages=stages)

    def checked(self) -> Manifest:
        """This manifest, if its parts fit together.

        Raises:
            ConfigError: they do not.
        """
        for name in self.files:
            if not is_bank_file(name):
                raise ConfigError(f"it lists {name!r}, which no bank has")
            if name.startswith("experts/") and expert_index(name) >= self.model.n_experts:
                raise ConfigError(f"it lists {name!r} but has n_experts={self.model.n_experts}")
        if missing := [f"{name}.safetensors" for name in ("statistics", "prompts") if f"{name}.safetensors" not in self.files]:
            raise ConfigError(f"it does not list {', '.join(missing)}")
        if unknown := set(self.stages) - set(STAGES):
            raise ConfigError(f"it has stages {sorted(unknown)}; there are {', '.join(STAGES)}")
        if self.storage not in STORAGES:
            raise ConfigError(f"weights are stored as {' or '.join(STORAGES)}; got {self.storage!r}")
        if self.groups is not None:
            trained = {expert_index(name) for name in self.files if name.startswith("experts/")}
            check_groups(self.groups, self.tasks, self.model.n_experts, trained)
        return self


def check_groups(groups: Mapping[str, int], tasks: Sequence[str], n_experts: int, trained: Set[int]) -> None:
    """Checks that `groups` gives each of `tasks` one expert, and each of `n_experts` that is not `trained` at least one task.

    Raises:
        ConfigError: it does not; the message names the tasks or experts.
    """
    if set(groups) != set(tasks):
        raise ConfigError(f"groups must cover the bank's tasks; they differ in {sorted(set(groups) ^ set(tasks))}")
    if wrong := {task: e for task, e in groups.items() if type(e) is not int or not 0 <= e < n_experts}:
        raise ConfigError(f"groups must name experts 0 … {n_experts - 1}; got {wrong}")
    if empty := sorted(set(range(n_experts)) - set(groups.values()) - trained):
        raise ConfigError(f"no group may be empty; experts {empty} have no task to be trained on")


def is_bank_file(name: str) -> bool:
    """Whether a bank may have a file of this name besides `bank.json`."""
    return _FILE_NAME.fullmatch(name) is not None


def expert_file(expert: int) -> str:
    """The name of an expert's file in a bank."""
    return f"experts/{expert:03d}.safetensors"


def expert_index(name: str) -> int:
    return int(Path(name).stem)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> FileRecord:
    """Writes a safetensors file to `path` and flushes it to disk; not atomic, so `path` is a name that nobody reads yet.

    Raises:
        DiskSpaceError: no room; nothing is left at `path`.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))  # widest first: data stay aligned
    digest, size = hashlib.sha256(), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with disk_space_errors(path), path.open("wb") as file:
            for part in _serialized(ordered):
                file.write(part)
                digest.update(part)
                size += len(part)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return FileRecord(digest.hexdigest(), size)


def _serialized(tensors: list[tuple[str, Tensor]]) -> Iterator[bytes | memoryview]:
    header: dict[str, dict[str, Any]] = {}
    offset = 0
    for name, tensor in tensors:
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for _, tensor in tensors:
        yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def write_text(path: Path, text: str) -> None:
    """Writes a small text file whole: temporary name, flush, rename, flush of the folder.

    Raises:
        DiskSpaceError: no room; `path` is as before.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with disk_space_errors(path), temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush(path.parent)


def verify(path: Path, record: FileRecord) -> None:
    """Checks that the file at `path` is the one `record` describes, without loading it.

    Raises:
        BankError: missing, truncated, altered or another bank's.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
        size = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise BankError(f"{path} is missing") from None
    _compare(path, record, digest.hexdigest(), size)


def verify_size(path: Path, record: FileRecord) -> None:
    """Checks that there is a file at `path` as long as `record` says; its content is not looked at.

    Raises:
        BankError: missing or of another length.
    """
    if not path.is_file():
        raise BankError(f"{path} is missing")
    _compare_size(path, record, path.stat().st_size)


def read_content(path: Path, record: FileRecord) -> npt.NDArray[np.uint8]:
    """The file's bytes, verified: what is hashed is what is returned.

    Raises:
        BankError: as `verify`.
    """
    try:
        content = np.fromfile(path, np.uint8)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise BankError(f"{path} is missing") from None
    _compare(path, record, hashlib.sha256(content.data).hexdigest(), len(content))
    return content


def read_tensors(path: Path, record: FileRecord) -> dict[str, Tensor]:
    """The tensors of a safetensors file, verified, in memory that is theirs: one block for the file, no second copy.

    Raises:
        BankError: as `verify`, or not a safetensors file.
    """
    return _parsed(read_content(path, record), path)


def received_tensors(content: npt.NDArray[np.uint8], record: FileRecord, target: Path) -> dict[str, Tensor]:
    """The tensors of a file that another process sent, verified; `target`, where it is to go, is named in errors.

    Raises:
        BankError: as `read_tensors`.
    """
    _compare(target, record, hashlib.sha256(content.data).hexdigest(), len(content))
    return _parsed(np.array(content), target)  # what comes out of a shared object store cannot be written to


def _parsed(content: npt.NDArray[np.uint8], path: Path) -> dict[str, Tensor]:
    try:
        return _tensors_in(content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BankError(f"{path} is not a safetensors file: {error}") from error


def _tensors_in(content: npt.NDArray[np.uint8]) -> dict[str, Tensor]:
    """Views of the tensors in a safetensors file's bytes; any of five ordinary errors if they are not one."""
    length = int.from_bytes(content[:8].tobytes(), "little")
    if len(content) < 8 + length:
        raise ValueError(f"a header of {length} bytes in a file of {len(content)}")
    header = json.loads(content[8 : 8 + length].tobytes())
    header.pop("__metadata__", None)
    data, found, end = torch.from_numpy(content)[8 + length :], {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape, (begin, stop) = _READABLE[entry["dtype"]], entry["shape"], entry["data_offsets"]
        if any(type(n) is not int or n < 0 for n in (*shape, begin, stop)):
            raise ValueError(f"{name} has shape {shape} and lies at {begin} … {stop}")
        if begin != end or stop - begin != math.prod(shape) * dtype.itemsize or stop > len(data):
            raise ValueError(f"{name} of shape {shape} lies at {begin} … {stop} of {len(data)} bytes, after {end} of others")
        part = data[begin:stop]
        aligned = part if (8 + length + begin) % dtype.itemsize == 0 else part.clone()
        found[name], end = aligned.view(dtype).view(shape), stop
    if end != len(data):
        raise ValueError(f"{len(data)} bytes of data, {end} of them in tensors")
    return found


def for_each_file(action: Callable[[str], object], names: Iterable[str]) -> None:
    """Calls `action` with every name, on as many threads as there are cores: reading and hashing release the interpreter lock.

    The first error, in the order of `names`, is raised; what has not begun by then is left out.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(min(cores, _MAX_THREADS)) as threads:
        for _ in threads.map(action, names):
            pass


def _compare(path: Path, record: FileRecord, sha256: str, size: int) -> None:
    _compare_size(path, record, size)
    if sha256 != record.sha256:
        raise BankError(f"{path} is damaged or foreign: sha256 {sha256[:12]}…, {record.sha256[:12]}… expected")


def _compare_size(path: Path, record: FileRecord, size: int) -> None:
    if size != record.bytes:
        raise BankError(f"{path} is damaged or foreign: {size} bytes, {record.bytes} expected")
