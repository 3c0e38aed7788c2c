"""Files of packed steps, read at random places; any number of them with a bounded number of descriptors.

Windows are read with `pread` and not through a memory map, for two reasons. Pages read through a map count as memory of this
process as long as the map lives, and training reads everything. And a window that lies on two pages costs two cold reads
through a map but one from the file. Measured with windows of 3.5 kB from a 3 GB file: cold, `pread` makes at least 12,000 reads
a second, a map 7,000 to 8,000; warm, `pread` makes 330,000, a map 640,000, or 110,000 if it gives its pages back in time. The
map is there to look at whole episodes. It is advised MADV_RANDOM: with the default read-ahead a 12 GB file gave 120 cold reads
a second instead of 4,400.

At most half of the descriptors that the process may have (`ulimit -n`) are kept open, the latest; a file that was closed is
opened again when it is read. Nothing has to be counted while no file is closed, which is the case for 160 tasks and the usual
limit of 1,024.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import weakref
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DatasetError, PathError
from ..system.disk import open_regular, path_errors
from ..system.platforms import read_at

_limits: Any
try:
    import resource as _limits
except ImportError:  # Windows
    _limits = None

_FEWEST, _MOST, _UNKNOWN = 16, 4_096, 256  # files kept open: bounds, and how many where the limit is unknown


class _Descriptor:
    """A descriptor that is closed when nothing uses it any more: a read in another thread keeps it open until it ends."""

    def __init__(self, path: Path) -> None:
        with path_errors(path), open_regular(path) as file:
            self.number = os.dup(file.fileno())

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):  # it was never opened
            os.close(self.number)


class StepsFile:
    """A file of packed steps, each of `width` float32. Any thread or fork can read it.

    Raises:
        DatasetError: the file cannot be opened.
    """

    def __init__(self, path: Path, width: int) -> None:
        self.path, self.width, self._step_bytes = path, width, width * np.dtype(np.float32).itemsize
        self._descriptor: _Descriptor | None = None
        self._identity = _identity(self._open())

    def read(self, first: int, count: int) -> bytes:
        """The bytes of steps first … first + count - 1.

        Raises:
            DatasetError: the file has fewer steps, or was replaced since it was opened.
        """
        size = count * self._step_bytes
        descriptor = self._descriptor or self._reopen()
        content = read_at(descriptor.number, size, first * self._step_bytes)
        if len(content) != size:
            left = os.fstat(descriptor.number).st_size // self._step_bytes
            raise DatasetError(
                f"{self.path} was cut while in use: steps {first} … {first + count - 1} were asked for; {left} are left"
            )
        return content

    def map(self) -> NDArray[np.float32]:
        """All steps as a read-only, memory-mapped array (N, width), set up for reads at random places."""
        mapped = mmap.mmap((self._descriptor or self._reopen()).number, 0, access=mmap.ACCESS_READ)
        if hasattr(mmap, "MADV_RANDOM"):  # absent outside Linux and the BSDs
            mapped.madvise(mmap.MADV_RANDOM)
        return np.frombuffer(mapped, np.float32).reshape(-1, self.width)

    def close(self) -> None:
        """Gives the descriptor back; the next read opens the file again."""
        self._descriptor = None

    def _open(self) -> _Descriptor:
        close_oldest(keep=_most_open() - 1)
        try:
            opened = _Descriptor(self.path)
        except PathError as error:
            if not (too_many_open(error) and _kept):
                raise DatasetError(str(error)) from error
            close_oldest(keep=0)  # others have taken the rest
            opened = _Descriptor(self.path)
        self._descriptor = opened
        _kept.append(weakref.ref(self, _forget))
        return opened

    def _reopen(self) -> _Descriptor:
        opened = self._open()
        if _identity(opened) != self._identity:
            self.close()
            raise DatasetError(f"{self.path} was replaced or changed while in use; open the datasets again")
        return opened


def too_many_open(error: OSError) -> bool:
    """Whether a file could not be opened because this process, or the machine, has too many open."""
    causes = (error, error.__cause__)
    return any(getattr(cause, "errno", None) in (errno.EMFILE, errno.ENFILE) for cause in causes)


def _identity(descriptor: _Descriptor) -> tuple[int, ...]:
    found = os.fstat(descriptor.number)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


_kept: deque[weakref.ref[StepsFile]] = deque()
"""The files with a descriptor, the one opened first at the left."""


def _forget(gone: weakref.ref[StepsFile]) -> None:
    with contextlib.suppress(ValueError, IndexError):  # it was closed already, or another thread changes the queue
        _kept.remove(gone)


def close_oldest(keep: int) -> None:
    """Closes files, the one opened first before others, until at most `keep` are open."""
    while len(_kept) > keep:
        with contextlib.suppress(IndexError):  # another thread took the last
            if (file := _kept.popleft()()) is not None:
                file.close()


def _most_open() -> int:
    """How many files may be open: half of what the process may have, the rest is for everything else."""
    if _limits is None:
        return _UNKNOWN
    limit = _limits.getrlimit(_limits.RLIMIT_NOFILE)[0]
    return _MOST if limit == _limits.RLIM_INFINITY else min(max(limit // 2, _FEWEST), _MOST)
