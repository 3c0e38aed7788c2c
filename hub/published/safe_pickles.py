"""Reads other people's pickles without executing anything in them.

A pickle is a program that may call whatever it names. For the few names that arrays and TensorDicts need, the two loaders here
substitute harmless classes of our own, and they refuse every other name. A pickle thus calls nothing of numpy or tensordict.

    numpy.dtype, numpy.ndarray, …multiarray._reconstruct, .scalar, …numeric._frombuffer, _codecs.encode    load_arrays
    tensordict….TensorDict, ._reductions._make_td, .utils._StringOnlyDict, __builtin__.set                 map_tensordict

The unpickler is the one written in Python. The one in C takes as much memory as a pickle announces, for missing bytes and for a
memo of four billion entries. Even the real dtype and ndarray are unsafe: a crafted state sets false flags in a dtype, and
numbers are then used as pointers.
The names of TensorDicts are those in files saved by tensordict 0.1.2, 0.2.0, 0.2.1, 0.3.2, 0.5.0, 0.6.2, 0.9.1 and 0.15.3.
"""

from __future__ import annotations

import contextlib
import pickle
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m3dt_agent.data.limits import MOST_NUMBERS
from m3dt_agent.errors import DatasetError, PathError
from m3dt_agent.hub.published.archives import check_torch_file, load_torch_file, why_refused
from m3dt_agent.system.disk import open_regular

_NUMBER = re.compile(r"[<>|=]?[fiub][1248]")  # as numpy writes dtypes: float, integer, unsigned, bool, and their bytes
_LARGEST_PICKLE = 1_000_000_000  # bytes; Prompt-DT's files have 80 MB


class _Dtype:
    def __init__(self, code: object, *_: object) -> None:
        if not isinstance(code, str) or not _NUMBER.fullmatch(code):
            raise ValueError(f"an array of dtype {code!r}; only numbers are read")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[2:5] != (None, None, None):
            raise ValueError("an array of structures; only numbers are read")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    values: NDArray[Any] = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, raw = state
        self.values = _frombuffer(raw, dtype, shape, "F" if is_fortran else "C").values


def _frombuffer(raw: Any, dtype: _Dtype, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.values = np.frombuffer(raw, dtype.dtype).reshape(shape, order=order)
    return array


def _reconstruct(kind: type[_Array], *_: object) -> _Array:
    return kind()


def _scalar(dtype: _Dtype, raw: bytes) -> _Array:
    return _frombuffer(raw, dtype, (), "C")


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError(f"text encoded as {encoding!r}; numpy's pickles use latin1")
    return text.encode("latin1")


_ADMITTED: dict[str, Any] = {"numpy.dtype": _Dtype, "numpy.ndarray": _Array, "_codecs.encode": _encode}
for _core in ("numpy.core", "numpy._core"):  # before and since numpy 2
    _ADMITTED[f"{_core}.multiarray._reconstruct"] = _reconstruct
    _ADMITTED[f"{_core}.multiarray.scalar"] = _scalar
    _ADMITTED[f"{_core}.numeric._frombuffer"] = _frombuffer


_BUILD: Any = pickle._Unpickler.dispatch[pickle.BUILD[0]]


class _ArrayUnpickler(pickle._Unpickler):
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]
    append: Callable[[Any], None]
    read: Callable[[int], bytes]

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _ADMITTED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which arrays of numbers have no use for")
        return _ADMITTED[f"{module}.{name}"]

    def load_build(self) -> None:
        if not isinstance(self.stack[-2], (_Array, _Dtype)):  # else it would set attributes of a function of ours
            raise pickle.UnpicklingError(f"it sets attributes of a {type(self.stack[-2]).__name__}")
        _BUILD(self)

    def load_bytearray8(self) -> None:
        self.append(bytearray(self.read(struct.unpack("<Q", self.read(8))[0])))  # as much as there is, not as is announced

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


class _Exactly:
    """Reads from a file as much as is asked for, and says before it takes the memory if there is not so much."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._left = file, size

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self._left:
            raise pickle.UnpicklingError("pickle data was truncated")
        self._left -= size
        return self._file.read(size)

    def readline(self) -> bytes:
        line = self._file.readline()
        self._left -= len(line)
        return line


def load_arrays(path: Path, names: Sequence[str]) -> list[dict[str, NDArray[Any]]]:
    """Reads the pickled list of dictionaries at `path`: of each dictionary the arrays called `names`, those that it has.

    A list of numbers, of arrays of one shape, or of lists of numbers is taken for the array that it could be.

    Raises:
        DatasetError: the pickle names something other than arrays (the message says what), is cut short, too large, or is not a
            list of dictionaries; or a value is no array of numbers.
    """
    try:
        with open_regular(path) as file:
            if (size := path.stat().st_size) > _LARGEST_PICKLE:
                raise ValueError(f"it has {size:,} bytes; at most {_LARGEST_PICKLE:,} are read")
            loaded = _ArrayUnpickler(_Exactly(file, size)).load()
    except Exception as error:  # a damaged pickle raises almost anything
        known = isinstance(error, (pickle.UnpicklingError, ValueError, PathError))
        raise DatasetError(f"{path} cannot be read: {error if known else f'it is damaged ({type(error).__name__})'}") from error
    if not isinstance(loaded, list) or not all(isinstance(entry, dict) for entry in loaded):
        raise DatasetError(f"{path} holds no list of dictionaries, but {type(loaded).__name__.lstrip('_')}")
    return [
        {name: _numbers(f"{path}, trajectory {i}: {name}", entry[name]) for name in names if name in entry}
        for i, entry in enumerate(loaded)
    ]


def _numbers(where: str, value: object) -> NDArray[Any]:
    if isinstance(value, _Array):
        return value.values
    if isinstance(value, (list, tuple)):
        rows = [[_plain(number) for number in one] if isinstance(one, (list, tuple)) else _plain(one) for one in value]
        if sum(map(_row_size, rows)) <= MOST_NUMBERS:
            with contextlib.suppress(ValueError, TypeError, OverflowError):
                array = np.asarray(rows)
                if array.dtype.kind in "fiub":
                    return array
    raise DatasetError(
        f"{where} is a {type(value).__name__.lstrip('_')} that is no array of numbers, nor a list that makes one"
    )


def _plain(value: object) -> object:
    """The array, or the number where it is a single one."""
    if not isinstance(value, _Array):
        return value
    return value.values if value.values.ndim else value.values.item()


def _row_size(row: object) -> int:
    """How many numbers a row has; more than may be read if it is not made of numbers."""
    if isinstance(row, np.ndarray):
        return row.size
    parts = row if isinstance(row, (list, tuple)) else [row]
    return len(parts) if all(isinstance(one, (int, float)) for one in parts) else MOST_NUMBERS + 1


class _TensorDict:
    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _make_td(kind: type[_TensorDict], state: Any) -> _TensorDict:
    made = kind()
    made.__setstate__(state)
    return made


_STAND_INS: list[Any] = [
    (_TensorDict, "tensordict.tensordict.TensorDict"),  # until 0.2
    (_TensorDict, "tensordict._td.TensorDict"),  # since 0.3
    (_make_td, "tensordict._reductions._make_td"),  # since 0.5
    (dict, "tensordict.utils._StringOnlyDict"),  # 0.2 to 0.4
    (set, "__builtin__.set"),  # 0.2, for its locks
]


def map_tensordict(path: Path) -> Mapping[str, Tensor]:
    """Maps the tensors of the TensorDict that `torch.save` wrote to `path`: their bytes are read when they are used.

    What was read stays in memory as long as any of the tensors. The package tensordict is not needed.

    Raises:
        DatasetError: there is no such file, it is cut short or not a TensorDict of tensors, or it names something else (the
            message says what).
    """
    try:
        if not check_torch_file(path):
            raise ValueError("it is cut short, or no file of torch")
        with torch.serialization.safe_globals(_STAND_INS):
            loaded = load_torch_file(path)
    except Exception as error:  # a damaged file raises almost anything
        raise DatasetError(f"{path} cannot be read: {why_refused(error)}") from error
    state = loaded.state if isinstance(loaded, _TensorDict) else None
    tensors = state.get("_tensordict") if isinstance(state, dict) else None
    if not isinstance(tensors, dict):
        raise DatasetError(f"{path} holds a {type(loaded).__name__.lstrip('_')}, not a TensorDict of tensors")
    size = path.stat().st_size
    if odd := [key for key, value in tensors.items() if not _is_plain(value, size)]:
        raise DatasetError(f"{path}: {odd[0]!r} is not a plain tensor whose numbers are all in the file")
    return {str(key): value.detach() for key, value in tensors.items()}


def _is_plain(value: object, file_size: int) -> bool:
    if type(value) is not Tensor or value.layout is not torch.strided or value.device.type != "cpu":
        return False
    # with a stride of 0, a small storage can pose as a large tensor
    return not (value.is_quantized or value.is_conj() or value.is_neg()) and value.nbytes <= file_size
