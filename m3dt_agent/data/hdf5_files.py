"""Opens the HDF5 file of a dataset, and says which of its arrays may be read: nothing in a file is followed or believed.

    <dataset>/data/main_data.hdf5       episode_<i>/observations (L+1, obs_dim), actions (L, act_dim), rewards, terminations,
                                        truncations (L,), infos/success (L+1,) or (L,),
                                        infos/demonstrator_action (L+1, act_dim) or (L, act_dim)

A stranger's file may name other files of this machine, by links, external storage and virtual datasets, and HDF5 would read
them as if they were its own. It may promise arrays, chunks and compressed chunks of any size, and HDF5 would take the memory
first. So everything is decided from the file's own records, before an array is read.
"""

from __future__ import annotations

import contextlib
import errno
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DatasetError, PathError
from ..system.disk import open_regular
from .limits import LARGEST_CHUNK, MOST_EPISODES, MOST_NUMBERS, MOST_READ_PER_BYTE

if TYPE_CHECKING:
    import h5py  # a tenth of torch's own import time, so functions that need it import it

FLOATS = ("observations", "actions", "rewards")
FLAGS = ("terminations", "truncations")
SUCCESS = "infos/success"
LABELS = "infos/demonstrator_action"
_FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32"}
_FREE_BYTES = 1_000_000  # what a file of any size may promise
_LOCKED = ("unable to lock file", "already open for write")


class RefusedError(Exception):
    """An episode that must not be read. The text follows "episode <i>: "."""


@contextlib.contextmanager
def open_steps(path: Path) -> Iterator[h5py.File]:
    """Opens the HDF5 file `path` for reading.

    Raises:
        DatasetError: it is not an HDF5 file, damaged, locked, or not a regular file, or too many files are open.
    """
    import h5py

    try:
        with open_regular(path):  # HDF5 would wait for the other end of a pipe
            pass
        file = h5py.File(path, "r")
    except PathError as error:
        raise DatasetError(str(error)) from error
    except (OSError, RuntimeError, ValueError) as error:
        raise DatasetError(_why_not(path, error)) from error
    with file:
        _limit_cache(file)
        yield file


def _why_not(path: Path, error: Exception) -> str:
    """Why HDF5 did not open a file. It gives the errno only in the text of some errors."""
    text = str(error)
    if any(words in text for words in _LOCKED):
        return (
            f"{path} is locked: another program has it open for writing, or its file system cannot lock files. Wait for that "
            "program, or set HDF5_USE_FILE_LOCKING=FALSE if nothing writes the file"
        )
    if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE) or "Too many open files" in text:
        return f"{path} cannot be opened: this process has too many files open; raise the limit (ulimit -n 4096)"
    size = path.stat().st_size
    return f"{path} ({size:,} bytes) is not an HDF5 file, or is damaged or cut short: {text}"


def _limit_cache(file: h5py.File) -> None:
    """Keeps HDF5's cache small. It would keep the index of every array, 145 MB after 2,000 episodes (measured), for nothing:
    no array is read twice."""
    config = file.id.get_mdc_config()
    config.max_size = config.initial_size
    file.id.set_mdc_config(config)


def count_episodes(file: h5py.File, path: Path) -> int:
    """The number of episodes in an open file. path: the file, for messages.

    Raises:
        DatasetError: the episodes are not numbered 0, 1, …, cannot be listed, or are too many.
    """
    try:
        if (found := len(file)) > MOST_EPISODES:
            raise DatasetError(f"{path} has {found:,} entries; a dataset has at most {MOST_EPISODES:,} episodes")
        names = set(file.keys())
    except (OSError, RuntimeError) as error:
        raise DatasetError(f"{path} is damaged: its episodes cannot be listed: {error}") from error
    if odd := sorted(names ^ {f"episode_{i}" for i in range(len(names))}):
        raise DatasetError(
            f"{path}: episodes must be episode_0 … episode_{len(names) - 1}; missing or unknown: "
            f"{', '.join(name[:80] for name in odd[:6])}"
        )
    return len(names)


class EpisodeArrays:
    """Finds the arrays of one episode after the other, and keeps count of how many bytes they promise in all.

    file_bytes: the size of the file.
    """

    def __init__(self, file: h5py.File, file_bytes: int) -> None:
        self._file = file
        self._left = _FREE_BYTES + MOST_READ_PER_BYTE * file_bytes

    def of(
        self, index: int, needed: Sequence[str] = (*FLOATS, *FLAGS), optional: Sequence[str] = (SUCCESS,)
    ) -> tuple[dict[str, h5py.Dataset], int | None]:
        """The arrays of episode `index` by name, not read, and its seed. needed, optional: which; of others nothing is read.

        Raises:
            RefusedError: one is missing, not an array of numbers, kept elsewhere, too large, or stored in another way than in
                plain or deflated chunks; or the seed is not an integer.
            DatasetError: the episodes up to this one have more bytes than any file of this size.
        """
        import h5py

        name = f"episode_{index}"
        _require_inside(self._file, name)
        group = self._file[name]
        if not isinstance(group, h5py.Group):
            raise RefusedError("is not a group")
        found: dict[str, h5py.Dataset] = {}
        for field in (*needed, *optional):
            _require_inside(group, field)
            array = group.get(field)
            if array is None and field in optional:
                continue
            if not isinstance(array, h5py.Dataset):
                raise RefusedError(f"{field} is missing")
            found[field] = array
        self._require_small(found)
        for field, array in found.items():
            _require_plain(field, array)
        return found, _read_seed(group)

    def _require_small(self, arrays: Mapping[str, h5py.Dataset]) -> None:
        numbers = 0
        for name, array in arrays.items():
            if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8 or array.ndim == 0:
                raise RefusedError(f"{name} is {array.dtype} {array.shape}, not an array of numbers")
            numbers += array.size
            if numbers > MOST_NUMBERS:
                raise RefusedError(f"{name} is {array.shape}; an array of an episode has at most {MOST_NUMBERS:,} numbers")
            self._left -= array.size * array.dtype.itemsize
        if self._left < 0:
            raise DatasetError(
                f"{self._file.filename}: its episodes have more than {MOST_READ_PER_BYTE} bytes of numbers "
                "for each byte of the file, which no recording has"
            )


def _require_inside(group: h5py.Group, name: str) -> None:
    """Checks that the object `name` is a part of this very file, or does not exist."""
    import h5py

    where, _, rest = name.partition("/")
    link = group.get(where, getlink=True)
    if link is None:
        return
    if not isinstance(link, h5py.HardLink):
        raise RefusedError(f"{where} is a link to somewhere else ({type(link).__name__}), which is never followed")
    if rest:
        found = group[where]
        if isinstance(found, h5py.Group):
            _require_inside(found, rest)


def _require_plain(name: str, array: h5py.Dataset) -> None:
    """Checks that the numbers are in this file, and that reading them takes no more memory than they need."""
    if array.is_virtual:
        raise RefusedError(f"{name} is a virtual dataset, which reads other files")
    if array.external:
        raise RefusedError(f"{name} keeps its numbers in another file")
    chunk = math.prod(array.chunks or ()) * array.dtype.itemsize
    if array.chunks and chunk > LARGEST_CHUNK:
        raise RefusedError(f"{name} is stored in chunks of {chunk:,} bytes; at most {LARGEST_CHUNK:,} are read at once")
    plan = array.id.get_create_plist()
    filters = [plan.get_filter(i)[0] for i in range(plan.get_nfilters())]
    if odd := [code for code in filters if code not in _FILTERS or filters.count(code) > 1]:
        raise RefusedError(
            f"{name} is stored with filter {odd[0]}; only deflate (gzip), shuffle and fletcher32 are read, each once: "
            "h5repack -f NONE makes a plain copy"
        )
    if 1 in filters:
        _require_true_chunks(name, array, chunk)


def _require_true_chunks(name: str, array: h5py.Dataset, chunk: int) -> None:
    """Checks that no deflated chunk inflates to more than its size, `chunk`: HDF5 would inflate it all first."""
    limit = chunk + 4  # fletcher32 adds four bytes
    for i in range(array.id.get_num_chunks()):
        info = array.id.get_chunk_info(i)
        if info.filter_mask:
            raise RefusedError(f"{name} has a chunk that is stored in another way than the others")
        if info.size > chunk + chunk // 100 + 1_000:
            raise RefusedError(f"{name} has a chunk of {chunk:,} bytes that takes {info.size:,} bytes of the file")
        _, stored = array.id.read_direct_chunk(info.chunk_offset)
        try:
            inflated = zlib.decompressobj().decompress(stored, limit + 1)
        except zlib.error as error:
            raise RefusedError(f"{name} is damaged: {error}") from error
        if len(inflated) > limit:
            raise RefusedError(f"{name} has a chunk of {chunk:,} bytes that inflates to more than that")


def _read_seed(episode: h5py.Group) -> int | None:
    """The seed of the episode; None if none is stored."""
    attributes = episode.attrs
    if "seed" not in attributes:
        return None
    stored = attributes.get_id("seed")
    if stored.shape not in ((), (1,)) or stored.dtype.kind not in "iu":
        raise RefusedError(f"its seed is {stored.dtype} {stored.shape}, not an integer")
    value = attributes["seed"]
    return int(value if stored.shape == () else value[0])
