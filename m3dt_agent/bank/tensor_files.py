"""Safetensors files, and the records of their size and sha256. A file is verified before a tensor of it is used.

    safetensors file   | 8 bytes: n | n bytes: JSON header, padded with spaces to 8 | data, tensor after tensor |

Reading copies tensors into memory: safetensors maps the file instead, so that a change of the file would change weights that
are already loaded. Writing does not use `safetensors.torch.save_file`: here the file is hashed while it is written, needs no
second copy in memory, and a full disk is an `OSError` with an errno.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import BankError, ConfigError, PathError
from ..system.disk import open_regular, path_errors
from ..system.documents import MAX_BYTES, parsed_json
from ..system.machine import usable_cores
from ..system.platforms import memory_bytes

_DTYPES = {torch.float64: "F64", torch.int64: "I64", torch.float32: "F32", torch.bfloat16: "BF16"}
_DTYPES |= {torch.bool: "BOOL", torch.uint8: "U8"}
_MORE_DTYPES = {"F16": torch.float16, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8}
_READABLE = {name: dtype for dtype, name in _DTYPES.items()} | _MORE_DTYPES
Check = Literal["contents", "sizes"]
"""How files are checked: by their sha256, or only that they exist with the recorded size."""
_BLOCK = 1 << 20
_MAX_THREADS = 8
_SHA256 = re.compile("[0-9a-f]{64}")
_MAX_FILE_BYTES = 1 << 40
"""A terabyte: the largest file of the paper's bank has 0.03 GB, and with 48 experts all of them have 0.7 GB."""
_MAX_DIMENSIONS = 8
MAX_HEADER_BYTES = MAX_BYTES
"""The longest header that is read: some 40,000 tensors. The prompts of 160 tasks have 1,280."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What a manifest records of one file. sha256: as 64 hexadecimal digits.

    Raises:
        ConfigError: another text, or a size that no file has.
    """

    sha256: str
    bytes: int

    def __post_init__(self) -> None:
        if _SHA256.fullmatch(self.sha256) is None:
            raise ConfigError(f"sha256 must be 64 hexadecimal digits; got {self.sha256!r:.100}")
        if not 0 <= self.bytes <= _MAX_FILE_BYTES:
            raise ConfigError(f"bytes must be in 0 … {_MAX_FILE_BYTES:,}; got {self.bytes!r:.100}")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> FileRecord:
    """Writes a safetensors file and flushes it to disk. A kill can leave half of it, so nothing may read `path` yet.

    Raises:
        DiskSpaceError: no room; nothing is left at `path`. PathError: nothing can be written there.
    """
    digest, size = hashlib.sha256(), 0
    with path_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with path.open("xb") as file:  # x: never through a link that lies there
            try:
                for part in _serialized(_ordered(tensors)):
                    file.write(part)
                    digest.update(part)
                    size += len(part)
                file.flush()
                os.fsync(file.fileno())
            except BaseException:
                path.unlink(missing_ok=True)
                raise
    return FileRecord(digest.hexdigest(), size)


def record_of(tensors: Mapping[str, Tensor]) -> FileRecord:
    """The record of the file that `write_tensors` makes of these tensors."""
    digest, size = hashlib.sha256(), 0
    for part in _serialized(_ordered(tensors)):
        digest.update(part)
        size += len(part)
    return FileRecord(digest.hexdigest(), size)


def _ordered(tensors: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    return sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))  # widest first: data stay aligned


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


def verify(path: Path, record: FileRecord, check: Check = "contents") -> None:
    """Checks that the file at `path` is the one that `record` describes.

    Raises:
        BankError: it is missing, truncated, altered, another bank's, or no regular file.
    """
    with _opened(path, record) as file:
        if check == "sizes":
            return
        digest = hashlib.sha256()
        while block := file.read(_BLOCK):
            digest.update(block)
        _compare(path, record, digest.hexdigest(), file.tell())


def read_content(path: Path, record: FileRecord) -> npt.NDArray[np.uint8]:
    """Reads a file into memory and verifies these bytes. Its size is compared before memory is taken.

    Raises:
        BankError: as `verify`, or this machine's memory is too small for the file.
    """
    with _opened(path, record) as file:
        require_memory(record.bytes, str(path))
        content = np.fromfile(file, np.uint8, record.bytes)
    _compare(path, record, hashlib.sha256(content.data).hexdigest(), len(content))
    return content


def require_memory(n_bytes: int, what: str) -> None:
    """Checks that the machine has `n_bytes` of memory, free or not: what a stranger's file asks for may be any number.

    Raises:
        BankError: it has not.
    """
    if n_bytes > memory_bytes():
        raise BankError(f"{what} needs {n_bytes / 1e9:,.1f} GB of memory; this machine has {memory_bytes() / 1e9:,.1f} GB")


def _opened(path: Path, record: FileRecord) -> BinaryIO:
    try:
        file = open_regular(path)
    except PathError as error:
        missing = isinstance(error.__cause__, (FileNotFoundError, NotADirectoryError))
        raise BankError(f"{path} is missing" if missing else str(error)) from error
    try:
        _compare_size(path, record, os.fstat(file.fileno()).st_size)
    except BaseException:
        file.close()
        raise
    return file


def read_tensors(path: Path, record: FileRecord) -> dict[str, Tensor]:
    """Reads and verifies a safetensors file; its tensors share one block of memory, without a second copy.

    Raises:
        BankError: as `verify`, or it is not a safetensors file.
    """
    return _parsed(read_content(path, record), path)


def received_tensors(content: npt.NDArray[np.uint8], record: FileRecord, target: Path) -> dict[str, Tensor]:
    """Verifies the content of a file that another process sent, and returns its tensors. Errors name `target`, its destination.

    Raises:
        BankError: as `read_tensors`.
    """
    _compare(target, record, hashlib.sha256(content.data).hexdigest(), len(content))
    return _parsed(np.array(content), target)  # a copy: what comes from Ray's object store is read-only


def _parsed(content: npt.NDArray[np.uint8], path: Path) -> dict[str, Tensor]:
    try:
        return _tensors_in(content)
    except (BankError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BankError(f"{path} is not a safetensors file: {error!s:.200}") from error


def _tensors_in(content: npt.NDArray[np.uint8]) -> dict[str, Tensor]:
    """Views of the tensors in a safetensors file's bytes.

    Raises:
        BankError, ValueError, KeyError, TypeError, AttributeError: other bytes.
    """
    length = int.from_bytes(content[:8].tobytes(), "little")
    if len(content) < 8 + length or length > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {length} bytes in a file of {len(content)}; at most {MAX_HEADER_BYTES:,} are read")
    header = parsed_json(content[8 : 8 + length].tobytes(), BankError, name="its header")
    header.pop("__metadata__", None)
    data, found, end = torch.from_numpy(content)[8 + length :], {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape, (begin, stop) = _READABLE[entry["dtype"]], entry["shape"], entry["data_offsets"]
        if any(type(n) is not int or n < 0 for n in (*shape, begin, stop)) or len(shape) > _MAX_DIMENSIONS:
            raise ValueError(f"{name!r:.80} has shape {shape!r:.80} and lies at {begin} … {stop}")
        if begin != end or stop - begin != math.prod(shape) * dtype.itemsize or stop > len(data):
            where = f"{begin} … {stop} of {len(data)} bytes, after {end} of others"
            raise ValueError(f"{name!r:.80} of shape {shape!r:.80} lies at {where}")
        part = data[begin:stop]
        aligned = part if (8 + length + begin) % dtype.itemsize == 0 else part.clone()
        found[name], end = aligned.view(dtype).view(shape), stop
    if end != len(data):
        raise ValueError(f"{len(data)} bytes of data, {end} of them in tensors")
    return found


def for_each_file(action: Callable[[str], object], names: Iterable[str]) -> None:
    """Calls `action` with every name, on up to one thread per core; reading and hashing do not hold the interpreter lock.

    If calls fail, the first error in the order of `names` is raised, and calls that have not begun are skipped.
    """
    with ThreadPoolExecutor(min(usable_cores(), _MAX_THREADS)) as threads:
        for _ in threads.map(action, names):
            pass


def _compare(path: Path, record: FileRecord, sha256: str, size: int) -> None:
    _compare_size(path, record, size)
    if sha256 != record.sha256:
        raise BankError(f"{path} is damaged or foreign: sha256 {sha256[:12]}…, {record.sha256[:12]}… expected")


def _compare_size(path: Path, record: FileRecord, size: int) -> None:
    if size != record.bytes:
        raise BankError(f"{path} is damaged or foreign: {size} bytes, {record.bytes} expected")
