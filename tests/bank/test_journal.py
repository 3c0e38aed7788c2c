"""Commits: a kill at any point makes all of the change or none, and readers see whole banks."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_banks import equal, parts, random_model

from m3dt_agent.bank import ExpertBank
from m3dt_agent.errors import DiskSpaceError


def in_child(action: Callable[[], object]) -> int:
    """Wait status of a forked child; files only, no training, so that forking is safe."""
    if (child := os.fork()) == 0:
        try:
            action()
        finally:
            os._exit(3)
    return os.waitpid(child, 0)[1]


def test_a_commit_killed_anywhere_is_made_or_not(full_bank: ExpertBank, tmp_path: Path) -> None:
    """SIGKILL before the n-th flush or rename, for every n: the bank opens as it was or as it was to become, and can commit."""
    old, new = parts(random_model()), parts(random_model(1))
    seen = set()
    for n in range(100):
        path = tmp_path / f"killed {n}"
        shutil.copytree(full_bank.path, path)
        status = in_child(lambda path=path, n=n: killed_commit(path, new, n))
        bank = ExpertBank.open(path)
        expected = (
            new
            if torch.equal(*(files["router.safetensors"]["blocks.0.router.layers.0.bias"] for files in (new, old)))
            else None
        )
        assert expected is None
        changed = [not equal(bank.read(name), old[name]) for name in old]
        assert all(changed) or not any(changed), f"half a commit after a kill before operation {n}"
        assert changed[0] == (bank.groups == {"walker-run": 1, "reach": 0})
        seen.add(changed[0])
        bank.commit(new)
        assert not list(path.rglob("*.next*"))
        if os.WIFEXITED(status):
            break
    assert seen == {False, True}
    assert n > 10


def killed_commit(path: Path, files: dict[str, dict[str, torch.Tensor]], n: int) -> None:
    done = [0]

    def before(original: Callable[..., Any]) -> Callable[..., Any]:
        def patched(*args: Any) -> Any:
            done[0] += 1
            if done[0] > n:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args)

        return patched

    os.replace, os.fsync = before(os.replace), before(os.fsync)
    ExpertBank.open(path).commit(files, groups={"walker-run": 1, "reach": 0})


def test_an_interrupted_commit_is_finished_by_the_next(full_bank: ExpertBank, monkeypatch: pytest.MonkeyPatch) -> None:
    new, replace, done = parts(random_model(1)), os.replace, []

    def interrupted(source: Path, target: Path) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(target)
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            full_bank.commit(new)
    full_bank.commit({}, groups={"walker-run": 1, "reach": 0})
    bank = ExpertBank.open(full_bank.path)
    assert bank.groups == {"walker-run": 1, "reach": 0}
    assert all(equal(bank.read(name), new[name]) for name in new)


def test_a_full_disk_leaves_the_bank_as_it_was(full_bank: ExpertBank, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ExpertBank.open(full_bank.path).content_hash

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DiskSpaceError, match=r"backbone\.safetensors\.next"):
            full_bank.commit(parts(random_model(1)))
    assert not list(full_bank.path.rglob("*.next*"))
    assert ExpertBank.open(full_bank.path).content_hash == before == full_bank.content_hash


def test_a_held_bank_does_not_change(full_bank: ExpertBank) -> None:
    other = ExpertBank.open(full_bank.path)
    writer = threading.Thread(target=other.commit, args=({"router.safetensors": parts(random_model(1))["router.safetensors"]},))
    with full_bank.held():
        before = full_bank.read("router.safetensors")
        writer.start()
        writer.join(0.3)
        assert writer.is_alive()
        torch.testing.assert_close(full_bank.read("router.safetensors"), before, rtol=0, atol=0)
    writer.join(20)
    assert full_bank.manifest != ExpertBank.open(full_bank.path).manifest
    with full_bank.held():
        assert full_bank.manifest == ExpertBank.open(full_bank.path).manifest


def test_readers_of_a_bank_being_committed_see_whole_banks(full_bank: ExpertBank) -> None:
    stop = threading.Event()
    models = [parts(random_model(seed)) for seed in (2, 3)]

    def write() -> None:
        for i in range(6):
            full_bank.commit(models[i % 2])
        stop.set()

    writer = threading.Thread(target=write)
    writer.start()
    hashes = set()
    while not stop.is_set():
        hashes.add(ExpertBank.open(full_bank.path).content_hash)
    writer.join()
    hashes.add(full_bank.content_hash)
    assert len(hashes) <= 3
