"""Safetensors files: written and read as safetensors itself does, or refused."""

from __future__ import annotations

import hashlib
import json
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load, load_file
from small_banks import equal

from m3dt_agent.bank.tensor_files import FileRecord, read_tensors, write_tensors
from m3dt_agent.errors import BankError, DiskSpaceError


def test_a_file_too_large_is_a_full_disk(tmp_path: Path) -> None:
    """The real thing, with the operating system refusing the write."""
    kept, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, kept[1]))
    try:
        with pytest.raises(DiskSpaceError, match="large"):
            write_tensors(tmp_path / "large", {"a": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)
        signal.signal(signal.SIGXFSZ, handler)
    assert not (tmp_path / "large").exists()


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(
            st.lists(st.integers(0, 4), max_size=3), st.sampled_from([torch.float32, torch.float64, torch.int64, torch.bool])
        ),
        max_size=5,
    )
)
def test_safetensors_reads_what_is_written(tmp_path_factory: pytest.TempPathFactory, shapes: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("files") / "x.safetensors"
    tensors = {name: torch.randint(0, 9, shape).to(dtype) for name, (shape, dtype) in shapes.items()}
    record = write_tensors(path, tensors)
    assert record.bytes == path.stat().st_size
    for read in (load_file(path), read_tensors(path, record)):
        assert equal(read, tensors)
        assert {name: t.dtype for name, t in read.items()} == {name: t.dtype for name, t in tensors.items()}
    with pytest.raises(BankError, match="damaged or foreign"):
        read_tensors(path, FileRecord("0" * 64, record.bytes))


def raw_file(header: bytes, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_files_are_read_or_refused_as_safetensors_itself_does(tmp_path_factory: pytest.TempPathFactory, draw: Any) -> None:
    """One number of a whole file is changed, or its length."""
    number = st.integers(-3, 40)
    header = {"a": entry("BOOL", [3], 0, 3), "b": entry("F32", [2, 2], 3, 19), "c": entry("BF16", [0, 4], 19, 19)}
    header["d"] = entry("I64", [], 19, 27)
    field = draw.draw(st.sampled_from(["shape", "data_offsets", "dtype", "nothing"]))
    changed = header[draw.draw(st.sampled_from("abcd"))]
    if field == "dtype":
        changed["dtype"] = draw.draw(st.sampled_from(["F32", "I32", "F16", "U8", "F99", None]))
    elif field != "nothing" and changed[field]:
        changed[field][draw.draw(st.integers(0, len(changed[field]) - 1))] = draw.draw(number)
    if draw.draw(st.booleans()):
        header["__metadata__"] = {"made": "here"}
    text = json.dumps(header).encode()
    content = raw_file(text, bytes(range(1, 28))[: draw.draw(st.sampled_from([27, 27, 27, 26]))])
    path = tmp_path_factory.mktemp("files") / "x.safetensors"
    path.write_bytes(content)
    record = FileRecord(hashlib.sha256(content).hexdigest(), len(content))
    try:
        expected = load(content)
    except (SafetensorError, AssertionError):
        with pytest.raises(BankError, match="not a safetensors file"):
            read_tensors(path, record)
    else:
        found = read_tensors(path, record)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "content",
    [b"", b"\1", raw_file(b"[1]", b""), raw_file(b"nothing", b""), (1 << 62).to_bytes(8, "little"), raw_file(b"\xff", b"")],
)
def test_what_is_no_safetensors_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(BankError, match="x is not a safetensors file"):
        read_tensors(tmp_path / "x", FileRecord(hashlib.sha256(content).hexdigest(), len(content)))


def test_tensors_of_one_file_can_be_changed_apart(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(5.0), "b": torch.arange(7)}
    record = write_tensors(tmp_path / "x", tensors)
    first, second = read_tensors(tmp_path / "x", record), read_tensors(tmp_path / "x", record)
    first["a"].zero_()
    assert torch.equal(first["b"], tensors["b"])
    assert equal(second, tensors)
    assert equal(read_tensors(tmp_path / "x", record), tensors)


def test_transposed_tensors_are_written_in_their_logical_order(tmp_path: Path) -> None:
    tensor = torch.arange(24.0).view(2, 3, 4).mT
    write_tensors(tmp_path / "x", {"a": tensor})
    assert torch.equal(load_file(tmp_path / "x")["a"], tensor)
