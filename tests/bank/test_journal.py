"""Commits: a kill at any point makes all of the change or none, and readers see whole banks."""

from __future__ import annotations

import dataclasses
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
from small_banks import CONFIG, equal, new_bank, parts, random_model

from m3dt_agent.bank import ExpertBank
from m3dt_agent.bank.journal import JOURNAL
from m3dt_agent.bank.manifest import Manifest
from m3dt_agent.errors import BankError, ConfigError, DiskSpaceError


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


def test_a_reader_of_an_interrupted_commit_writes_nothing_and_reads_what_it_will_make(
    full_bank: ExpertBank, tmp_path: Path
) -> None:
    """A kill at every point; `read_only` leaves every byte and time of change on the disk, and sees what `open` then makes."""
    new, journals = parts(random_model(1)), 0
    for n in range(100):
        path = tmp_path / f"killed {n}"
        shutil.copytree(full_bank.path, path)
        ended = os.WIFEXITED(in_child(lambda path=path, n=n: killed_commit(path, new, n)))
        journals += (path / JOURNAL).exists()
        before = on_disk(path)
        for check in ("contents", "sizes"):
            bank = ExpertBank.open(path, read_only=True, check=check)
            files = {name: bank.read(name) for name in new}
            with bank.held():
                bank.refresh()
        copy = bank.copy_to(tmp_path / f"copy {n}")
        assert on_disk(path) == before
        written = ExpertBank.open(path)
        assert bank.manifest == written.manifest
        assert all(equal(files[name], written.read(name)) and equal(files[name], copy.read(name)) for name in new)
        assert all(equal(bank.read(name), files[name]) for name in new)  # the commit was finished by `open`; it still reads
        if ended:
            break
    assert journals > 5


def on_disk(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file and folder with its time of change and its content."""
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in (folder, *folder.rglob("*"))
    }


# -- two handles of one bank ---------------------------------------------------------------------------------------------------


def two_handles(bank: ExpertBank) -> tuple[ExpertBank, ExpertBank]:
    return ExpertBank.open(bank.path), ExpertBank.open(bank.path)


def test_overlapping_commits_of_different_files_are_merged(tmp_path: Path) -> None:
    files = parts(random_model())
    first, second = two_handles(new_bank(tmp_path / "bank"))
    first.commit({"backbone.safetensors": files["backbone.safetensors"]}, stages={"backbone": {"threads": 1}})
    second.commit({"experts/000.safetensors": files["experts/000.safetensors"]}, stages={"experts": {"threads": 2}})
    first.commit({"experts/001.safetensors": files["experts/001.safetensors"]}, groups={"walker-run": 0, "reach": 1})
    bank = ExpertBank.open(tmp_path / "bank")
    assert bank.manifest.stages == {"backbone": {"threads": 1}, "experts": {"threads": 2}}
    assert bank.finished_experts == (0, 1)
    assert bank.groups == {"walker-run": 0, "reach": 1}
    assert first.manifest == bank.manifest
    assert all(equal(bank.read(name), files[name]) for name in files if name in bank.manifest.files)


def test_overlapping_commits_that_contradict_are_refused_and_the_bank_opens(full_bank: ExpertBank) -> None:
    ours, theirs = parts(random_model(1)), parts(random_model(2))
    first, second = two_handles(full_bank)
    first.commit({"router.safetensors": theirs["router.safetensors"]}, stages={"router": {"threads": 1}})
    before = on_disk(full_bank.path)
    with pytest.raises(BankError, match=r"another process has changed router\.safetensors .*; open it again"):
        second.commit({"router.safetensors": ours["router.safetensors"]})
    with pytest.raises(BankError, match="another process has changed the record of stage 'router'"):
        second.commit({}, stages={"router": {"threads": 2}})
    after = on_disk(full_bank.path)
    assert {name: content for name, (_, content) in after.items()} == {name: content for name, (_, content) in before.items()}
    assert equal(ExpertBank.open(full_bank.path).read("router.safetensors"), theirs["router.safetensors"])
    second.commit({"router.safetensors": theirs["router.safetensors"]}, stages={"router": {"threads": 1}})  # the same: fine
    second.refresh()
    second.commit({"router.safetensors": ours["router.safetensors"]}, stages={"router": {"threads": 2}})
    assert equal(ExpertBank.open(full_bank.path).read("router.safetensors"), ours["router.safetensors"])


def test_groups_that_another_process_made_are_kept_or_refused(tmp_path: Path) -> None:
    first, second = two_handles(new_bank(tmp_path / "bank"))
    first.commit({}, groups={"walker-run": 0, "reach": 1})
    with pytest.raises(BankError, match="another process has changed the groups"):
        second.commit({}, groups={"walker-run": 1, "reach": 0})
    second.commit({}, grouping={"grouping": "random", "seed": 0})
    assert ExpertBank.open(tmp_path / "bank").groups == {"walker-run": 0, "reach": 1}


def test_a_bank_opened_with_some_experts_keeps_the_others_when_it_commits(full_bank: ExpertBank) -> None:
    files = parts(random_model(1))
    some = ExpertBank.open(full_bank.path, experts=[0])
    some.commit({"experts/000.safetensors": files["experts/000.safetensors"]})
    bank = ExpertBank.open(full_bank.path)
    assert bank.finished_experts == (0, 1)
    assert some.finished_experts == (0,)
    assert "router.safetensors" in bank.manifest.files


def test_another_bank_in_the_same_place_is_not_written_to(full_bank: ExpertBank, tmp_path: Path) -> None:
    handle = ExpertBank.open(full_bank.path)
    shutil.rmtree(full_bank.path)
    with pytest.raises(BankError, match="no bank at"):
        handle.commit({}, groups={"walker-run": 0, "reach": 1})
    new_bank(full_bank.path, dataclasses.replace(CONFIG, embed_dim=32))
    with pytest.raises(BankError, match=r"another bank .* its model differ"):
        handle.commit({}, groups={"walker-run": 0, "reach": 1})


def test_processes_that_create_one_bank_make_one(tmp_path: Path) -> None:
    """Both have looked before either has written."""
    source = new_bank(tmp_path / "model")
    empty = [ExpertBank(tmp_path / "bank", dataclasses.replace(source.manifest, files={})) for _ in range(2)]
    (tmp_path / "bank").mkdir()
    first = {name: source.read(name) for name in source.manifest.files}
    empty[0].commit(first)
    with pytest.raises(BankError, match="there already is a bank"):
        empty[1].commit(first)
    assert ExpertBank.open(tmp_path / "bank").manifest == empty[0].manifest


def test_many_processes_commit_to_one_bank(tmp_path: Path) -> None:
    """Eight at once, each with its own expert and a handle from before all of them: every expert arrives."""
    bank = new_bank(tmp_path / "bank", dataclasses.replace(CONFIG, n_experts=8))
    expert = parts(random_model())["experts/000.safetensors"]
    children = []
    for number in range(8):
        if (child := os.fork()) == 0:
            try:
                bank.commit({f"experts/{number:03d}.safetensors": expert})
                os._exit(0)
            finally:
                os._exit(3)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
    assert ExpertBank.open(bank.path).finished_experts == tuple(range(8))


def test_an_update_is_made_of_the_bank_as_it_is(tmp_path: Path) -> None:
    files = parts(random_model())
    first, second = two_handles(new_bank(tmp_path / "bank"))
    first.commit({"backbone.safetensors": files["backbone.safetensors"]})
    seen = []

    def make(now: Manifest) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
        seen.append(sorted(now.files))
        return {"router.safetensors": files["router.safetensors"]}, {"grouping": {"seed": len(now.files)}}

    second.update(make)
    assert seen == [["backbone.safetensors", "prompts.safetensors", "statistics.safetensors"]]
    assert ExpertBank.open(tmp_path / "bank").manifest.grouping == {"seed": 3}
    for wrong in ("../router.safetensors", "experts/٠٠٠.safetensors", "experts/1.safetensors"):  # noqa: RUF001
        with pytest.raises(ConfigError, match="a bank has no file"):
            second.commit({wrong: files["router.safetensors"]})
    assert not list(tmp_path.glob("*.safetensors*"))


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
