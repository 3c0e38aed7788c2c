"""Edits of HDF5 files through h5py: what is linked, promised, typed, stored and named otherwise than Minari writes it.

{"do": "link", "name", "kind"}                  soft, external, pipe, secret, itself, parent, nowhere
{"do": "outside", "name", "kind"}               external storage or a virtual dataset in the place of an array
{"do": "shape", "name", "shape", "stored"}      an array of that shape: stored, or only promised (chunks that nobody wrote)
{"do": "type", "name", "dtype"}                 the same numbers in another type
{"do": "value", "name", "at", "value"}          one number is another
{"do": "filter", "name", "kind"}                compressed, or by a filter that nobody has
{"do": "attribute", "name", "key", "kind"}      an attribute of an episode (Minari: its seed)
{"do": "rename", "name", "to"}, {"do": "group", "name"}, {"do": "array", "name"}, {"do": "drop", "name"}

Names that an earlier edit removed are passed over.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

LINKS = ("soft", "external", "pipe", "secret", "itself", "parent", "nowhere")
OUTSIDE = ("storage", "virtual", "long storage")
TYPES = {
    **{name: np.dtype(name) for name in ("f8", "f2", ">f4", "i8", "u1", "?", "c8", "S4", "V5")},
    "text": h5py.string_dtype(),
    "ragged": h5py.vlen_dtype(np.float32),
    "fields": np.dtype([("a", "f4"), ("b", "i8")]),
    "matrix": np.dtype(("f4", (3, 2))),
    "reference": h5py.ref_dtype,
    "enumeration": h5py.enum_dtype({"NO": 0, "YES": 1}, basetype="i1"),
}
FILTERS = ("gzip bomb", "lzf", "unknown", "scaleoffset", "shuffle", "fletcher32")
ATTRIBUTES = ("text", "huge", "nan", "many", "array", "empty", "reference", "big", "bytes")
UNKNOWN_FILTER = 32_099
BOMB = 1 << 21  # numbers

Edit = dict[str, Any]


def edit_hdf5(path: Path, secrets: Path, edits: list[Edit]) -> None:
    """Does the edits that the file still allows."""
    for edit in edits:
        with contextlib.suppress(OSError, RuntimeError, KeyError, ValueError, TypeError), h5py.File(path, "r+") as file:
            if is_own(file, edit["name"]):
                EDITS[edit["do"]](file, secrets, edit)


def is_own(file: h5py.File, name: str) -> bool:
    """Whether an object is there without following a link, which could lead out of the sandbox."""
    group: Any = file
    for part in name.split("/"):
        if not isinstance(group, h5py.Group) or not isinstance(group.get(part, getlink=True), h5py.HardLink):
            return False
        group = group[part]
    return not (isinstance(group, h5py.Dataset) and (group.is_virtual or group.external))


def link(file: h5py.File, secrets: Path, edit: Edit) -> None:
    name, kind = edit["name"], edit["kind"]
    group, last = file[name].parent, name.rpartition("/")[2]
    if kind == "pipe":
        pipe = Path(file.filename).with_name("pipe.h5")
        pipe.unlink(missing_ok=True)
        os.mkfifo(pipe)
    del file[name]
    targets: dict[str, Callable[[], object]] = {
        "soft": lambda: h5py.SoftLink("/episode_0/rewards"),
        "external": lambda: h5py.ExternalLink(str(secrets / "other.h5"), "numbers"),
        "pipe": lambda: h5py.ExternalLink("pipe.h5", "numbers"),
        "secret": lambda: h5py.ExternalLink(str(secrets / "key.txt"), "numbers"),
        "itself": lambda: group,
        "parent": lambda: file["/"],
        "nowhere": lambda: h5py.SoftLink("/not/here"),
    }
    group[last] = targets[kind]()


def outside(file: h5py.File, secrets: Path, edit: Edit) -> None:
    name, kind = edit["name"], edit["kind"]
    shape, dtype = file[name].shape, file[name].dtype
    size = int(np.prod(shape)) * dtype.itemsize
    del file[name]
    if kind == "virtual":
        layout = h5py.VirtualLayout(shape, dtype)
        layout[:] = h5py.VirtualSource(str(secrets / "other.h5"), "numbers", shape)
        file.create_virtual_dataset(name, layout)
    else:
        times = 1 if kind == "storage" else 64
        file.create_dataset(name, shape, dtype, external=[(str(secrets / "key.txt"), i, size) for i in range(times)])


def shape(file: h5py.File, secrets: Path, edit: Edit) -> None:
    name, wanted = edit["name"], tuple(edit["shape"])
    dtype = file[name].dtype
    del file[name]
    if edit["stored"]:
        file[name] = np.zeros([min(n, 50) for n in wanted], dtype)
    else:
        file.create_dataset(name, wanted, dtype, chunks=tuple(max(1, min(n, 16)) for n in wanted) or None)


def other_type(file: h5py.File, secrets: Path, edit: Edit) -> None:
    name, dtype = edit["name"], TYPES[edit["dtype"]]
    old = file[name]
    values = old[()] if isinstance(old, h5py.Dataset) else np.zeros(3)
    del file[name]
    made = file.create_dataset(name, values.shape, dtype)
    with contextlib.suppress(TypeError, ValueError, OSError):
        made[...] = values


def value(file: h5py.File, secrets: Path, edit: Edit) -> None:
    values = file[edit["name"]][()]
    flat = values.reshape(-1)
    with np.errstate(all="ignore"):
        flat[int(edit["at"] * (flat.size - 1))] = float(edit["value"])
    file[edit["name"]][...] = values


def other_filter(file: h5py.File, secrets: Path, edit: Edit) -> None:
    name, kind = edit["name"], edit["kind"]
    values = file[name][()]
    del file[name]
    options: dict[str, dict[str, Any]] = {
        "gzip bomb": {"compression": "gzip", "compression_opts": 9},
        "lzf": {"compression": "lzf"},
        "unknown": {"compression": UNKNOWN_FILTER, "compression_opts": (1, 2), "allow_unknown_filter": True},
        "scaleoffset": {"scaleoffset": 4},
        "shuffle": {"shuffle": True, "compression": "gzip"},
        "fletcher32": {"fletcher32": True},
    }
    if kind == "gzip bomb":
        values = np.zeros((BOMB, *values.shape[1:2]) if values.ndim == 1 else (BOMB // 8, 8), values.dtype)
    file.create_dataset(name, values.shape, values.dtype, chunks=True, **options[kind]) if kind == "unknown" else (
        file.create_dataset(name, data=values, chunks=True, **options[kind])
    )


def attribute(file: h5py.File, secrets: Path, edit: Edit) -> None:
    made: dict[str, Callable[[], Any]] = {
        "text": lambda: "seven\x1b[31m",
        "huge": lambda: np.float64(1e300),
        "nan": lambda: np.nan,
        "many": lambda: np.arange(8000),
        "array": lambda: np.zeros((3, 0)),
        "empty": lambda: h5py.Empty("f4"),
        "reference": lambda: file.ref,
        "big": lambda: np.uint64((1 << 64) - 1),
        "bytes": lambda: np.void(b"\0\1\2"),
    }
    file[edit["name"]].attrs[edit["key"]] = made[edit["kind"]]()


def rename(file: h5py.File, secrets: Path, edit: Edit) -> None:
    file.move(edit["name"], edit["to"])


def group(file: h5py.File, secrets: Path, edit: Edit) -> None:
    del file[edit["name"]]
    file.create_group(edit["name"])


def array(file: h5py.File, secrets: Path, edit: Edit) -> None:
    del file[edit["name"]]
    file[edit["name"]] = np.zeros(3, np.float32)


def drop(file: h5py.File, secrets: Path, edit: Edit) -> None:
    del file[edit["name"]]


EDITS: dict[str, Callable[[h5py.File, Path, Edit], None]] = {
    "link": link,
    "outside": outside,
    "shape": shape,
    "type": other_type,
    "value": value,
    "filter": other_filter,
    "attribute": attribute,
    "rename": rename,
    "group": group,
    "array": array,
    "drop": drop,
}
