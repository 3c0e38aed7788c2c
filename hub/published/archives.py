"""Zip archives of strangers, `.npz` and torch's: opened so that nothing in them decides how much memory is taken.

An archive announces sizes in three places, and each is compared with the file's own first: its directory, the size of each
member, and in an `.npz` the shape in each member's header. What numpy and torch say about a file that they refuse is not passed
on, because they advise to load it unsafely.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from m3dt_agent.system.disk import open_regular

_LARGEST_READ = 16_000_000  # bytes; the directory of a file of torch's with 100,000 tensors has 10 MB
_LARGEST_PICKLE = 64_000_000  # bytes of the pickle in a file of torch's, which holds no numbers
_PLAIN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others may ask for gigabytes before the first byte
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_REFUSED_NAME = re.compile(r"(?:GLOBAL|whose module) (\S+)")  # how torch reports a name that it refuses
_ADVICE = re.compile(r"weights_only|allow_pickle|torch\.(save|load)|pickle_module|trust")


class _BoundedFile(io.FileIO):
    """A file that is read in pieces of bounded size: `zipfile` reads as much at once as an archive says."""

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self._size() - self.tell())
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted > _LARGEST_READ:
            raise zipfile.BadZipFile(f"its directory has {wanted:,} bytes; at most {_LARGEST_READ:,} are read")
        return super().read(wanted) or b""

    def _size(self) -> int:
        here = self.tell()
        end = self.seek(0, io.SEEK_END)
        self.seek(here)
        return end


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Opens the zip archive `path`.

    Raises:
        PathError: it is not a regular file, or cannot be read.
        ValueError, zipfile.BadZipFile: it is damaged, or stored in a way that is not read.
    """
    with open_regular(path):
        pass
    with _BoundedFile(path) as file, zipfile.ZipFile(file) as archive:
        if odd := [info for info in archive.infolist() if info.compress_type not in _PLAIN or info.flag_bits & 1]:
            raise ValueError(f"{odd[0].filename[:80]} is encrypted, or compressed in a way that is not read")
        yield archive


def read_npz(path: Path, limit: int) -> dict[str, NDArray[Any]]:
    """The arrays of the `.npz` file `path`, which may unpack to `limit` bytes.

    Raises:
        Exception: it is damaged, larger, or holds anything but arrays of numbers; the message says what.
    """
    with open_regular(path) as file:
        if file.read(6) == b"\x93NUMPY":
            raise ValueError("it holds one array, not an archive of named ones")
    with open_archive(path) as archive:
        if (n_bytes := sum(info.file_size for info in archive.infolist())) > limit:
            raise ValueError(f"it unpacks to {n_bytes / 1e6:,.0f} MB, which is too much for an episode")
        return {info.filename.removesuffix(".npy"): _read_npy(archive, info) for info in archive.infolist()}


def _read_npy(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[Any]:
    name = info.filename.removesuffix(".npy")[:80]
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        if version not in _HEADERS:
            raise ValueError(f"{name} is in version {version} of numpy's format; 1.0 and 2.0 are read")
        shape, _, dtype = _HEADERS[version](member)
    if dtype.kind not in "fiub":
        raise ValueError(f"{name} is {dtype}, not an array of numbers")
    if any(length < 0 for length in shape) or math.prod(shape) * dtype.itemsize > info.file_size:
        raise ValueError(f"{name} promises {shape} numbers in {info.file_size:,} bytes")
    with archive.open(info) as member:
        array: NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
        member.read(1)  # to the end, so that the checksum is compared
    return array


def check_torch_file(path: Path) -> bool:
    """Checks the directory of a file that `torch.save` wrote; gives whether it is an archive, as since torch 1.6.

    Raises:
        Exception: it is not a regular file, or an archive that torch.save did not write; the message says what.
    """
    with open_regular(path):
        pass
    if not zipfile.is_zipfile(path):
        return False
    size = path.stat().st_size
    with open_archive(path) as archive:
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > size:
                raise ValueError(f"{info.filename[:80]} is compressed, and torch compresses nothing")
            if info.filename.endswith(".pkl") and info.file_size > _LARGEST_PICKLE:
                raise ValueError(f"{info.filename[:80]} has {info.file_size:,} bytes; at most {_LARGEST_PICKLE:,} are read")
    return True


def load_torch_file(path: Path) -> Any:
    """What `torch.save` wrote to `path`, if it is made of tensors and Python's plain types; its tensors are mapped.

    Raises:
        Exception: it is not a regular file, or something else is in it. `why_refused` says what.
    """
    is_archive = check_torch_file(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's advice how to load it otherwise
        return torch.load(path, map_location="cpu", mmap=is_archive, weights_only=True)


def why_refused(error: Exception) -> str:
    """Why a file could not be loaded, in one line, without advice to load it in a way that executes it."""
    text = str(error)
    if named := _REFUSED_NAME.search(text):
        return f"it names {named[1]}, and nothing but numbers is read"
    if isinstance(error, MemoryError) or "not enough memory" in text or "can't allocate memory" in text:
        return "it asks for more memory than there is"
    first = (text.strip().splitlines() or [""])[0]
    if not first or _ADVICE.search(first):
        return f"it is damaged, or torch.save did not write it ({type(error).__name__})"
    return first
